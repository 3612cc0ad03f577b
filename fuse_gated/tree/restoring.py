"""The tree from its rows (journal.py), in the process that goes on with it."""

from collections.abc import Iterable
from typing import Final

import msgspec

from fuse_gated.operations import ROOT, Answer, Opened
from fuse_gated.tree.handles import Handle, Handles, Releasing
from fuse_gated.tree.inodes import Inodes
from fuse_gated.tree.journal import (
    KINDS,
    Answered,
    AnyRow,
    Asked,
    GivenUp,
    HandleGone,
    HandleReleasing,
    HandleRow,
    Interrupted,
    Known,
    Locked,
    LookedUp,
    Moving,
    NodeGone,
    NodeRow,
    Numbers,
    Owed,
    SettledOwed,
    forget_changes,
)  # fmt: skip
from fuse_gated.tree.posix_locks import Held

_ANSWERS_KEPT: Final = 4096
"""Answers that may not have reached the kernel: those of a few turns of the loop, and never more than this."""


class Restored(msgspec.Struct):
    """What the rows say beside the tree: answers that may not have arrived, by their request, and what was known."""

    answers: dict[int, Answer]
    known: Known | None = None
    moving: Moving | None = None
    asked: dict[int, bytes] = {}
    given_up: dict[int, GivenUp] = {}
    interrupted: set[int] = set()
    owed: dict[int, Owed] = {}


def restore(rows: Iterable[AnyRow], inodes: Inodes, handles: Handles, most: int) -> Restored:
    """Put the tree together again, into one that has nothing but its root.

    Raises ValueError where the rows contradict each other: whoever wrote them was not our code, or it was interrupted by
    something that no process can be interrupted by; and where there are more than `most` nodes, handles, locks or requests.
    Raises msgspec.DecodeError for an answer that is none.
    """
    nodes: dict[int, NodeRow] = {}
    lookups: dict[int, int] = {}
    opened: dict[int, HandleRow] = {}
    held = 0
    restored = Restored({})
    for row in rows:
        match row:
            case NodeRow():
                nodes[row.id] = row
                lookups.pop(row.id, None)
            case LookedUp():
                for number in row.ids:
                    if number in nodes:
                        lookups[number] = lookups.get(number, 0) + 1
            case NodeGone():
                nodes.pop(row.id, None)
                lookups.pop(row.id, None)
                inodes.never_again(row.id)
            case HandleRow():
                opened[row.id] = row
            case HandleGone():
                opened.pop(row.id, None)
                handles.releasing.pop(row.id, None)
                handles.never_again(row.id)
            case HandleReleasing():
                opened.pop(row.id, None)
                handles.releasing[row.id] = Releasing(row.remote, row.directory, row.owners, row.node)
                handles.never_again(row.id)
            case Locked():
                held += len(row.held) - len(handles.locks.on(row.place))
                handles.locks.restore(row.place, [Held(*lock) for lock in row.held])
            case Numbers():
                inodes.never_again(row.node)
                handles.never_again(row.handle)
            case Answered():
                _remember(restored.answers, row)
            case Known():
                restored.known = row
            case Moving():
                restored.moving = row
            case Asked():
                restored.asked[row.request] = row.raw
            case Interrupted():
                restored.interrupted.add(row.request)
            case Owed():
                restored.owed[row.request] = row
            case SettledOwed():
                restored.owed.pop(row.request, None)
            case GivenUp(operation=""):
                restored.given_up.pop(row.request, None)
            case GivenUp():
                restored.given_up[row.request] = row
            case _:
                restored.asked.pop(row.request, None)
                restored.interrupted.discard(row.request)
        asked = max(len(restored.asked), len(restored.given_up), len(restored.interrupted), len(restored.owed))
        if max(len(nodes), len(opened), len(handles.releasing), held, asked) > most:
            raise ValueError(f"more than {most} nodes, handles, locks or requests")
    _restore_nodes(nodes, inodes)
    for number, more in lookups.items():
        node = inodes.get(number)
        assert node is not None
        node.lookups += more
    for row in opened.values():
        _restore_handle(row, inodes, handles)
        if row.request:
            # The kernel may be allowed more: to keep what it has, and not to tell of a close. It need not be.
            restored.answers[row.request] = Opened(row.id)
    forget_changes(inodes, handles)
    return restored


def _remember(answers: dict[int, Answer], row: Answered) -> None:
    kind = KINDS.get(row.answer.kind)
    if kind is None:
        raise ValueError(f"an answer of kind {row.answer.kind!r}")
    answers[row.request] = msgspec.msgpack.decode(row.answer.fields, type=kind)
    if len(answers) > _ANSWERS_KEPT:
        del answers[next(iter(answers))]


def _restore_nodes(rows: dict[int, NodeRow], inodes: Inodes) -> None:
    inodes.root.kept = 0
    root = rows.pop(ROOT, None)
    if root is not None:
        inodes.root.climbs = root.climbs
        if root.identity is not None:
            inodes.identified(root.identity)
    # Parents first; a parent may be younger than what was moved into it.
    for first in list(rows):
        way = []
        number = first
        while number in rows:
            row = rows.pop(number)
            way.append(row)
            number = row.parent
        for row in reversed(way):
            _restore_node(row, inodes)


def _restore_node(row: NodeRow, inodes: Inodes) -> None:
    parent = inodes.get(row.parent)
    name = row.name
    if parent is None and row.lost:
        parent, name = inodes.root, row.path
    if parent is None:
        raise ValueError(f"node {row.id} has no parent")
    inodes.restore(
        row.id, parent, name, row.identity, lookups=row.lookups, lost=row.lost, climbs=row.climbs, linked=row.linked
    )


def _restore_handle(row: HandleRow, inodes: Inodes, handles: Handles) -> None:
    node = None if row.node is None else inodes.get(row.node)
    if node is None and row.node is not None:
        raise ValueError(f"handle {row.id} is open on node {row.node}, which is not there")
    handle = Handle(row.id, node, row.path, row.remote, row.flags, directory=row.directory)
    handle.opened_at, handle.uid, handle.pid = row.opened_at, row.uid, row.pid
    handle.request = row.request
    handle.reads, handle.bytes_read = row.reads, row.bytes_read
    handle.writes, handle.bytes_written = row.writes, row.bytes_written
    handle.failed = handle.warns = row.failed
    # Whether something was written since the last close(2), and under which policy it was judged, no row says.
    handle.unflushed = not row.directory and bool(row.flags & 3)
    handle.generation = -1
    handle.inherited = row.remote < 0
    handle.kept = 0
    handles.restore(handle)
