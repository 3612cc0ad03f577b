"""The measurement of many sessions runs, with few of them. What it finds of memory and time is nobody's business here, but that
nothing is refused or left, and what the documents say of descriptors (docs/production/scaling.md), are."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import need

BENCH = Path(__file__).with_name("bench.py")
OPERATIONS = {"list", "stat", "read", "write"}


def run(figures: Path, *options: str) -> tuple[dict[str, Any], str]:
    need("root", "fuse")
    command = [sys.executable, BENCH, "--sessions", *options, "--json", figures]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(figures.read_text()), done.stdout


def test_what_sessions_cost(tmp_path: Path) -> None:
    few = "--counts 1 4 --burst 5 --programs 2 --rounds 1 --idle 0.2 --seconds 1 --most 3"
    found, said = run(tmp_path / "figures.json", *few.split())
    assert [row["sessions"] for row in found["sessions"]] == [1, 4]
    for row in found["sessions"]:
        assert row["open"]["refused"] == {}
        assert row["work"]["errors"] == []
        assert {name for name in row["work"] if name in OPERATIONS} == OPERATIONS
        assert all(row["work"][name]["count"] == row["sessions"] for name in OPERATIONS)
        assert row["close"]["in_order"] == row["sessions"]
        for part, each in (("daemon", 5), ("keeper", 2), ("supervisor", 3)):
            empty, there, left = (row[when]["descriptors"][part] for when in ("empty", "idle", "left"))
            # One or two more, on either side, where something that has just ended is still being told of.
            assert abs(there - empty - row["sessions"] * each) <= 2
            assert left - empty <= 1, "nothing is left of what has gone"
        assert row["idle"]["descriptors"]["worker"] == 12
        assert 0 < row["idle"]["pss"] - row["empty"]["pss"] < row["sessions"] * 15
        assert row["idle"]["all"] >= 0
    assert found["burst"]["each"]["count"] == 5
    assert found["most"]["sessions"] == 3
    assert set(found["fairness"]) == {"nobody", "one program", "10 programs", "a busy client", "one that counts", "10 that count"}
    assert all(part["count"] > 0 for part in found["fairness"].values())
    assert "p99 against alone" in said


def test_a_soak(tmp_path: Path) -> None:
    found, said = run(tmp_path / "figures.json", "--soak", "0.1")
    soak = found["soak"]
    assert soak["errors"] == []
    assert soak["rounds"] == len(soak["all"]) > 0
    assert soak["sessions"] == 20 + 30 * soak["rounds"]
    assert f"{soak['rounds']} rounds" in said
