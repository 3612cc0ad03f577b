"""The turnstile: every request of one mounted session comes through here, and so does every answer.

The walk of one operation: the driver decodes a request and calls `request`; the operation's handler (names, attributes,
files, directories, locks) finds the path, asks the gate, tells the audit and asks the client; the client's message comes
in by `received`; the handler's second half checks it and answers. Whatever is to be done is appended to `effects`.
"""

import heapq
from collections import deque
from typing import Final

import msgspec

from fuse_gated import operations
from fuse_gated.errors import ProtocolError, errno_number
from fuse_gated.gate import sandbox
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import REFUSED, Limiter
from fuse_gated.gate.verdict import Verdict
from fuse_gated.operations import Caller, Failed, Request
from fuse_gated.paths import components, join
from fuse_gated.tree.inodes import Node
from fuse_gated.turnstile import climbing
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.desk import Desk
from fuse_gated.turnstile.effects import Answer, Close, InvalidateEntry, InvalidateInode
from fuse_gated.turnstile.files import copied
from fuse_gated.turnstile.limits import Limits, Statistics
from fuse_gated.turnstile.table import TABLE

__all__ = ["INTERRUPT_GRACE", "MAX_NOTICES", "Limits", "Statistics", "Turnstile"]

INTERRUPT_GRACE: Final = 0.5
"""Seconds after a signal in which an answer still reaches the caller; then it gets EINTR. On a local filesystem only a wait
for a lock is interrupted by signals that a program catches (signal(7)), and few programs expect EINTR of stat(2): a timer or
a child's end must not make a call fail that would have been answered."""
MAX_NOTICES: Final = 4096
"""Changed paths in one message."""

_TICK: Final = 0.25
_NOT_A_USER: Final = Verdict("EACCES", "users", "not one of the tenant's users")


class Turnstile(Desk):
    """One mounted session, without I/O: time is an argument, what is to be done is appended to `effects`."""

    def __init__(self, gate: Gate, limiter: Limiter, limits: Limits, *, export_root: bytes) -> None:
        super().__init__(gate, limiter, limits, export_root=export_root)
        self.silenced = False
        """No audit record can be written: nothing goes to the client, every request fails with EIO."""
        self.untold = 0
        """Requests that failed because of that."""
        self._lost = False
        self._held_bytes = 0
        self._grace: deque[tuple[float, Call]] = deque()

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
        if self.unfinished:
            climbing.look_for_end(self, request)
        call = Call(number, caller, request, row.name, now)
        self._calls[number] = call
        self.statistics.operations += 1
        if self._lost:
            self.fail(call, "ENOTCONN")
            return
        if self.silenced and row.kind:
            self.untold += 1
            self.fail(call, "EIO")
            return
        try:
            if row.by_name and caller.pid and not self.gate.caller_may_enter(caller.uid):
                raise self.refused(call, _NOT_A_USER, self._path_of(request))
            if row.kind and not self.limiter.unlimited and self._is_held(call, row.kind):
                return
            row.handle(self, call, request)
        except Failure as failure:
            self.fail(call, failure.errno)

    def interrupt(self, now: float, number: int) -> None:
        """The caller of a request got a signal (FUSE_INTERRUPT)."""
        self.now = now
        call = self._calls.get(number)
        if call is None or call.interrupted or call.verdict:
            # A refusal's turn comes soon; who could end the waiting could have any number of them told.
            return
        call.interrupted = True
        pending = self.session.get(number)
        waits_for_lock = isinstance(call.request, operations.Setlk) and call.request.wait
        if waits_for_lock and (pending is None or not self.session.cancel(number)):
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

    def received(self, now: float, message: bytes | bytearray) -> None:
        """A message from the client, after its hello.

        Raises ProtocolError for what the protocol does not allow: the session is to be closed.
        """
        self.now = now
        notices = self.session.received(message)
        if not notices:
            return
        paths = [path for notice in notices for path in notice.paths]
        if len(paths) > MAX_NOTICES:
            raise ProtocolError(f"{len(paths)} changed paths in one message, {MAX_NOTICES} are allowed", 1008)
        for path in paths:
            sandbox.check_path(path)
            self._changed_on_client(path)

    def lost(self, now: float) -> None:
        """The client is gone for good: every caller that waits is told so, and everyone who comes until the mount is gone."""
        self.now = now
        self._lost = True
        self.session.abandon()
        self._held.clear()
        for call in list(self._calls.values()):
            self.fail(call, "ENOTCONN")

    def withdraw(self, number: int) -> bool:
        """A request that was to be sent cannot be, because its record cannot be written: its caller fails. False for one that
        nobody ever waited for, such as RELEASE: it is to be sent later."""
        if self.session.is_own(number):
            return False
        self.session.withdraw(number)
        call = self._calls.get(number)
        if call is not None:
            self.untold += 1
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
        for first in (self._held and self._held[0][0], self._grace and self._grace[0][0]):
            if first:
                due = first if due is None else min(first, due)
        return due

    def tick(self, now: float) -> None:
        """Let through what was held back, and end what took too long.

        Raises ProtocolError when the client has answered nothing for a whole deadline: the session is to be closed.
        """
        self.now = now
        while self._held and self._held[0][0] <= now:
            call = heapq.heappop(self._held)[2]
            if call.limited_as:
                self._no_longer_held(call)
            if self._calls.get(call.id) is not call:
                continue  # interrupted meanwhile
            if call.verdict:
                self.fail(call, call.verdict)
                continue
            try:
                TABLE[type(call.request)].handle(self, call, call.request)
            except Failure as failure:
                self.fail(call, failure.errno)
        while self._grace and self._grace[0][0] <= now:
            call = self._grace.popleft()[1]
            if call.limited_as and not self.is_answered(call):
                self._let_go(call)
                self.fail(call, "EINTR")
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
        self._set_audit_level(gate.tenant.audit)
        for node in self.inodes:
            if gate.narrowed(old, self.inodes.path(node)):
                self._forget_what_was_shown(node)

    # Details.

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

    def _is_held(self, call: Call, kind: str) -> bool:
        request = call.request
        size = _size(request)
        kept = size if isinstance(request, operations.Write) else 0
        full = self._held_bytes + kept > self.limits.max_bytes_in_flight
        wait = REFUSED if full else self.limiter.take(self.now, kind, size, longest=self.limits.deadline)
        if wait == REFUSED:
            raise self.limited(call, "EAGAIN", self._path_of(request), f"more {kind} operations or bytes than the policy allows")
        if wait <= 0.0:
            return False
        if isinstance(request, operations.Write):
            call.request = msgspec.structs.replace(request, data=bytes(request.data))
        call.limited_as = kind
        self._held_bytes += kept
        self.hold(call, wait)
        return True

    def _let_go(self, call: Call) -> None:
        """Nobody waits any more for a request that the limiter holds: its turn goes to the others, its data is dropped."""
        self.limiter.give_back(call.limited_as, _size(call.request))
        self._no_longer_held(call)
        call.request = operations.Destroy()

    def _no_longer_held(self, call: Call) -> None:
        call.limited_as = ""
        if isinstance(call.request, operations.Write):
            self._held_bytes -= len(call.request.data)

    def _path_of(self, request: Request) -> bytes | None:
        """What a request is about, for the record of one that was refused unseen."""
        parent, number = getattr(request, "parent", None), getattr(request, "node", None)
        at = parent if parent is not None else number
        node = self.inodes.get(at) if isinstance(at, int) else None
        path = at if isinstance(at, bytes) else self.inodes.path(node) if node is not None else None
        handle = self.handles.get(getattr(request, "handle", None) or 0)
        if isinstance(at, bytes) and handle is not None:
            path = self.handles.path(handle)  # A driver without nodes names what is open by its handle alone.
        return path if path is None or parent is None else join(path, getattr(request, "name", b""))

    def _changed_on_client(self, path: bytes) -> None:
        node: Node | None = self.inodes.root
        for name in components(path):
            node = node.children.get(name) if node is not None else None
        if node is not None:
            self._forget_what_was_shown(node)

    def _forget_what_was_shown(self, node: Node) -> None:
        if node.parent is not None and not node.lost:
            self.effects.append(InvalidateEntry(node.parent.id, node.name))
        self.effects.append(InvalidateInode(node.id))


def _size(request: Request) -> int:
    """The bytes that a request counts for with the limiter."""
    if isinstance(request, operations.Write):
        return len(request.data)
    if isinstance(request, operations.Read):
        return request.size
    return copied(request) if isinstance(request, operations.CopyFileRange) else 0
