"""The turnstile: every request of one mounted session comes through here, and so does every answer.

The walk of one operation: the driver decodes a request and calls `request`; the operation's handler (names, attributes,
files, directories, locks) finds the path, asks the gate, tells the audit and asks the client; the client's message comes
in by `received`; the handler's second half checks it and answers. Whatever is to be done is appended to `effects`.
"""

import heapq
from collections.abc import Iterable
from typing import Final

from fuse_gated import operations
from fuse_gated.errors import ProtocolError, errno_number
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.verdict import Verdict
from fuse_gated.operations import Caller, Failed, Request
from fuse_gated.tree.journal import AnyRow
from fuse_gated.turnstile import ahead, climbing, contested, knowing, lazily, stale
from fuse_gated.turnstile.call import Call, Failure, waits_for_lock
from fuse_gated.turnstile.effects import Answer, Close
from fuse_gated.turnstile.limiting import Limiting
from fuse_gated.turnstile.limits import Limits, Statistics
from fuse_gated.turnstile.memory import remembered
from fuse_gated.turnstile.outage import ERRNO, WOULD_WAIT, Outage, Waits
from fuse_gated.turnstile.table import TABLE

__all__ = ["INTERRUPT_GRACE", "Limits", "Statistics", "Turnstile"]

INTERRUPT_GRACE: Final = 0.5
"""Seconds after a signal in which an answer still reaches the caller; then it gets EINTR. On a local filesystem only a wait
for a lock is interrupted by signals that a program catches (signal(7)), and few programs expect EINTR of stat(2): a timer or
a child's end must not make a call fail that would have been answered."""
_TICK: Final = 0.25
_MORE_INODES: Final = 100_000
"""Nodes that the kernel may hold beyond twice the limit: it forgets names when it likes."""
_NOT_A_USER: Final = Verdict("EACCES", "users", "not one of the tenant's users")


class Turnstile(Limiting):
    """One mounted session, without I/O: time is an argument, what is to be done is appended to `effects`."""

    silenced = False
    """No audit record can be written: nothing goes to the client, every request fails with EIO."""
    untold = 0
    """Requests that failed because of that."""
    _lost = False

    # What the driver says.

    def request(self, now: float, number: int, caller: Caller, request: Request) -> None:
        """A request from the kernel. Its data may lie in the driver's buffer: carry the effects out before it reads on.

        Raises ProtocolError where the client is to blame: the session is to be closed.
        """
        self.now = now
        row = TABLE.get(type(request))
        if row is None:
            self._without_answer(number, request)
            return
        ledger = self.ledger
        if ledger.unfinished:
            climbing.look_for_end(self, request)
        call = Call(number, caller, request, row.name, now)
        self._calls[number] = call
        self.statistics.operations += 1
        if ledger.before:
            call.before = ledger.came_before(number)
        if self._lost:
            # Who has just been told so may be the kernel, which then looks a name up anew for the same caller.
            self.fail(call, "ENOTCONN" if self.outage is None else ERRNO)
            return
        if ledger.owed and number in ledger.owed:
            # It was done by a process that ended before the kernel took its answer.
            self.answer(call, ledger.owed.pop(number))
            return
        if self.ahead and ahead.came_again(self, call):
            return
        if self.outage is not None and not self.outage.may_be_answered(request):
            self._meets_outage(call)
            return
        if self.silenced and row.kind:
            self.untold += 1
            self.measures.untold()
            self.fail(call, "EIO")
            return
        try:
            if row.by_name and caller.pid and not self.gate.caller_may_enter(caller.uid):
                raise self.refused(call, _NOT_A_USER, self.path_of(request))
            if row.kind and not self.limiter.unlimited and self.is_held(call, row.kind):
                return
            row.handle(self, call, request)
        except Failure as failure:
            self.fail(call, failure.errno)
        except Waits:
            self._meets_outage(call)

    def interrupt(self, now: float, number: int) -> None:
        """The caller of a request got a signal (FUSE_INTERRUPT)."""
        self.now = now
        call = self._calls.get(number)
        if call is None or call.interrupted or call.verdict:
            # A refusal's turn comes soon; who could end the waiting could have any number of them told.
            return
        call.interrupted = True
        if ahead.hurry(self, number):
            return
        # What is owed goes on, whoever wants to hear of it once more.
        pending = None if ahead.is_owed(self, number) else self.session.get(number)
        if waits_for_lock(call.request) and (pending is None or not self.session.cancel(number)):
            self.session.give_up(number)
            self.fail(call, "EINTR")
            return
        latest = now + INTERRUPT_GRACE
        call.deadline = latest if call.deadline is None else min(call.deadline, latest)
        if pending is not None:
            pending.deadline = min(pending.deadline, latest)
        else:
            self._grace.append((latest, call))

    # What the client says.

    def received(self, now: float, message: bytes | bytearray | memoryview) -> None:
        """A message from the client, after its hello.

        Raises ProtocolError for what the protocol does not allow: the session is to be closed.
        """
        self.now = now
        self.noticed = 0
        self.session.received(message)
        if self.ledger.leftovers:
            for number in self.ledger.leftovers:
                if self.session.known(number) is None:
                    self.ledger.leftovers.over(number)
        knowing.settle(self)

    def lost(self, now: float) -> None:
        """The client is gone for good: every caller that waits is told so, and everyone who comes until the mount is gone."""
        self.now = now
        self._lost = True
        self.session.abandon()
        ahead.lose(self)
        self._held.clear()
        errno = "ENOTCONN" if self.outage is None else ERRNO
        for call in list(self._calls.values()):
            self.fail(call, errno)

    def suspend(self, now: float) -> None:
        """The client is away, and may come back to a successor of ours. What it was asked may have been done or not."""
        self.now = now
        mode = self.gate.tenant.outage.mode
        self.outage = Outage(mode, self.ledger.known, lambda target: remembered(self, target), self.cache.content)
        self.sent_before = self.session.sent()
        self.session.abandon()
        ahead.leave(self)
        self.readahead.clear()
        for call in list(self._calls.values()):
            if call.interrupted and not call.verdict:
                # What it was still given was for an answer, and there comes none.
                if call.limited_as:
                    self.let_go(call)
                self.fail(call, "EINTR")
            elif self.outage.may_be_answered(call.request) and not (call.verdict or call.limited_as):
                self.again(call)
        stale.suspended(self)
        self._outage_mode_changed()

    def restore(self, rows: Iterable[AnyRow], epoch: int) -> None:
        """Go on where the rows' writer stopped, in an `epoch` of its own. Raises ValueError for rows that cannot be."""
        self.session.begin(epoch)
        self.awaits_requests = True
        self.ledger.restore(rows, 2 * self.limits.inodes + _MORE_INODES)

    def resume(self, now: float) -> None:
        """After `restore`, where the client is there again: it may not have heard all that it was told."""
        self.now = now
        ahead.ask_again(self)
        self.give_back_again()

    def withdraw(self, number: int) -> bool:
        """A request that was to be sent cannot be, because its record cannot be written: its caller fails. False for one that
        nobody ever waited for, such as RELEASE: it is to be sent later."""
        if self.session.is_own(number):
            return False
        self.session.withdraw(number)
        if ahead.withdrawn(self, number):
            self.untold += 1
            self.measures.untold()
            return True
        call = self._calls.get(number)
        if call is not None:
            self.untold += 1
            self.measures.untold()
            self.fail(call, "EIO")
        return True

    # What the clock says.

    @property
    def busy(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self._calls)

    @property
    def holds(self) -> bool:
        """Whether requests are held back, and may be due before the next look at the deadlines."""
        return bool(self._held or self._grace)

    def next_due(self, now: float) -> float | None:
        """When `tick` is to be called next; None if nothing is waited for. Deadlines are looked at four times a second."""
        due = now + _TICK if self.session.busy else None
        for queue in (self._held, self._grace, self.lingering, ((self.readahead.due,),), ((self.handles.due,),)):
            first = queue[0][0] if queue else 0.0
            if first:
                due = first if due is None else min(first, due)
        return due

    def tick(self, now: float) -> None:
        """Let through what was held back, and end what took too long.

        Raises ProtocolError when the client has answered nothing for a whole deadline: the session is to be closed.
        """
        self.now = now
        self.count_ended()
        while self._held and self._held[0][0] <= now:
            call = heapq.heappop(self._held)[2]
            self.measures.let_through(call)
            if call.limited_as:
                self.no_longer_held(call)
            if self._calls.get(call.id) is not call:
                continue  # interrupted meanwhile
            if call.verdict:
                self.fail(call, call.verdict)
                continue
            if self.outage is not None and not self.outage.may_be_answered(call.request):
                self._meets_outage(call)
                continue
            self.again(call)
        while self._grace and self._grace[0][0] <= now:
            call = self._grace.popleft()[1]
            if self.is_answered(call):
                continue
            if call.limited_as:
                self.let_go(call)
                self.fail(call, "EINTR")
            elif self.outage is not None or call.waits:
                self.fail(call, "EINTR")
        lazily.look_after(self)
        contested.look_after(self)
        if 0.0 < self.readahead.due <= now:
            self.readahead.rest(self)
        clogged = self.session.clogged
        for pending in self.session.overdue(now):
            waiting = self._calls.get(pending.id)
            interrupted = waiting is not None and waiting.interrupted
            if clogged and not pending.sent and not interrupted:
                most = self.session.in_flight
                raise ProtocolError(f"none of {most} requests was answered, and each was given {self.limits.deadline:g} s", 1008)
            self.session.give_up(pending.id)
            pending.failed("EINTR" if interrupted else "ETIMEDOUT")

    # What the operator says.

    def apply(self, now: float, gate: Gate) -> None:
        """A new policy: open handles are judged again at their next request, and the kernel forgets what it may no longer
        show without asking."""
        self.now = now
        old, self.gate = self.gate, gate
        self.limiter.change(gate.tenant.limits, now)
        self.generation += 1
        self.remembers = gate.tenant.outage.mode == "cached"
        self.set_audit_level(gate.tenant.audit)
        if self.outage is not None:
            self.outage.mode = gate.tenant.outage.mode
            self._outage_mode_changed()
        if self.cache.room or gate.tenant.cache != old.tenant.cache:
            # More may be shown than before as well.
            self.set_cache()
            knowing.expire_all(self)
        for node in self.inodes:
            if gate.narrowed(old, self.inodes.path(node)):
                self.forget_what_was_shown(node)

    # Details.

    def again(self, call: Call) -> None:
        """Bring a request to its handler once more."""
        try:
            TABLE[type(call.request)].handle(self, call, call.request)
        except Failure as failure:
            self.fail(call, failure.errno)
        except Waits:
            self._meets_outage(call)

    def _meets_outage(self, call: Call) -> None:
        """Nobody can answer that now. Who waits is answered by a successor, to whom the kernel sends the request again."""
        assert self.outage is not None
        if self.outage.mode == "fail":
            self.outage.failed += 1
            self.fail(call, ERRNO)
        elif self.outage.is_unwilling(call.request):
            self.fail(call, WOULD_WAIT)

    def _outage_mode_changed(self) -> None:
        if self.outage is not None and self.outage.mode == "fail":
            for call in list(self._calls.values()):
                if not call.verdict:
                    self._meets_outage(call)

    def _without_answer(self, number: int, request: Request) -> None:
        if isinstance(request, operations.Forget):
            for node, lookups in request.nodes:
                self.inodes.forget(node, lookups)
        elif isinstance(request, operations.Interrupt):
            self.interrupt(self.now, request.unique)
        elif isinstance(request, operations.Unserved):
            self.effects.append(Answer(number, Failed(errno_number(request.errno))))
        else:
            assert isinstance(request, operations.Destroy)
            self.effects.append(Close(1000, "unmounted"))
