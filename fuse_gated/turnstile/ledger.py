"""What a successor must know of one session beside what the client holds: kept up to date in rows (tree/journal.py)."""

from collections.abc import Iterable, Iterator

from fuse_gated import operations
from fuse_gated.operations import Answer, Attributes, Filesystem
from fuse_gated.tree import journal, restoring
from fuse_gated.tree.handles import Handles
from fuse_gated.tree.inodes import Inodes, Node
from fuse_gated.tree.journal import AnyRow, Asked, Interrupted, Known, Moving, Row, Settled
from fuse_gated.turnstile.leftovers import Leftovers
from fuse_gated.turnstile.owing import Owing
from fuse_gated.turnstile.unlocking import OPERATION as UNLOCKING
from fuse_gated.turnstile.unlocking import Unlocks


class Ledger:
    """The tree, what the client said last of its root and of its filesystem, and the move that the kernel may not have finished
    (climbing.py)."""

    def __init__(self, inodes: Inodes, handles: Handles, ahead: Owing, unlocks: Unlocks) -> None:
        self.known = Known(None, None)
        self.unfinished: list[tuple[Node, int]] = []
        """Directories that the kernel may still be moving, and how deep they lay."""
        self.moved_between: tuple[operations.Node, ...] = ()
        self.owed: dict[int, Answer] = {}
        """Answers that a process before this one owed, by their requests."""
        self.asked: dict[int, bytes] = {}
        """Requests as they were read, by their numbers, that nobody sends again."""
        self.asked_bytes = 0
        self.before: set[int] = set()
        """Requests that a process before this one has read and not answered, until they are here."""
        self.interrupted: set[int] = set()
        """Those of them whose callers got a signal."""
        self.leftovers = Leftovers()
        self.ahead = ahead
        self.unlocks = unlocks
        self._inodes = inodes
        self._handles = handles
        self._locks = handles.locks
        self._told_known = self.known
        self._told_moving = True

    @property
    def changed(self) -> bool:
        """Whether `rows` has anything to tell."""
        inodes = self._inodes
        if self._handles.changed or inodes.again or inodes.changed or self._locks.changes:
            return True
        if self.ahead.changed or self.unlocks.changed or self.leftovers.changed:
            return True
        return self.known is not self._told_known or not self._told_moving

    def rows(self, request: int = 0, answer: Answer | None = None) -> tuple[Row, ...]:
        """What has changed since the last call, and the answer to the request that brought it about."""
        rows = journal.changes(self._inodes, self._handles)
        if self.known is not self._told_known:
            self._told_known = self.known
            rows.append(self.known)
        if not self._told_moving:
            rows.append(self._moving())
        for table in (self.leftovers, self.ahead, self.unlocks):
            if table.changed:
                rows += table.rows()
        kept = journal.kept(request, answer) if answer is not None else None
        return (*rows, kept) if kept is not None else tuple(rows)

    def everything(self) -> Iterator[Row]:
        """All that a successor must know."""
        yield from journal.everything(self._inodes, self._handles)
        yield self.known
        yield self._moving()
        for request, raw in self.asked.items():
            yield Asked(request, raw)
        for request in self.interrupted:
            yield Interrupted(request)
        yield from self.leftovers.everything()
        yield from self.ahead.everything()
        yield from self.unlocks.everything()
        for request, answer in self.owed.items():
            row = journal.kept(request, answer)
            assert row is not None
            yield row
        self._told_known = self.known

    def restore(self, rows: Iterable[AnyRow], most: int) -> None:
        """Go on where the rows' writer stopped. Raises ValueError for rows that contradict each other, and for more than `most`
        nodes, handles or requests."""
        restored = restoring.restore(rows, self._inodes, self._handles, most)
        self.owed = restored.answers
        self.asked = restored.asked
        self.before = set(restored.asked)
        self.interrupted = restored.interrupted & restored.asked.keys()
        self.leftovers.restore(restored.given_up)
        if not restored.owed.keys().isdisjoint(restored.given_up):
            raise ValueError("a request that is owed and given up")
        owed = restored.owed.values()
        self.ahead.restore([row for row in owed if row.operation != UNLOCKING], self._handles)
        self.unlocks.restore([row for row in owed if row.operation == UNLOCKING], self._handles)
        self.asked_bytes = sum(map(len, restored.asked.values()))
        if restored.known is not None:
            self.known = self._told_known = restored.known
        if restored.moving is not None:
            nodes = [(self._inodes.get(number), depth) for number, depth in restored.moving.unfinished]
            self.unfinished = [(node, depth) for node, depth in nodes if node is not None]
            self.moved_between = restored.moving.between

    def moving(self, unfinished: list[tuple[Node, int]], between: tuple[operations.Node, ...]) -> None:
        """The client has moved these nodes, which lay so deep, between these directories; none: the kernel is done with it."""
        self.unfinished, self.moved_between, self._told_moving = unfinished, between, False

    def came_before(self, request: int) -> bool:
        """Whether it is one of `before`, which it then is no more."""
        came = request in self.before
        self.before.discard(request)
        return came

    def is_asked(self, request: int, raw: bytes) -> Row:
        """A request that nobody sends again; the row is to be kept before anything is done about it."""
        self.asked_bytes += len(raw) - len(self.asked.get(request, b""))
        self.asked[request] = raw
        return Asked(request, raw)

    def is_interrupted(self, request: int) -> Row | None:
        """Its caller got a signal; the row is to be kept if nobody tells a successor of it."""
        if request not in self.asked or request in self.interrupted:
            return None
        self.interrupted.add(request)
        return Interrupted(request)

    def is_settled(self, request: int) -> Row | None:
        """Its answer has arrived."""
        raw = self.asked.pop(request, None)
        if raw is None:
            return None
        self.asked_bytes -= len(raw)
        self.interrupted.discard(request)
        return Settled(request)

    def saw_root(self, attributes: Attributes) -> None:
        self.known = Known(attributes, self.known.filesystem)

    def saw_filesystem(self, filesystem: Filesystem) -> None:
        self.known = Known(self.known.root, filesystem)

    def _moving(self) -> Moving:
        self._told_moving = True
        between = tuple(number for number in self.moved_between if isinstance(number, int))
        return Moving(tuple((node.id, depth) for node, depth in self.unfinished), between)
