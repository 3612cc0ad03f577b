"""The benchmark runs, and says what it is for. How fast anything is, is nobody's business here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import need, need_that

BENCH = Path(__file__).with_name("bench.py")
SMALL = ["--rounds", "1", "--count", "5", "--size", "1", "--seconds", "0.2"]


@pytest.mark.parametrize("options", [[], ["--profile"]], ids=["rows", "profile"])
def test_it_measures_and_writes_its_figures(tmp_path: Path, options: list[str]) -> None:
    need("root", "fuse", "sshfs")
    need_that(not options or shutil.which("py-spy", path=Path(sys.executable).parent), "this machine lacks: py-spy")
    figures = tmp_path / "build" / "figures.json"
    done = subprocess.run(
        [sys.executable, BENCH, *SMALL, *options, "--json", figures], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(figures.read_text())
    assert list(report["median"]) == [
        "stat, uncached", "open, read 4 KiB, close", "create, write 4 KiB, close", "unlink", "write 1 MiB, fsync", "read 1 MiB",
    ]  # fmt: skip
    for row, by in report["median"].items():
        assert row in done.stdout
        assert all(value > 0 for value in by.values())
        assert by.keys() == {"fuse-gated", "sshfs", "local"}
    assert report["gate"]["create"]["records"] == 1
    assert report["gate"]["lookup"]["calls"] > 0
    assert "The gate alone, with 50 rules" in done.stdout
    if options:
        for of in report["profile"].values():
            assert of["processes"].keys() == {"worker", "client", "caller"}
            assert of["operations"] > 0
        places = {
            one["place"].partition(":")[0] for of in report["profile"].values() for one in of["processes"]["worker"]["functions"]
        }
        assert "fuse_gated/edge/loop.py" in places


def test_what_sessions_cost(tmp_path: Path) -> None:
    need("root", "fuse")
    figures = tmp_path / "figures.json"
    options = ["--sessions", "--counts", "1", "3", "--json", figures]
    done = subprocess.run([sys.executable, BENCH, *options], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(figures.read_text())["sessions"]
    assert [row["sessions"] for row in rows] == [0, 1, 3]
    # What the documents say of descriptors (docs/production/scaling.md), and that memory grows by what it says, or less.
    for part, each in (("daemon", 5), ("keeper", 2), ("supervisor", 3)):
        # One more where something that has just ended is still being told of.
        assert all(0 <= row[part] - rows[0][part] - row["sessions"] * each <= 2 for row in rows)
    assert rows[2]["pss"] - rows[0]["pss"] < 3 * 15
    assert all(moment > 0 for row in rows for moment in row["open"])
    assert "time to open one" in done.stdout
