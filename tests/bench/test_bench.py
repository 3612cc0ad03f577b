"""The benchmark runs, and says what it is for. How fast anything is, is nobody's business here."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from harness import need, need_that

BENCH = Path(__file__).with_name("bench.py")
LATENCY = ["--latency", "--rounds", "1", "--count", "5", "--size", "1", "--seconds", "0.2"]
SUITE = ["--scale", "0.002", "--cap", "20", "--distances", "1"]
ALL = {"local", "link", "sshfs", "sshfs, best", "fuse-gated", "fuse-gated, TLS"}


def bench(*options: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, BENCH, *options], capture_output=True, text=True, timeout=170, check=False)


@pytest.mark.parametrize("options", [[], ["--profile"]], ids=["rows", "profile"])
def test_latency_is_measured_and_written(tmp_path: Path, options: list[str]) -> None:
    need("root", "fuse", "sshfs", "openssl")
    need_that(not options or shutil.which("py-spy", path=Path(sys.executable).parent), "this machine lacks: py-spy")
    figures = tmp_path / "build" / "figures.json"
    done = bench(*LATENCY, *options, "--json", figures)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())["latency"]
    assert list(found["median"]) == [
        "stat, uncached", "open, read 4 KiB, close", "create, write 4 KiB, close", "unlink", "write 1 MiB, fsync", "read 1 MiB",
    ]  # fmt: skip
    for row, by in found["median"].items():
        assert row in done.stdout
        assert all(value > 0 for value in by.values())
        assert by.keys() == {"fuse-gated", "fuse-gated, TLS", "sshfs", "local"}
        assert found["cpu"][row]["fuse-gated"].keys() == {"worker", "client", "program"}
    assert found["gate"]["create"]["records"] == 1
    assert found["gate"]["lookup"]["calls"] > 0
    assert "The gate alone, with 50 rules" in done.stdout
    if options:
        for of in found["profile"].values():
            assert of["processes"].keys() == {"worker", "client", "caller"}
            assert of["operations"] > 0
        places = {
            one["place"].partition(":")[0] for of in found["profile"].values() for one in of["processes"]["worker"]["functions"]
        }
        assert "fuse_gated/edge/loop.py" in places


def test_all_are_measured_over_a_delayed_link(tmp_path: Path) -> None:
    """And what was measured is not measured again."""
    need("root", "fuse", "sshfs", "ip", "nsenter", "openssl")
    need_that(Path("/dev/net/tun").exists(), "this machine lacks: /dev/net/tun")
    figures = tmp_path / "figures.json"
    done = bench(*SUITE, "--rows", "tar", "sqlite", "--json", figures)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads(figures.read_text())["cells"]["1"]
    assert {row: set(by) for row, by in cells.items()} == {"tar": ALL, "sqlite": ALL}
    for row, step in (("tar", "tar, cold"), ("sqlite", "sqlite, transactions")):
        assert step in done.stdout
        for who in ALL - {"link"}:
            assert "gap" not in cells[row][who], cells[row][who]
            figure = cells[row][who]["figures"][step]
            assert figure["right"] is True
            assert figure["units"] == figure["whole"] > 0
        # A connection and its end take a round trip at least.
        assert row == "sqlite" or cells[row]["link"]["figures"][step]["seconds"] >= 1e-3
    for who in ("fuse-gated", "fuse-gated, TLS"):
        assert 0 < cells["tar"][who]["seen"] < 30
    assert ElementTree.parse(figures.with_suffix(".svg")).getroot().tag.endswith("svg")
    assert "| tar, cold |" in figures.with_suffix(".md").read_text()
    before = figures.read_text()
    again = bench(*SUITE, "--rows", "tar", "sqlite", "--resume", "--json", figures)
    assert (again.returncode, again.stderr) == (0, "")
    assert figures.read_text() == before


def test_a_row_that_fails_is_a_gap(tmp_path: Path) -> None:
    need("root", "fuse", "sshfs", "ip", "nsenter")
    need_that(Path("/dev/net/tun").exists(), "this machine lacks: /dev/net/tun")
    figures = tmp_path / "figures.json"
    (tmp_path / "fuse_gated" / "gate").mkdir(parents=True)
    (tmp_path / "fuse_gated" / "gate" / "tenant.py").write_text("")
    # A checkout in which there is no server.
    options = ["--rows", "tar", "--contestants", "local", "fuse-gated", "--checkout", tmp_path, "--json", figures]
    done = bench(*SUITE, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads(figures.read_text())["cells"]["1"]["tar"]
    assert cells["local"]["figures"]["tar, cold"]["right"] is True
    assert "did not start" in cells["fuse-gated"]["gap"]
    assert "1 ms, tar, fuse-gated: gap: " in done.stdout


def cell(seconds: float, units: float = 100, **more: Any) -> dict[str, Any]:
    told = {"seconds": seconds, "units": units, "whole": 100, "unit": "files", "right": True, "cpu": {}, "more": {}}
    return {"figures": {"tar, cold": {**told, "capped": units < 100}}, "seen": 0.02, **more}


@pytest.mark.parametrize(
    ("sshfs", "ours", "said"),
    [
        (cell(200), cell(5), "40 | 40 |  | 20 times sshfs ✓; 3 times the link ✓ |"),
        (cell(200), cell(50), "4 | 4 |  | 20 times sshfs short; 3 times the link short |"),
        # Cut short after a quarter: compared by what was done.
        (cell(180, 25), cell(6), "| ~720 s | 6 s |  | 120 | 120 |  | 20 times sshfs ✓; 3 times the link ✓ |"),
        # Cut short before anything could be counted: it would have been longer, nobody knows by how much.
        (cell(180, 0), cell(60), "| >180 s | 60 s |  | ≥3 | ≥3 |  | 20 times sshfs ?; 3 times the link short |"),
        # sshfs is as fast as the link is: nobody can be twenty times faster.
        (cell(2.2), cell(2.4), "20 times sshfs (the link allows 1.1) short; 3 times the link ✓ |"),
        ({"gap": "it broke"}, cell(5), "20 times sshfs ?; 3 times the link ✓ |"),
    ],
)
def test_what_is_kept_and_what_falls_short(tmp_path: Path, sshfs: dict[str, Any], ours: dict[str, Any], said: str) -> None:
    cells = {"sshfs": sshfs, "sshfs, best": sshfs, "link": {"figures": {"tar, cold": {"seconds": 2.0}}}, "fuse-gated": ours}
    sizes = {"files": 100, "tiny": 1, "units": 1, "large": 2**20, "transactions": 1}
    found = {"plan": {"sizes": {"20": sizes}, "megabits": 240, "cap": 180}, "cells": {"20": {"tar": cells}}}
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps(found))
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- figures -->\nfigures of before\n<!-- end of figures -->\nafter\n")
    done = bench("--render", "--json", figures, "--into", document)
    assert done.returncode == 0, done.stderr
    page = document.read_text()
    assert page.startswith("before\n<!-- figures -->\n![")
    assert page.endswith("<!-- end of figures -->\nafter\n")
    assert "| tar, cold |" in page
    assert "figures of before" not in page
    assert (tmp_path / "page.svg").exists()
    (line,) = (line for line in figures.with_suffix(".md").read_text().splitlines() if line.startswith("| tar, cold |"))
    assert line.endswith(said)
