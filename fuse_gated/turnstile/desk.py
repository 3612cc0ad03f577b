"""What an operation's handler works with: the tree, the gate, the client to ask, the caller to answer, the audit to tell.

Whatever is to be done is appended to `effects`, in its order. The turnstile (turnstile.py) is this desk with its doors: what
comes in from the driver, the client, the clock and the operator.
"""

import heapq
from collections.abc import Callable
from typing import Any, Final

from fuse_gated import operations
from fuse_gated.errors import errno_number
from fuse_gated.gate.audit import Record
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import Bucket, Limiter
from fuse_gated.gate.verdict import Verdict
from fuse_gated.operations import Failed
from fuse_gated.tree.by_path import ByPath, is_hidden_name
from fuse_gated.tree.handles import Handle, Handles
from fuse_gated.tree.inodes import Inodes, Node
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.effects import Answer, Effect, InvalidateEntry, InvalidateInode, Send, Tell
from fuse_gated.turnstile.limits import Limits, Statistics
from fuse_gated.wire import messages
from fuse_gated.wire.messages import Arguments
from fuse_gated.wire.session import Pending, Session

MAX_PATH: Final = 2**20
"""Bytes in a path: two of them fit a message. No file system stops directories from being nested deeper."""

_OPENING: Final = ("open", "create", "opendir")
_UNDECIDED: Final = frozenset({"EINTR", "ETIMEDOUT", "ENOTCONN"})
_UNLOCK: Final = 2
_PRUNE: Final = 1000


class Desk:
    """The state of one mounted session, and what handlers do with it."""

    def __init__(self, gate: Gate, limiter: Limiter, limits: Limits, *, export_root: bytes) -> None:
        self.gate = gate
        self.limiter = limiter
        self.limits = limits
        self.export_root = export_root
        self.inodes = Inodes()
        self.handles = Handles(self.inodes)
        self.by_path = ByPath(self.handles)
        """What takes the nodes' part where the driver names them by path."""
        self.effects: list[Effect] = []
        self.statistics = Statistics()
        self.generation = 0
        """Of the policy: a handle that was judged by an older one is judged again."""
        self.now = 0.0
        self.passes_ownership = gate.tenant.ownership == "passthrough"
        self.session = Session(
            lambda frame: self.effects.append(Send(frame)),
            self._late,
            max_in_flight=limits.max_in_flight,
            max_bytes_in_flight=limits.max_bytes_in_flight,
        )
        self.moves: list[tuple[Call, Node, int]] = []
        """Directories that are being moved, and how deep they will lie (climbing.py)."""
        self.unfinished: list[tuple[Node, int]] = []
        """Those that the kernel may still be moving, and how deep they lay."""
        self.moved_between: tuple[operations.Node, ...] = ()
        self.pages: dict[int, Handle] = {}
        """The open directories that keep a part of their listing, by their handles, the oldest first (directories.py)."""
        self._calls: dict[int, Call] = {}
        self._held: list[tuple[float, int, Call]] = []
        self._pruned_at = 0
        self._refusals = Bucket(limits.refusals, 0.0)
        self._set_audit_level(gate.tenant.audit)

    def _set_audit_level(self, level: str) -> None:
        self.tells_everything = level == "everything"
        self.tells_opens = self.tells_everything or level == "opens"
        self.tells_changes = self.tells_opens or level == "writes"

    # The client.

    def ask(
        self,
        call: Call,
        arguments: Arguments,
        answered: Callable[[Any], None],
        failed: Callable[[str], None] | None = None,
        size: int = 0,
    ) -> None:
        """Ask the client. `answered(result)` and `failed(errno)` may raise Failure; without `failed`, the client's errno is
        the caller's.

        Raises Failure(EINTR) where the caller was interrupted, and what it still was given is over.
        """
        if call.interrupted and call.deadline is not None and call.deadline <= self.now:
            raise Failure("EINTR")
        if call.deadline is None:
            call.deadline = self.now + self.limits.deadline

        def on_answer(result: Any) -> None:
            try:
                answered(result)
            except Failure as failure:
                self.fail(call, failure.errno)

        def on_failure(errno: str) -> None:
            try:
                if failed is not None:
                    failed(errno)
                else:
                    self.fail(call, errno)
            except Failure as failure:
                self.fail(call, failure.errno)

        self.session.ask(Pending(call.id, arguments, call.deadline, on_answer, on_failure, size))

    def ask_aside(self, arguments: Arguments) -> None:
        """Ask the client for something that no caller waits for, such as RELEASE."""
        deadline = self.now + self.limits.deadline
        self.session.ask(Pending(self.session.own_id(), arguments, deadline, _ignored, _ignored))

    def hold(self, call: Call, seconds: float) -> None:
        """Let the request come to its handler again after a while."""
        heapq.heappush(self._held, (self.now + seconds, call.id, call))

    def _late(self, pending: Pending, result: Any) -> None:
        """What succeeded although its caller had gone is given back."""
        arguments = pending.arguments
        if isinstance(arguments, messages.Opendir):
            self.ask_aside(messages.Releasedir(result.handle))
        elif pending.operation in _OPENING:
            self.ask_aside(messages.Release(result.handle))
        elif isinstance(arguments, messages.Setlk) and arguments.type != _UNLOCK:
            self.ask_aside(
                messages.Setlk(arguments.handle, arguments.owner, arguments.start, arguments.end, _UNLOCK, arguments.flock)
            )

    # The caller.

    def is_answered(self, call: Call) -> bool:
        return self._calls.get(call.id) is not call

    def answer(self, call: Call, answer: operations.Answer) -> None:
        if self._calls.pop(call.id, None) is not None:
            self.effects.append(Answer(call.id, answer))

    def fail(self, call: Call, errno: str) -> None:
        """Answer with an errno; where the operation was told, its failure is told too. A refusal is answered when its turn
        comes: so there are never more records of refusals than their rate allows, and none is left out."""
        if call.id not in self._calls:
            return
        if call.pause:
            call.verdict = errno
            self.hold(call, call.pause)
            call.pause = 0.0
            return
        if errno == "ENOSYS":
            # The kernel would never ask again, for the mount's life, and allow an OPEN or an ACCESS by itself.
            errno = "EOPNOTSUPP"
        self.statistics.failed += 1
        if call.told:
            detail = "the client may have carried it out" if errno in _UNDECIDED else ""
            self.tell(call, "failed", "failed", errno=errno, detail=detail)
        self.answer(call, Failed(errno_number(errno)))

    # The audit.

    def refused(self, call: Call, verdict: Verdict, path: bytes | None, new_path: bytes | None = None) -> Failure:
        """Tell a refusal; the Failure is to be raised."""
        assert verdict.errno is not None
        self.statistics.denied += 1
        call.path, call.new_path = path, new_path
        self.tell(call, "refused", "denied", rule=verdict.rule, errno=verdict.errno, detail=verdict.reason)
        call.told = False
        call.pause = self._refusals.reserve(self.now, self.limits.deadline)
        return Failure(verdict.errno)

    def limited(self, call: Call, errno: str, path: bytes | None, detail: str) -> Failure:
        """Tell that a limit of the policy was met; the Failure is to be raised."""
        self.statistics.denied += 1
        call.path = path
        self.tell(call, "limited", "denied", errno=errno, detail=detail)
        call.pause = self._refusals.reserve(self.now, self.limits.deadline)
        return Failure(errno)

    def announce(self, call: Call, path: bytes, new_path: bytes | None = None, rule: str = "") -> None:
        """Tell an operation that was allowed, before the client is asked for it. Said again it tells nothing: a request that
        comes to its handler a second time is still one."""
        if not call.told:
            call.path, call.new_path, call.told = path, new_path, True
            self.tell(call, "operation", "allowed", rule=rule)

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

    def note(self, record: Record) -> None:
        """Tell something that no request stands behind."""
        self.effects.append(Tell(record))

    # The tree.

    def node(self, number: operations.Node) -> Node | None:
        """The node of a number; None where the driver names nodes by path.

        Raises Failure(ESTALE) for a number that was never given out.
        """
        if isinstance(number, bytes):
            return None
        node = self.inodes.get(number)
        if node is None:
            raise Failure("ESTALE")
        return node

    def place(self, number: operations.Node) -> bytes:
        """The path of a node that must still have its name.

        Raises Failure when it has lost it (ENOENT, or ESTALE where the kernel is to look again), and Failure(ENAMETOOLONG)
        for a path longer than MAX_PATH.
        """
        if isinstance(number, bytes):
            return number
        node = self.inodes.get(number)
        if node is None:
            raise Failure("ESTALE")
        path, gone = self.inodes.where(node)
        if gone:
            raise Failure(gone)
        if len(path) > MAX_PATH:
            raise Failure("ENAMETOOLONG")
        return path

    def target(self, number: operations.Node, *, writable: bool = False) -> tuple[bytes | int, bytes, Node | None]:
        """(what to name to the client, the path to judge, the node). An open handle is named rather than the path: it is
        still the same file after the client's own programs moved or replaced it.

        Raises Failure as `place` does.
        """
        if isinstance(number, bytes):
            nameless = self.by_path.open_on(number, writable=writable)
            if nameless is not None:
                return nameless.remote, nameless.path, None
            if is_hidden_name(number.rpartition(b"/")[2]):
                raise Failure("ENOENT")
            # The root alone is a node all the same: its device is what other files' are compared with.
            return number, number, None if number else self.inodes.root
        node = self.inodes.get(number)
        if node is None:
            raise Failure("ESTALE")
        handle = self.handles.on(node, writable=writable) if node.handles else None
        path, gone = self.inodes.where(node)
        if len(path) > MAX_PATH:
            raise Failure("ENAMETOOLONG")
        if handle is not None:
            return handle.remote, path, node
        if gone:
            raise Failure(gone)
        return path, path, node

    def handle(self, number: int) -> Handle:
        """Raises Failure(EBADF) for a handle that was never given out."""
        handle = self.handles.get(number)
        if handle is None:
            raise Failure("EBADF")
        return handle

    def take_place(self, call: Call, path: bytes) -> None:
        """Raises Failure(EMFILE) where the policy allows no more open files and directories. Those that the client is about to
        open count as well."""
        most = self.gate.tenant.limits.open_files
        if most is not None and len(self.handles) + self.session.count(*_OPENING) >= most:
            raise self.limited(call, "EMFILE", path, f"{most} files are open, as many as the policy allows")

    def siblings(self, node: Node | None) -> list[int]:
        """The nodes of a file's other names."""
        return self.inodes.siblings(node) if node is not None else []

    def answer_change(self, call: Call, answer: operations.Answer, siblings: list[int], *, contents: bool = False) -> None:
        """Answer an operation that changed a file. Its other names must not go on showing what the kernel has remembered:
        their attributes go before the answer; with `contents` their pages go too, which is awaited for a moment only, because
        who holds a page may wait for another answer of ours. Were it not awaited, a GETATTR of the other name that crosses it
        would be disregarded by the kernel, and a read(2) then end at the old size."""
        for sibling in siblings:
            self.effects.append(InvalidateInode(sibling, pages=False))
        if contents:
            for sibling in siblings:
                self.effects.append(InvalidateInode(sibling, awaited=True))
        self.answer(call, answer)

    def prune(self) -> None:
        """Too many nodes: ask the kernel to forget names."""
        if len(self.inodes) <= self.limits.inodes or self.inodes.newest - self._pruned_at < _PRUNE:
            return
        self._pruned_at = self.inodes.newest
        for parent, name in self.inodes.oldest(2 * _PRUNE):
            self.effects.append(InvalidateEntry(parent, name))


def _ignored(_outcome: Any) -> None:
    """Nobody waits for it."""
