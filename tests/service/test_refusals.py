"""One local user who is refused again and again: every refusal is told, and no more of them than the settings allow."""

import os
import signal
import time
from pathlib import Path
from typing import Final

import pytest
from harness import Stage
from harness.hostile import Child
from harness.waiting import told

RATE: Final = 25
SECONDS: Final = 2.0


def insist(path: Path, interval: float) -> tuple[int, float]:
    """Open what is denied for two seconds, a signal every `interval` seconds meanwhile; how often it was refused, and how
    long it took."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
    start, refused = time.monotonic(), 0
    while time.monotonic() < start + SECONDS:
        try:
            os.close(os.open(path, os.O_RDONLY))
        except PermissionError:
            refused += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return refused, time.monotonic() - start


@pytest.mark.parametrize("interval", [0, 0.001], ids=["quietly", "with signals"])
def test_whoever_insists_is_slowed_down(own_stage: Stage, interval: float) -> None:
    rules = [{"path": "/denied", "deny": ["read"]}, {"path": "/**", "allow": ["read", "write", "delete"]}]
    mounted = own_stage.mount(own_stage.tenant(rules=rules), settings={"audit": {"to": "file", "refusals": f"{RATE}/s"}})
    (mounted.export / "denied").touch()
    (mounted.path / "beside").write_text("is not slowed down")
    start, since = time.monotonic(), len(told(mounted.server))
    programs = [Child(insist, mounted.path / "denied", interval) for _ in range(3)]
    refused = sum(program.result()[0] for program in programs)
    for program in programs:
        program.__exit__()
    elapsed = time.monotonic() - start
    records = [record for record in told(mounted.server)[since:] if record["FUSE_GATED_KIND"] == "refused"]
    assert len(records) == refused, "each has its record"
    assert RATE <= refused <= RATE + RATE * elapsed + len(programs)


def test_others_are_not_slowed_down(own_stage: Stage) -> None:
    rules = [{"path": "/denied", "deny": ["read"]}, {"path": "/**", "allow": ["read", "write", "delete"]}]
    mounted = own_stage.mount(own_stage.tenant(rules=rules), settings={"audit": {"to": "file", "refusals": "1/s"}})
    (mounted.export / "denied").touch()
    (mounted.export / "beside").write_text("still here")
    with Child(insist, mounted.path / "denied", 0) as program:
        count = 0
        while not program.wait(0):
            assert (mounted.path / "beside").read_text() == "still here"
            count += 1
        assert count > program.result()[0]
