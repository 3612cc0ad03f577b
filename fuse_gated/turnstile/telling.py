"""What is told to the audit: refusals, what is allowed before it is done, and what of that failed."""

from typing import Final

from fuse_gated.gate.audit import Record
from fuse_gated.gate.limiter import Bucket
from fuse_gated.gate.verdict import Verdict
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.effects import Effect, Tell
from fuse_gated.turnstile.limits import Limits, Statistics
from fuse_gated.turnstile.measures import Measures

_AGAIN: Final = "again: another process had read it, and may have told of it"
_SLOW_A_SECOND: Final = 3
"""Records of slow operations."""


class Telling:
    """The effects of one session, and the records among them. `level` is the tenant's (gate/audit.py)."""

    def __init__(self, limits: Limits, level: str) -> None:
        self.limits = limits
        self.effects: list[Effect] = []
        self.statistics = Statistics()
        self.now = 0.0
        self.measures = Measures(lambda: self.now)
        self._refusals = Bucket(limits.refusals, 0.0)
        self._slow = Bucket(_SLOW_A_SECOND, 0.0)
        self._slow_untold = 0
        self.set_audit_level(level)

    def set_audit_level(self, level: str) -> None:
        self.tells_everything = level == "everything"
        self.tells_opens = self.tells_everything or level == "opens"
        self.tells_changes = self.tells_opens or level == "writes"

    def refused(self, call: Call, verdict: Verdict, path: bytes | None, new_path: bytes | None = None) -> Failure:
        """Tell a refusal; the Failure is to be raised."""
        assert verdict.errno is not None
        self.statistics.denied += 1
        self.measures.refused()
        call.path, call.new_path = path, new_path
        self.tell(call, "refused", "denied", rule=verdict.rule, errno=verdict.errno, detail=verdict.reason)
        call.told = False
        call.pause = self._refusals.reserve(self.now, self.limits.deadline)
        return Failure(verdict.errno)

    def limited(self, call: Call, errno: str, path: bytes | None, detail: str) -> Failure:
        """Tell that a limit of the policy was met; the Failure is to be raised."""
        self.statistics.denied += 1
        self.measures.refused()
        call.path = path
        self.tell(call, "limited", "denied", errno=errno, detail=detail)
        call.pause = self._refusals.reserve(self.now, self.limits.deadline)
        return Failure(errno)

    def announce(self, call: Call, path: bytes, new_path: bytes | None = None, rule: str = "") -> None:
        """Tell an operation that was allowed, before the client is asked for it. Said again it tells nothing: a request that
        comes to its handler a second time is still one; but one that was read by a process before this one may have been told by
        that, which the record says."""
        if not call.told:
            call.path, call.new_path, call.told = path, new_path, True
            self.tell(call, "operation", "allowed", rule=rule, detail=_AGAIN if call.before else "")

    def announce_other(self, call: Call, path: bytes, new_path: bytes | None = None, rule: str = "") -> None:
        """Tell an allowed operation that only the level 'everything' tells."""
        if self.tells_everything:
            self.announce(call, path, new_path, rule)

    def tell(self, call: Call, kind: str, decision: str, *, rule: str = "", errno: str = "", detail: str = "") -> None:
        self.note(
            Record(
                kind=kind,
                operation=call.operation,
                path=call.path,
                new_path=call.new_path,
                decision=decision,
                rule=rule,
                errno=errno,
                uid=call.caller.uid,
                pid=call.caller.pid,
                duration_usec=int((self.now - call.started) * 1e6) if kind == "failed" else None,
                detail=detail,
                request=call.id,
            )
        )

    def tell_slow(self, call: Call, path: bytes | None, where: tuple[float, float, float, float]) -> None:
        """Tell an operation that took long, and `where` (Measures.slow); not each of very many: those are counted in the next
        record."""
        if self._slow.wait(self.now, 1) > 0.0:
            self._slow_untold += 1
            return
        self._slow.credit -= 1 / self._slow.rate
        untold, self._slow_untold = self._slow_untold, 0
        gate, held, remote, client = (int(time * 1e6) for time in where)
        own = f" (the client itself {client / 1e6:g} s)" if client else ""
        self.note(
            Record(
                kind="slow-operation",
                operation=call.operation,
                path=path,
                uid=call.caller.uid,
                pid=call.caller.pid,
                count=untold + 1 if untold else None,
                duration_usec=gate + held + remote,
                gate_usec=gate,
                held_usec=held,
                remote_usec=remote,
                client_usec=client or None,
                detail=f"gate {gate / 1e6:g} s, held {held / 1e6:g} s, wire and client {remote / 1e6:g} s{own}",
            )
        )

    def note(self, record: Record) -> None:
        """Tell something that no request stands behind."""
        self.effects.append(Tell(record))
