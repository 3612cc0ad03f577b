"""The short form of `make chaos`: each fault once or more, in an order that does not change, and nobody notices."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import MEASURING, need

from fuse_gated import pulse, seats, supervisor
from fuse_gated.persistence import Persistence

DOCUMENT = Path(__file__).parents[2] / "docs/production/reliability.md"
CHAOS = Path(__file__).with_name("chaos.py")
KINDS = {
    "worker killed", "worker and its successor killed", "worker killed in a takeover", "standby killed, and its successor",
    "worker told to end", "daemon killed", "mount keeper killed", "daemon and mount keeper killed", "policy reloaded",
    "connection cut", "connection cut in a frame", "connection half-open", "connection stalled one way", "connection delayed",
    "connection slow",
}  # fmt: skip
PORTABLE = KINDS - {"daemon killed", "mount keeper killed", "daemon and mount keeper killed"}


def run(figures: Path, *options: str) -> dict[str, Any]:
    need("root", "fuse", "git")
    if MEASURING:
        pytest.skip("what is killed has measured nothing")
    command = [sys.executable, CHAOS, *options, "--json", figures]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    report: dict[str, Any] = json.loads(figures.read_text())
    return report


@pytest.mark.timeout(900)
def test_nobody_notices_anything(tmp_path: Path) -> None:
    report = run(tmp_path / "figures" / "chaos.json", "--faults", "16", "--seed", "7")["chaos"]
    assert report["faults"] == 16
    assert report["kinds"].keys() - {"two at once"} == KINDS
    assert all(count > 0 for count in report["programs"].values())
    assert report["programs"].keys() >= {"contents", "names", "appends-1", "locks-mount", "copies", "git", "listing"}
    assert report["records"]["session-opened"] == 1
    assert report["records"]["session-resumed"] > 5
    assert report["records"]["session-restored"] > 2


@pytest.mark.timeout(900)
def test_nobody_notices_anything_of_what_a_mount_of_libfuses_survives(tmp_path: Path) -> None:
    need("fusermount3", "fusermount")
    report = run(tmp_path / "chaos.json", "--faults", "12", "--seed", "7", "--driver", "libfuse")["chaos"]
    assert report["kinds"].keys() == PORTABLE
    assert report["records"]["session-opened"] == 1
    assert report["records"]["session-restored"] > 2


@pytest.mark.timeout(900)
def test_nothing_grows(tmp_path: Path) -> None:
    report = run(tmp_path / "chaos.json", "--reconnects", "20", "--seed", "7")["reconnects"]
    assert report["count"] == 20
    for when in ("before", "after"):
        assert report[when].keys() >= {"supervisor", "keeper", "daemon", "worker 0", "client", "runtime", "state"}
        assert all(figure > 0 for figures in report[when].values() for figure in figures.values())


@pytest.mark.timeout(900)
def test_availability_is_counted(tmp_path: Path) -> None:
    report = run(tmp_path / "chaos.json", "--schedule", "11s", "--seed", "7")["availability"]
    assert report["faults"] == 2
    assert report["share"] >= 0.999


@pytest.mark.timeout(900)
def test_the_same_cut_under_sshfs(tmp_path: Path) -> None:
    need("sshfs", "fusermount3", "/usr/lib/openssh/sftp-server")
    report = run(tmp_path / "chaos.json", "--beside-sshfs", "2")["cut"]
    assert report["fuse-gated"]["errors"] == 0
    assert report["sshfs"]["median"] > 0


def planned(*options: str) -> str:
    done = subprocess.run([sys.executable, CHAOS, *options, "--plan"], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_seed_decides_the_order() -> None:
    assert planned("--seed", "7", "--faults", "40") == planned("--seed", "7", "--faults", "40")
    assert planned("--seed", "7", "--faults", "40") != planned("--seed", "8", "--faults", "40")
    assert {line[5:] for line in planned("--seed", "9", "--faults", "15").splitlines()[1:]} == KINDS
    assert {line[5:] for line in planned("--seed", "9", "--faults", "12", "--driver", "libfuse").splitlines()[1:]} == PORTABLE


def test_the_commands_of_the_documents_are_right() -> None:
    commands = re.findall(r"^# make chaos(?: CHAOS_FLAGS=\"(.*?)\")?", DOCUMENT.read_text(), re.MULTILINE)
    assert len(commands) > 3
    for flags in commands:
        assert planned(*shlex.split(flags)).startswith("seed ")


def test_the_bounds_of_the_documents_are_the_product_s() -> None:
    text = " ".join(DOCUMENT.read_text().split())
    assert (seats._MOST_FALLS, seats._FALLS_WITHIN, supervisor.MAX_DEATHS, supervisor.DEATHS_WITHIN) == (10, 60.0, 5, 30.0)
    assert "fallen more than ten times within a minute" in text
    assert "has died more than five times within 30 s" in text
    assert pulse.DEAD_AFTER == Persistence().dead_after == 20.0


@pytest.mark.parametrize(
    "options",
    [["--only", "no such fault"], ["--schedule", "-1"], ["--schedule", "soon"], ["--driver", "libfuse", "--reconnects", "2"]],
)
def test_what_makes_no_sense_is_refused(options: list[str]) -> None:
    done = subprocess.run([sys.executable, CHAOS, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr
