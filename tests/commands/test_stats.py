import json
import re
from typing import Any

import pytest
from harness.looks import block, seen, session

from fuse_gated.commands.fuse_gatectl import main
from fuse_gated.commands.stats import shown_duration, shown_part, shown_rate
from fuse_gated.errors import OperatorError

BUSY = block(
    operations={"lookup": 40, "read": 100}, begun=3, BYTES_READ=2**20, CACHE_HITS=3, CACHE_MISSES=1, REFUSED=2, SLOW=1, WAITING=1
)


@pytest.fixture
def runtime(control_socket: Any) -> list[str]:
    def figures(session: str, brief: bool, ended_after: int) -> Any:
        assert (brief, ended_after) == (False, -1)
        if session not in ("", "s1", "acme/src"):
            raise OperatorError(f"there is no session {session!r}")
        return seen(*LOOKS.pop(0))

    control_socket.answers = {"figures": figures}
    return ["--runtime", str(control_socket.runtime)]


LOOKS: list[list[Any]] = []


def test_one_session(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    LOOKS[:] = [[session(data=BUSY)]]
    assert main([*runtime, "stats", "acme/src"]) == 0
    first, second, _, heading, *rows = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"acme/src, \d+d \d\dh: 140 operations, cache hits 75%", first)
    assert second == "read 1.0 MiB, written 0 B; 3 in flight, 1 waiting; 2 refused, 1 slow"
    assert heading.split()[:6] == ["OPERATION", "COUNT", "RATE", "ERRORS", "FAULTS", "BYTES"]
    # The most frequent first.
    assert [row.split()[:2] for row in rows] == [["read", "100"], ["lookup", "40"]]
    assert rows[0].split()[3:7] == ["0", "0", "1.0", "MiB"]
    assert len({len(row) for row in rows}) == 1, "numbers stand under each other"


def test_all_together(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    two = [session(data=BUSY), session("s2", "docs", data=block(operations={"lookup": 2}, UNTOLD=5))]
    LOOKS[:] = [two, two]
    assert main([*runtime, "stats"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 sessions, ")
    assert "5 operations failed because no audit record could be written" in out
    assert main([*runtime, "stats", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["sessions"], told["operations"], told["untold"]) == (2, 142, 5)
    assert told["by_operation"]["lookup"]["count"] == 42
    assert told["by_operation"]["read"]["bytes"] == 2**20
    assert sum(told["by_operation"]["read"]["histograms"]["remote"]) == 100
    assert 0.0005 < told["by_operation"]["read"]["p50"] <= told["by_operation"]["read"]["p99"] < 0.0011


def test_nothing_yet(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    LOOKS[:] = [[], []]
    assert main([*runtime, "stats"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "0 sessions, 0s: 0 operations"
    assert main([*runtime, "stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["p99"] is None


def test_over_some_time_only_what_came_then(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    LOOKS[:] = [
        [session(data=block(operations={"lookup": 40}))],
        [session(data=block(operations={"lookup": 42})), session("s2", data=block(operations={"read": 1}))],
    ]
    assert main([*runtime, "stats", "--over", "0.01", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: one["count"] for name, one in told["by_operation"].items()} == {"lookup": 2, "read": 1}
    assert told["by_operation"]["lookup"]["rate"] == pytest.approx(2 / told["seconds"], rel=0.2)


def test_what_makes_no_sense(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "stats", "--over", "0"]) == 2
    assert main([*runtime, "stats", "--over", "1e9"]) == 2
    assert main([*runtime, "stats", "other"]) == 1
    assert "there is no session 'other'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0.0, "0 us"), (4.1e-6, "4.1 us"), (0.000999, "999 us"), (0.0012, "1.2 ms"), (0.2505, "250 ms"),
     (17.18, "17.2 s"), (1234.0, "1234 s")],
)  # fmt: skip
def test_durations(seconds: float | None, shown: str) -> None:
    assert shown_duration(seconds) == shown


def test_rates_and_parts() -> None:
    assert [shown_rate(rate) for rate in (0.0, 0.123, 9.94, 1234.5)] == ["0/s", "0.12/s", "9.9/s", "1234/s"]
    assert [shown_part(part) for part in (None, 0.0, 0.996, 1.0)] == ["-", "0%", "100%", "100%"]
