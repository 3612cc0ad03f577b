"""What an operation's handler works with: the tree, the gate, the client to ask, the caller to answer, the audit to tell.

Whatever is to be done is appended to `effects`, in its order. The turnstile (turnstile.py) is this desk with its doors: what
comes in from the driver, the client, the clock and the operator.
"""

import heapq
from collections.abc import Callable
from typing import Any, Final

from fuse_gated import operations
from fuse_gated.errors import errno_number
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import Limiter
from fuse_gated.operations import Attributes, Failed
from fuse_gated.paths import join
from fuse_gated.tree.by_path import ByPath, is_hidden_name
from fuse_gated.tree.handles import Handle, Handles, Releasing
from fuse_gated.tree.inodes import Inodes, Node
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.effects import Answer, InvalidateEntry, InvalidateInode, Send
from fuse_gated.turnstile.ledger import Ledger
from fuse_gated.turnstile.limits import Limits
from fuse_gated.turnstile.outage import Outage
from fuse_gated.turnstile.telling import Telling
from fuse_gated.wire import messages
from fuse_gated.wire.messages import Arguments
from fuse_gated.wire.session import Pending, Session

MAX_PATH: Final = 2**20
"""Bytes in a path: two of them fit a message. No file system stops directories from being nested deeper."""

_OPENING: Final = ("open", "create", "opendir")
_UNDECIDED: Final = frozenset({"EINTR", "ETIMEDOUT", "ENOTCONN"})
_UNLOCK: Final = 2
_PRUNE: Final = 1000


class Desk(Telling):
    """The state of one mounted session, and what handlers do with it."""

    def __init__(self, gate: Gate, limiter: Limiter, limits: Limits, *, export_root: bytes) -> None:
        super().__init__(limits, gate.tenant.audit)
        self.gate = gate
        self.limiter = limiter
        self.export_root = export_root
        self.inodes = Inodes()
        self.handles = Handles(self.inodes)
        self.by_path = ByPath(self.handles)
        """What takes the nodes' part where the driver names them by path."""
        self.generation = 0
        """Of the policy: a handle that was judged by an older one is judged again."""
        self.passes_ownership = gate.tenant.ownership == "passthrough"
        self.session = Session(
            lambda frame: self.effects.append(Send(frame)),
            self._late,
            max_in_flight=limits.max_in_flight,
            max_bytes_in_flight=limits.max_bytes_in_flight,
        )
        self.moves: list[tuple[Call, Node, int]] = []
        """Directories that are being moved, and how deep they will lie (climbing.py)."""
        self.pages: dict[int, Handle] = {}
        """The open directories that keep a part of their listing, by their handles, the oldest first (directories.py)."""
        self._calls: dict[int, Call] = {}
        self._held: list[tuple[float, int, Call]] = []
        self._pruned_at = 0
        self.remembers = gate.tenant.outage.mode == "cached"
        """Whether nodes keep the attributes that the client told last."""
        self.outage: Outage | None = None
        """While the client is away."""
        self.sent_before: dict[int, Pending] = {}
        """What the client had been asked when it was lost."""
        self.ledger = Ledger(self.inodes, self.handles)
        """What a successor must know."""

    def saw(self, node: Node | None, attributes: Attributes) -> None:
        """What the client says of a file, to be remembered for when it is away."""
        if node is self.inodes.root:
            self.ledger.saw_root(attributes)
        elif node is not None and self.remembers:
            node.attributes = attributes

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

        Raises Failure(EINTR) where the caller was interrupted, and what it still was given is over. While the client is away,
        raises Waits for what cannot be answered without it.
        """
        if self.outage is not None:
            answered(self.outage.answer(arguments))
            return
        over = call.interrupted and call.deadline is not None and call.deadline <= self.now
        if over or (self.ledger.leftovers and self.session.known(call.id)):  # Or a process before this one gave it up.
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

    def ask_aside(self, arguments: Arguments, ended: Callable[[Any], None] | None = None) -> None:
        """Ask the client for something that no caller waits for, such as RELEASE. Nothing happens while it is away. `ended` is
        called when it has answered, whatever it says."""
        if self.outage is not None:
            return
        deadline = self.now + self.limits.deadline
        self.session.ask(Pending(self.session.own_id(), arguments, deadline, ended or ignored, ended or ignored))

    def give_back(self, handle: Handle, owners: tuple[int, ...] = ()) -> None:
        """The client is to close what is closed here, and to free the locks of these owners: now, or when it is there again."""
        self.handles.releasing[handle.id] = Releasing(handle.remote, handle.directory, owners)
        self._give_back(handle.id)

    def give_back_again(self) -> None:
        """What a process before this one has told the client to close. To have been closed before is EBADF, and harmless."""
        for number in list(self.handles.releasing):
            self._give_back(number)

    def _give_back(self, number: int) -> None:
        remote, directory, owners = self.handles.releasing[number]
        for owner in owners:
            self.ask_aside(messages.Flush(remote, owner))
        arguments = messages.Releasedir(remote) if directory else messages.Release(remote)
        self.ask_aside(arguments, lambda _outcome: self.handles.released(number))

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
        if self._calls.pop(call.id, None) is None:
            return
        if self.ledger.changed:
            self.effects.append(Answer(call.id, answer, self.ledger.rows(call.id, answer)))
        else:
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
        self.ledger.leftovers.add(self.session.known(call.id) or self.sent_before.get(call.id))
        self.answer(call, Failed(errno_number(errno)))

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

    def path_of(self, request: operations.Request) -> bytes | None:
        """What a request is about, for the record of one that was refused unseen."""
        parent, number = getattr(request, "parent", None), getattr(request, "node", None)
        at = parent if parent is not None else number
        node = self.inodes.get(at) if isinstance(at, int) else None
        path = at if isinstance(at, bytes) else self.inodes.path(node) if node is not None else None
        handle = self.handles.get(getattr(request, "handle", None) or 0)
        if isinstance(at, bytes) and handle is not None:
            path = self.handles.path(handle)  # A driver without nodes names what is open by its handle alone.
        return path if path is None or parent is None else join(path, getattr(request, "name", b""))

    def forget_what_was_shown(self, node: Node) -> None:
        """The kernel is to look it up anew."""
        if node.parent is not None and not node.lost:
            self.effects.append(InvalidateEntry(node.parent.id, node.name))
        self.effects.append(InvalidateInode(node.id))

    def forget_all(self) -> None:
        """The policy may have changed while nobody served the mount: the kernel is to ask again for everything."""
        for node in self.inodes:
            self.forget_what_was_shown(node)

    def prune(self) -> None:
        """Too many nodes: ask the kernel to forget names."""
        if len(self.inodes) <= self.limits.inodes or self.inodes.newest - self._pruned_at < _PRUNE:
            return
        self._pruned_at = self.inodes.newest
        for parent, name in self.inodes.oldest(2 * _PRUNE):
            self.effects.append(InvalidateEntry(parent, name))


def ignored(_outcome: Any) -> None:
    """Nobody waits for it."""
