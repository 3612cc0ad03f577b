"""What the gate itself adds to an operation: rules, limiter, audit decision and record, without the rest of the way.

One request goes through a real turnstile, and what that asks of the gate and the limiter is written down. Then these very
calls are made again and again on real ones, and timed. A path's verdict is remembered, so there are two figures: of a path
that was judged before, and of one that never was.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from harness.cases import CASES, Scene
from harness.sansio import EVERYTHING, OWNER, Mount

from fuse_gated.edge.journal import native
from fuse_gated.gate.audit import Chain, Record
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import Limiter
from fuse_gated.gate.tenant import Limits, Tenant
from fuse_gated.gate.verdict import Rule

PROMISED: Final = 15.0
"""Microseconds that the gate may add to an operation."""

_OPERATIONS: Final = ("lookup", "getattr", "open", "read", "release", "open to write", "create", "write", "unlink", "rename")
_PLENTY: Final = 1e9
_LIMITS: Final = Limits(
    operations={"read": _PLENTY, "write": _PLENTY, "*": _PLENTY}, bytes={"read": _PLENTY, "write": _PLENTY, "*": _PLENTY}
)
_BLOCK: Final = 100

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
Bound = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class _Written:
    """Stands before a real object and writes down what is asked of it."""

    def __init__(self, real: object, calls: list[Call]) -> None:
        self._real = real
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            self._calls.append((name, arguments, named))
            return found(*arguments, **named)

        return call


def costs(rules: int, blocks: int = 30) -> dict[str, dict[str, float]]:
    """By operation: microseconds with a path that was judged before (`known`) and with a new one (`new`), how often the gate and
    the limiter are asked (`calls`), and how many audit records there are (`records`)."""
    tenant = Tenant(name="bench", rules=(*(Rule(f"/some{n}/*.x", deny=2) for n in range(rules)), *EVERYTHING), limits=_LIMITS)
    return {name: _cost(tenant, name, blocks) for name in _OPERATIONS}


def _cost(tenant: Tenant, name: str, blocks: int) -> dict[str, float]:
    case = next(case for case in CASES if case.name == name)
    mount = Mount(tenant.rules, limits=tenant.limits, audit=tenant.audit)
    scene = Scene(mount)
    gate_calls: list[Call] = []
    limiter_calls: list[Call] = []
    mount.t.gate = _Written(mount.t.gate, gate_calls)  # type: ignore[assignment]
    mount.t.limiter = _Written(mount.t.limiter, limiter_calls)  # type: ignore[assignment]
    number = mount.ask(case.request(scene))
    if mount.t.session.get(number) is not None:
        mount.reply(number, case.result)
    records = mount.records

    gate, limiter, chain = Gate(tenant, OWNER), Limiter(tenant.limits, mount.now), Chain("bench", "s", "work")

    def bound(mark: bytes) -> list[Bound]:
        asked = [(getattr(gate, name), _renamed(arguments, mark), named) for name, arguments, named in gate_calls]
        return [*asked, *((getattr(limiter, name), arguments, named) for name, arguments, named in limiter_calls)]

    known = [bound(b"")] * _BLOCK
    return {
        "known": statistics.median(_timed(known, chain, records) for _ in range(blocks)),
        "new": statistics.median(
            _timed([bound(b"%d" % (block * _BLOCK + n)) for n in range(_BLOCK)], chain, records) for block in range(blocks)
        ),
        "calls": len(gate_calls) + len(limiter_calls),
        "records": len(records),
    }


def _renamed(arguments: tuple[Any, ...], mark: bytes) -> tuple[Any, ...]:
    """The same with other paths: never seen before, if the mark was not."""
    return tuple(argument + mark if isinstance(argument, bytes) else argument for argument in arguments)


def _timed(operations: list[list[Bound]], chain: Chain, records: list[Record]) -> float:
    """Microseconds of this thread's processor time for one of the operations: what else the machine does is not counted."""
    start = time.thread_time()
    for calls in operations:
        for method, arguments, named in calls:
            method(*arguments, **named)
        for record in records:
            native(chain.seal(record))
    return (time.thread_time() - start) / len(operations) * 1e6
