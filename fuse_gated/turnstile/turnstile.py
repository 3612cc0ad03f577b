"""The turnstile: every request of one mounted session comes through here, and so does every answer.

The walk of one operation: the driver decodes a request and calls `request`; the operation's handler (names, attributes,
files, directories, locks) finds the path, asks the gate, tells the audit and asks the client; the client's message comes
in by `received`; the handler's second half checks it and answers. Whatever is to be done is appended to `effects`.
"""

import heapq
from collections.abc import Callable
from typing import Any, Final

import msgspec

from fuse_gated import operations
from fuse_gated.errors import ProtocolError, errno_number
from fuse_gated.gate.audit import Record
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import REFUSED, Limiter
from fuse_gated.gate.verdict import Verdict
from fuse_gated.operations import Caller, Failed, Request
from fuse_gated.tree.handles import Handle, Handles
from fuse_gated.tree.inodes import Inodes, Node
from fuse_gated.turnstile import attributes, directories, files, locks, names
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.effects import Answer, Close, Effect, InvalidateEntry, InvalidateInode, Send, Tell
from fuse_gated.wire.messages import Arguments, Ask, Cancel, OpenedFile, Release
from fuse_gated.wire.session import Pending, Session

INTERRUPT_GRACE: Final = 0.5
"""Seconds that the client has to end an interrupted request itself, before its caller gets EINTR all the same."""

_TICK: Final = 0.25
_PRUNE: Final = 1000

Handler = Callable[["Turnstile", Call, Any], None]

_HANDLERS: Final[dict[type[Request], tuple[str, str, bool, Handler]]] = {
    # request: (its name, the limiter's class or '' for exempt, whether the caller's uid is checked, its handler)
    operations.Lookup: ("lookup", "other", True, names.lookup),
    operations.Getattr: ("getattr", "other", False, attributes.getattr_),
    operations.Setattr: ("setattr", "other", False, attributes.setattr_),
    operations.Readlink: ("readlink", "other", True, names.readlink),
    operations.Symlink: ("symlink", "other", True, names.symlink),
    operations.Mknod: ("mknod", "other", True, names.mknod),
    operations.Mkdir: ("mkdir", "other", True, names.mkdir),
    operations.Unlink: ("unlink", "other", True, names.unlink),
    operations.Rmdir: ("rmdir", "other", True, names.rmdir),
    operations.Rename: ("rename", "other", True, names.rename),
    operations.Link: ("link", "other", True, names.link),
    operations.Open: ("open", "other", True, files.open_),
    operations.Create: ("create", "other", True, files.create),
    operations.Read: ("read", "read", False, files.read),
    operations.Write: ("write", "write", False, files.write),
    operations.Flush: ("flush", "", False, files.flush),
    operations.Release: ("release", "", False, files.release),
    operations.Fsync: ("fsync", "other", False, files.fsync),
    operations.Opendir: ("opendir", "other", True, directories.opendir),
    operations.Readdir: ("readdir", "other", False, directories.readdir),
    operations.Releasedir: ("releasedir", "", False, directories.releasedir),
    operations.Fsyncdir: ("fsyncdir", "other", False, directories.fsyncdir),
    operations.Statfs: ("statfs", "other", False, attributes.statfs),
    operations.Access: ("access", "other", True, attributes.access),
    operations.Getxattr: ("getxattr", "other", False, attributes.getxattr),
    operations.Setxattr: ("setxattr", "other", False, attributes.setxattr),
    operations.Listxattr: ("listxattr", "other", False, attributes.listxattr),
    operations.Removexattr: ("removexattr", "other", False, attributes.removexattr),
    operations.Lseek: ("lseek", "other", False, files.lseek),
    operations.Fallocate: ("fallocate", "write", False, files.fallocate),
    operations.CopyFileRange: ("copy_file_range", "write", False, files.copy_file_range),
    operations.Getlk: ("getlk", "other", False, locks.getlk),
    operations.Setlk: ("setlk", "other", False, locks.setlk),
}


def _ignored(_outcome: Any) -> None:
    """Nobody waits for it."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds a session. Seconds, bytes, counts."""

    deadline: float = 30.0
    max_in_flight: int = 256
    max_bytes_in_flight: int = 64 * 2**20
    inodes: int = 1_000_000


class Statistics(msgspec.Struct):
    """What `fuse-gatectl` shows of a session."""

    operations: int = 0
    denied: int = 0
    failed: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class Turnstile:
    """One mounted session, without I/O: time is an argument, what is to be done is appended to `effects`."""

    def __init__(self, gate: Gate, limiter: Limiter, limits: Limits, *, export_root: bytes) -> None:
        self.gate = gate
        self.limiter = limiter
        self.limits = limits
        self.export_root = export_root
        self.inodes = Inodes()
        self.handles = Handles(self.inodes)
        self.effects: list[Effect] = []
        self.statistics = Statistics()
        self.generation = 0
        """Of the policy: a handle that was judged by an older one is judged again."""
        self.now = 0.0
        self.silenced = False
        """No audit record can be written: nothing goes to the client, every request fails with EIO."""
        self._set_audit_level(gate.tenant.audit)
        self.passes_ownership = gate.tenant.ownership == "passthrough"
        self.session = Session(
            lambda frame: self.effects.append(Send(frame)),
            self._late,
            max_in_flight=limits.max_in_flight,
            max_bytes_in_flight=limits.max_bytes_in_flight,
        )
        self._calls: dict[int, Call] = {}
        self._delayed: list[tuple[float, int, Call]] = []
        self._pruned_at = 0

    def _set_audit_level(self, level: str) -> None:
        self.tells_everything = level == "everything"
        self.tells_opens = self.tells_everything or level == "opens"
        self.tells_changes = self.tells_opens or level == "writes"

    # What the driver says.

    def request(self, now: float, number: int, caller: Caller, request: Request) -> None:
        """A request from the kernel. Its data may lie in the driver's buffer: carry the effects out before it reads on."""
        self.now = now
        entry = _HANDLERS.get(type(request))
        if entry is None:
            self._without_answer(number, request)
            return
        name, kind, by_name, handler = entry
        call = Call(number, caller, request, name, now)
        self._calls[number] = call
        self.statistics.operations += 1
        if self.silenced and kind:
            self.fail(call, "EIO")
            return
        try:
            if by_name and caller.pid and not self.gate.caller_may_enter(caller.uid, caller.gid):
                raise self.refused(call, Verdict("EACCES", "users", "not one of the tenant's users"), self._path_of(request))
            if kind and not self.limiter.unlimited and self._is_held(call, kind):
                return
            handler(self, call, request)
        except Failure as failure:
            self.fail(call, failure.errno)

    def interrupt(self, now: float, number: int) -> None:
        """The caller of a request got a signal (FUSE_INTERRUPT)."""
        self.now = now
        call = self._calls.get(number)
        if call is None or call.interrupted:
            return
        call.interrupted = True
        if self.session.cancel(number):
            pending = self.session.get(number)
            if pending is not None:
                pending.deadline = min(pending.deadline, now + INTERRUPT_GRACE)
        else:
            self.session.give_up(number)
            self.fail(call, "EINTR")

    # What the client says.

    def received(self, now: float, message: bytes | bytearray) -> None:
        """A message from the client, after its hello.

        Raises ProtocolError for what the protocol does not allow: the session is to be closed.
        """
        self.now = now
        for notice in self.session.received(message):
            for path in notice.paths:
                self._changed_on_client(path)

    def lost(self, now: float) -> None:
        """The client is gone for good: every caller that waits is told so."""
        self.now = now
        for call in list(self._calls.values()):
            self.session.give_up(call.id)
            self.fail(call, "ENOTCONN")
        self._delayed.clear()

    def withdraw(self, number: int) -> bool:
        """A frame that was to be sent cannot be, because its record cannot be written. False for a request that no caller
        waits for: it is to be sent later."""
        call = self._calls.get(number)
        if call is None:
            return False
        self.session.withdraw(number)
        self.fail(call, "EIO")
        return True

    # What the clock says.

    def next_due(self, now: float) -> float | None:
        """When `tick` is to be called next; None if nothing is waited for. Deadlines are looked at four times a second."""
        due = now + _TICK if self.session.busy else None
        if self._delayed:
            held = self._delayed[0][0]
            return held if due is None else min(held, due)
        return due

    def tick(self, now: float) -> None:
        """Let through what was held back, and end what took too long."""
        self.now = now
        while self._delayed and self._delayed[0][0] <= now:
            call = heapq.heappop(self._delayed)[2]
            if self._calls.get(call.id) is not call:
                continue  # interrupted meanwhile
            try:
                _HANDLERS[type(call.request)][3](self, call, call.request)
            except Failure as failure:
                self.fail(call, failure.errno)
        for pending in self.session.overdue(now):
            self.session.give_up(pending.id)
            pending.failed("EINTR" if self._is_interrupted(pending.id) else "ETIMEDOUT")

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
                if node.parent is not None and not node.detached:
                    self.effects.append(InvalidateEntry(node.parent.id, node.name))
                self.effects.append(InvalidateInode(node.id))

    # What the handlers use.

    def ask(
        self,
        call: Call,
        arguments: Arguments,
        answered: Callable[[Any], None],
        failed: Callable[[str], None] | None = None,
        size: int = 0,
    ) -> None:
        """Ask the client. `answered(result)` may raise Failure; without `failed`, the client's errno is the caller's."""

        def on_answer(result: Any) -> None:
            try:
                answered(result)
            except Failure as failure:
                self.fail(call, failure.errno)

        self.session.ask(
            Pending(
                call.id,
                arguments,
                call.started,
                self.now + self.limits.deadline,
                on_answer,
                failed or (lambda errno: self.fail(call, errno)),
                size,
            )
        )

    def ask_aside(self, arguments: Arguments) -> None:
        """Ask the client for something that no caller waits for, such as RELEASE."""
        self.session.ask(
            Pending(
                self.session.own_id(),
                arguments,
                self.now,
                self.now + self.limits.deadline,
                _ignored,
                _ignored,
            )
        )

    def answer(self, call: Call, answer: operations.Answer) -> None:
        if self._calls.pop(call.id, None) is not None:
            self.effects.append(Answer(call.id, answer))

    def fail(self, call: Call, errno: str) -> None:
        """Answer with an errno; where the operation was told, its failure is told too."""
        if call.id not in self._calls:
            return
        self.statistics.failed += 1
        if call.told:
            undecided = errno in ("EINTR", "ETIMEDOUT", "ENOTCONN")
            self.tell(call, "failed", "failed", errno=errno, detail="the client may have carried it out" if undecided else "")
        self.answer(call, Failed(errno_number(errno)))

    def refused(self, call: Call, verdict: Verdict, path: bytes | None, new_path: bytes | None = None) -> Failure:
        """Tell a refusal; the Failure is to be raised."""
        assert verdict.errno is not None
        self.statistics.denied += 1
        call.path, call.new_path = path, new_path
        self.tell(call, "refused", "denied", rule=verdict.rule, errno=verdict.errno, detail=verdict.reason)
        call.told = False
        return Failure(verdict.errno)

    def limited(self, call: Call, errno: str, path: bytes | None, detail: str) -> Failure:
        """Tell that a limit of the policy was met; the Failure is to be raised."""
        self.statistics.denied += 1
        call.path = path
        self.tell(call, "limited", "denied", errno=errno, detail=detail)
        call.told = False
        return Failure(errno)

    def announce(self, call: Call, path: bytes, new_path: bytes | None = None, rule: str = "") -> None:
        """Tell an operation that was allowed, before the client is asked for it."""
        call.path, call.new_path, call.told = path, new_path, True
        self.tell(call, "operation", "allowed", rule=rule)

    def tell(
        self, call: Call, kind: str, decision: str, *, rule: str = "", errno: str = "", detail: str = "", size: int | None = None
    ) -> None:
        self.effects.append(
            Tell(
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
                    bytes=size,
                    duration_usec=int((self.now - call.started) * 1e6) if kind == "failed" else None,
                    detail=detail,
                    request=call.id,
                )
            )
        )

    def note(self, record: Record) -> None:
        """Tell something that no request stands behind."""
        self.effects.append(Tell(record))

    def node(self, number: operations.Node) -> Node | None:
        """The node of a number; None where the driver names nodes by path.

        Raises Failure(ESTALE) for a number that was never given out.
        """
        if type(number) is bytes:
            return None
        node = self.inodes.get(number)  # type: ignore[arg-type]  # an int, as it is not bytes
        if node is None:
            raise Failure("ESTALE")
        return node

    def place(self, number: operations.Node) -> bytes:
        """The path of a node that must still have its name.

        Raises Failure(ENOENT) when it has lost it.
        """
        node = self.node(number)
        if node is None:
            return number  # type: ignore[return-value]  # the path itself
        if self.inodes.is_gone(node):
            raise Failure("ENOENT")
        return self.inodes.path(node)

    def target(self, number: operations.Node, *, writable: bool = False) -> tuple[bytes | int, bytes, Node | None]:
        """(what to name to the client, the path to judge, the node). An open handle is named rather than the path: it is
        still the same file after the client's own programs moved or replaced it."""
        node = self.node(number)
        if node is None:
            return number, number, None  # type: ignore[return-value]  # the path itself
        handle = self.handles.on(node, writable=writable) if node.handles else None
        path = self.inodes.path(node)
        if handle is not None:
            return handle.remote, path, node
        if self.inodes.is_gone(node):
            raise Failure("ENOENT")
        return path, path, node

    def handle(self, number: int) -> Handle:
        """Raises Failure(EBADF) for a handle that was never given out."""
        handle = self.handles.get(number)
        if handle is None:
            raise Failure("EBADF")
        return handle

    def contents_changed(self, node: Node | None) -> None:
        """The other names of a file with several hard links must not go on showing what they cached."""
        if node is not None:
            for sibling in self.inodes.siblings(node):
                self.effects.append(InvalidateInode(sibling))

    def prune(self) -> None:
        """Too many nodes: ask the kernel to forget names, the longest known first."""
        if len(self.inodes) <= self.limits.inodes or self.inodes.newest - self._pruned_at < _PRUNE:
            return
        self._pruned_at = self.inodes.newest
        count = 0
        for node in self.inodes:
            if node.parent is not None and not node.children and not node.handles and not node.detached:
                self.effects.append(InvalidateEntry(node.parent.id, node.name))
                count += 1
                if count == 2 * _PRUNE:
                    return

    # Details.

    def _without_answer(self, number: int, request: Request) -> None:
        if isinstance(request, operations.Forget):
            for node, lookups in request.nodes:
                self.inodes.forget(node, lookups)
        elif isinstance(request, operations.Interrupt):
            self.interrupt(self.now, request.unique)
        elif isinstance(request, operations.Unserved):
            self.effects.append(Answer(number, Failed(errno_number(request.errno))))
        elif isinstance(request, operations.Destroy):
            self.effects.append(Close(1000, "unmounted"))

    def _is_held(self, call: Call, kind: str) -> bool:
        request = call.request
        size = 0
        if isinstance(request, operations.Write):
            size = len(request.data)
        elif isinstance(request, operations.Read):
            size = request.size
        wait = self.limiter.take(self.now, kind, size)
        if wait == REFUSED:
            raise self.limited(call, "EAGAIN", self._path_of(request), f"more {kind} operations or bytes than the policy allows")
        if wait <= 0.0:
            return False
        if isinstance(request, operations.Write):
            call.request = msgspec.structs.replace(request, data=bytes(request.data))
        heapq.heappush(self._delayed, (self.now + wait, call.id, call))
        return True

    def _path_of(self, request: Request) -> bytes | None:
        for field in ("parent", "node"):
            number = getattr(request, field, None)
            if number is None:
                continue
            node = self.inodes.get(number) if isinstance(number, int) else None
            path = self.inodes.path(node) if node is not None else number if isinstance(number, bytes) else b""
            return names.join(path, request.name) if field == "parent" else path  # type: ignore[attr-defined]
        return None

    def _is_interrupted(self, number: int) -> bool:
        call = self._calls.get(number)
        return call is not None and call.interrupted

    def _late(self, operation: str, result: Any) -> None:
        if operation in ("open", "create", "opendir"):
            opened: OpenedFile = result
            self.ask_aside(Release(opened.handle))

    def _changed_on_client(self, path: bytes) -> None:
        node: Node | None = self.inodes.root
        for name in names.components(path):
            node = node.children.get(name) if node is not None else None
        if node is not None:
            if node.parent is not None:
                self.effects.append(InvalidateEntry(node.parent.id, node.name))
            self.effects.append(InvalidateInode(node.id))


__all__ = ["Ask", "Cancel", "Limits", "ProtocolError", "Statistics", "Turnstile"]
