"""What `control.figures` would tell, made up: blocks of measures, sessions, and looks at a server."""

import struct
from typing import Any

from fuse_gated import control
from fuse_gated.turnstile import measures
from fuse_gated.turnstile.measures import AT, MAGIC, WORDS


def block(*, operations: dict[str, int] | None = None, begun: int = 0, **words: int) -> bytes:
    """A session's block: so many operations of each kind, each of about a millisecond, nearly all of it with the client; `begun`
    more that have not ended; and words of the session's."""
    made = [0] * WORDS
    made[0] = MAGIC
    for name, count in (operations or {}).items():
        at = AT[name]
        made[at + measures.OWN_WHOLE + 8] = made[at + measures.GATE + 2] = made[at + measures.REMOTE + 8] = count
        made[at + measures.GATE_TIME] = 10_000 * count
        made[at + measures.REMOTE_TIME] = 1_000_000 * count
        made[at + measures.CLIENT_TIME] = 200_000 * count
        made[measures.WHOLE + 8] += count
    made[measures.IN_FLIGHT] = begun
    for name, value in words.items():
        made[getattr(measures, name)] = value
    return struct.pack(f"={WORDS}Q", *made)


def session(name: str = "s1", export: str = "src", tenant: str = "acme", data: bytes = b"", **more: Any) -> control.Figured:
    values: dict[str, Any] = {"driver": "kernel", "address": "192.0.2.7", "since": 0.0, "state": "mounted"}
    values = {**values, "sealed": 0, "taken": 0, **more}
    return control.Figured(session=name, export=export, tenant=tenant, measures=data.rstrip(b"\0"), **values)


def seen(*sessions: control.Figured, past: list[control.Ended] | None = None, **more: Any) -> control.Seen:
    values: dict[str, Any] = {
        "version": "1.2", "started": "run", "uptime": 5.0, "tenants": 2, "draining": False, "connections": 1,
        "last_ended": max((one.number for one in past or []), default=0),
    }  # fmt: skip
    return control.Seen(sessions=list(sessions), ended=past or [], **{**values, **more})
