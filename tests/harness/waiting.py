"""Waiting for what no descriptor tells: a process's state, a mount that goes, a record in a file."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fuse_gated.edge.journal import LINE_START
from harness.log import DEADLINE, whole_lines
from harness.server import Server

Value = TypeVar("Value")

_PAUSE = 0.01


def until(condition: Callable[[], Value], what: str, deadline: float = DEADLINE) -> Value:
    """The first true value of `condition`. Raises AssertionError when there is none within `deadline` seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what}")
        time.sleep(_PAUSE)
    return value


def allowed(seconds: float) -> float:
    """How long what is promised within so many seconds may take here and now: as many times longer as there are programs
    that want to run for each processor, and longer still for one that has to step back behind them (nice(2))."""
    running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    crowd = max(os.getloadavg()[0], running) / (os.cpu_count() or 1)
    # A step of niceness is a quarter more or less of the time (sched(7)).
    return min(DEADLINE, seconds * (crowd * 1.25 ** max(0, os.nice(0)) if crowd > 1 else 1.0))


def told(server: Server) -> list[dict[str, Any]]:
    """All audit records whose lines are whole. A line that ends in its midst, because a process was killed while it wrote it, has
    the next process's first one behind it (edge/records.py)."""
    path, start = server.runtime / "audit.jsonl", LINE_START.decode()
    found = []
    for line in whole_lines(path.read_bytes()) if path.exists() else ():
        first, *others = line.split(start)
        for piece in filter(None, (first, *(start + other for other in others))):
            try:
                found.append(json.loads(piece))
            except json.JSONDecodeError:
                if not others:
                    raise
    return found


def records(server: Server, since: int = 0, says: str = "", **fields: str) -> list[dict[str, Any]]:
    """The audit records after the first `since` whose message has `says` in it, and in which each field is as given:
    kind='refused' means FUSE_GATED_KIND."""
    return [
        record
        for record in told(server)[since:]
        if says in record["MESSAGE"] and all(record.get(f"FUSE_GATED_{name.upper()}") == value for name, value in fields.items())
    ]


def wait_for_record(server: Server, since: int = 0, says: str = "", **fields: str) -> dict[str, Any]:
    """The first such record, once it is there."""
    try:
        return until(lambda: records(server, since, says, **fields), "a record")[0]
    except AssertionError:
        raise AssertionError(f"no record with {says!r} and {fields}; there are {told(server)[since:]}") from None
