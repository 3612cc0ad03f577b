"""The tree as rows, and back: what whoever serves the mount next must know of it.

A row says what one node, open handle or locked file is like from now on, or that it is gone; the last row of each counts. Rows
are written before the answer that depends on them (edge/state.py), so a successor knows every node and handle that the kernel
knows.
"""

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec

from fuse_gated.operations import ROOT, Answer, Created, Done, Filesystem, Opened
from fuse_gated.operations import Attributes as Shown
from fuse_gated.tree.handles import Handle, Handles
from fuse_gated.tree.inodes import Identity, Inodes, Node
from fuse_gated.tree.posix_locks import Held, Place

_BOUNDED: Final = msgspec.Meta(max_length=2**20)
"""What no row of ours reaches: whoever left a row may have been anyone."""


class Row(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The base of all rows."""


class NodeRow(Row, frozen=True, gc=False, tag=1):
    """A node. `path` is set for one that has lost its name: where it was, should its parent be gone too."""

    id: int
    parent: int
    name: bytes
    identity: Identity | None
    lookups: int
    lost: str
    climbs: int
    linked: bool
    path: bytes = b""


class LookedUp(Row, frozen=True, gc=False, tag=12):
    """The kernel was told of these nodes once more each."""

    ids: Annotated[tuple[int, ...], _BOUNDED]


class NodeGone(Row, frozen=True, gc=False, tag=2):
    id: int


class HandleRow(Row, frozen=True, gc=False, tag=3):
    """An open file or directory. What was read and written through it is as of when the row was made. `request`, if not 0, is the
    kernel's that opened it: if the answer did not reach the kernel, it is to have this handle when it comes again."""

    id: int
    node: int | None
    path: bytes
    remote: int
    flags: int
    directory: bool
    opened_at: float
    uid: int
    pid: int
    reads: int
    bytes_read: int
    writes: int
    bytes_written: int
    failed: str = ""
    request: int = 0


class HandleGone(Row, frozen=True, gc=False, tag=4):
    id: int


class HandleReleasing(Row, frozen=True, gc=False, tag=13):
    """A handle that is closed here, and may still be open at the client. `node`, if not 0, is the one that it is held for."""

    id: int
    remote: int
    directory: bool
    owners: Annotated[tuple[int, ...], _BOUNDED]
    node: int = 0


class Locked(Row, frozen=True, gc=False, tag=5):
    """All POSIX locks on one file; none: they are gone."""

    place: Place
    held: Annotated[tuple[tuple[int, int, int, int, int, int], ...], _BOUNDED]


class Numbers(Row, frozen=True, gc=False, tag=6):
    """The highest numbers that were given out, for nodes and for handles: they are never used again."""

    node: int
    handle: int


class Answered(Row, frozen=True, gc=False, tag=7):
    """The answer to the kernel's request `request`, which the rows before this one belong to. If it did not reach the kernel, it
    is given when the request comes again; nothing is done twice."""

    request: int
    answer: "KeptAnswer"


class KeptAnswer(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One of `operations`' answers, by the name of its class."""

    kind: str
    fields: msgspec.Raw


class Known(Row, frozen=True, gc=False, tag=8):
    """What the client said last of the export's root and of its filesystem."""

    root: Shown | None
    filesystem: Filesystem | None


class Moving(Row, frozen=True, gc=False, tag=9):
    """Directories that the kernel may still be moving: (node, depth), and between which directories (turnstile/climbing.py)."""

    unfinished: Annotated[tuple[tuple[int, int], ...], _BOUNDED]
    between: Annotated[tuple[int, ...], _BOUNDED]


class Asked(Row, frozen=True, gc=False, tag=10):
    """A request as the driver read it, where nobody sends it again."""

    request: int
    raw: bytes


class Interrupted(Row, frozen=True, gc=False, tag=15):
    """The caller of a request that nobody sends again got a signal, which the kernel tells once."""

    request: int


class GivenUp(Row, frozen=True, gc=False, tag=14):
    """A request that may have opened a file or taken a lock for a caller who has gone (turnstile/leftovers.py); without an
    operation: no more."""

    request: int
    operation: str = ""
    arguments: bytes = b""


class Settled(Row, frozen=True, gc=False, tag=11):
    """Its answer is with who asked."""

    request: int


class Owed(Row, frozen=True, gc=False, tag=16):
    """A change whose caller has been answered, and the client has not (turnstile/ahead.py): what it asks of the client
    (wire/messages.py), without its data, which lies at `at`; of which file, and where that was."""

    request: int
    handle: int
    file: Identity
    path: bytes
    operation: str
    arguments: bytes
    at: int
    size: int


class SettledOwed(Row, frozen=True, gc=False, tag=17):
    """The client has carried it out, or an error has been noted."""

    request: int


AnyRow = (
    NodeRow | LookedUp | NodeGone | HandleRow | HandleReleasing | HandleGone | Locked | Numbers | Answered | Known | Moving
    | Asked | Interrupted | GivenUp | Settled | Owed | SettledOwed
)  # fmt: skip

KINDS: Final[dict[str, type[Answer]]] = {
    kind.__name__: kind for kind in (Created, Done, Opened)
}
_NAMES: Final[dict[type[Answer], str]] = {kind: name for name, kind in KINDS.items()}
_ENCODER: Final = msgspec.msgpack.Encoder()


def kept(request: int, answer: Answer) -> Answered | None:
    """The row of an answer; None for one that may be worked out again: at most a lookup is counted once more, which is safe."""
    name = _NAMES.get(type(answer))
    if name is None:
        return None
    return Answered(request, KeptAnswer(name, msgspec.Raw(_ENCODER.encode(answer))))


def node_row(inodes: Inodes, node: Node) -> NodeRow:
    parent = node.parent.id if node.parent is not None else ROOT
    return NodeRow(
        node.id, parent, node.name, node.identity, node.lookups, node.lost, node.climbs, inodes.is_linked(node),
        inodes.path(node) if node.lost else b"",
    )  # fmt: skip


def handle_row(handle: Handle) -> HandleRow:
    return HandleRow(
        handle.id, handle.node.id if handle.node is not None else None, handle.path, handle.remote, handle.flags,
        handle.directory, handle.opened_at, handle.uid, handle.pid, handle.reads, handle.bytes_read, handle.writes,
        handle.bytes_written, handle.failed, handle.request,
    )  # fmt: skip


def changes(inodes: Inodes, handles: Handles) -> list[Row]:
    """What has changed since the last call."""
    rows: list[Row] = []
    if inodes.again:
        rows.append(LookedUp(tuple(inodes.again)))
        inodes.again.clear()
    if inodes.changed:
        for number in inodes.changed:
            node = inodes.get(number)
            rows.append(NodeGone(number) if node is None else node_row(inodes, node))
        inodes.changed.clear()
    if handles.changed:
        for number in handles.changed:
            handle = handles.get(number)
            rows.append(_handle_gone(number, handles) if handle is None else handle_row(handle))
        handles.changed.clear()
    if handles.locks.changes:
        rows += [_locked(place, handles.locks.on(place)) for place in handles.locks.changes]
        handles.locks.changes.clear()
    return rows


def everything(inodes: Inodes, handles: Handles) -> Iterator[Row]:
    """The whole tree. What `changes` has not told yet is among it."""
    yield Numbers(inodes.newest - 1, handles.newest - 1)
    for node in inodes:
        yield node_row(inodes, node)
    for handle in handles:
        yield handle_row(handle)
    for number in handles.releasing:
        yield _handle_gone(number, handles)
    for place, held in handles.locks:
        yield _locked(place, held)
    forget_changes(inodes, handles)


def forget_changes(inodes: Inodes, handles: Handles) -> None:
    """All of it is told."""
    for changed in (inodes.changed, inodes.again, handles.changed, handles.locks.changes):
        changed.clear()


def _handle_gone(number: int, handles: Handles) -> HandleGone | HandleReleasing:
    releasing = handles.releasing.get(number)
    return HandleGone(number) if releasing is None else HandleReleasing(number, *releasing)


def _locked(place: Place, held: list[Held]) -> Locked:
    return Locked(place, tuple(held))
