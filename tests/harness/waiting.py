"""Waiting for what no descriptor tells: a process's state, a mount that goes, a record in a file."""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from harness.log import DEADLINE
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


def told(server: Server) -> list[dict[str, Any]]:
    """All audit records whose lines are whole."""
    path = server.runtime / "audit.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


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
