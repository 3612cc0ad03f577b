"""tree/journal.py and tree/restoring.py: the tree as rows, and the same tree again from them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_gated.operations import ROOT, Answer, Attr, Attributes, Created, Done, Entry, Failed, Filesystem, Opened
from fuse_gated.tree import journal
from fuse_gated.tree.handles import Handle, Handles, Releasing
from fuse_gated.tree.inodes import Inodes, Node
from fuse_gated.tree.journal import (
    Answered,
    AnyRow,
    Asked,
    GivenUp,
    HandleGone,
    HandleReleasing,
    HandleRow,
    Interrupted,
    KeptAnswer,
    Known,
    Locked,
    LookedUp,
    Moving,
    NodeGone,
    NodeRow,
    Numbers,
    Owed,
    Row,
    Settled,
    SettledOwed,
)
from fuse_gated.tree.restoring import Restored, restore

DIRECTORY, REGULAR = 0o040000, 0o100000
MANY = 1000
ROWS = msgspec.msgpack.Decoder(list[AnyRow])


def attributes(inode: int, kind: int = REGULAR, **other: int) -> Attributes:
    values = {
        "device": 7, "inode": inode, "mode": kind | 0o644, "nlink": 1, "uid": 500, "gid": 501, "rdev": 0, "size": 5,
        "blocks": 8, "block_size": 4096, "atime": 1, "mtime": 2, "ctime": 3,
    }  # fmt: skip
    return Attributes(**{**values, **other})


class Lock(NamedTuple):
    handle: int
    owner: int
    start: int
    end: int
    type: int
    pid: int = 9


class Tree:
    """A tree, and every row of it that was committed, as MessagePack like a State keeps it."""

    def __init__(self) -> None:
        self.inodes = Inodes()
        self.handles = Handles(self.inodes)
        self.log: list[bytes] = []

    def commit(self) -> list[Row]:
        rows = journal.changes(self.inodes, self.handles)
        self.log.append(msgspec.msgpack.encode(rows))
        return rows

    def compact(self) -> None:
        self.log = [msgspec.msgpack.encode(list(journal.everything(self.inodes, self.handles)))]

    def again(self) -> "Tree":
        other = Tree()
        restore((row for chunk in self.log for row in ROWS.decode(chunk)), other.inodes, other.handles, MANY)
        assert journal.changes(other.inodes, other.handles) == [], "what was restored is no change"
        return other

    def picture(self) -> Any:
        """All that counts of it."""
        inodes = self.inodes
        return (
            {
                node.id: (
                    inodes.path(node), inodes.gone(node), node.identity, node.lookups, node.lost, node.climbs,
                    inodes.is_linked(node), sorted(child.id for child in node.children.values()), sorted(node.handles),
                    sorted(inodes.siblings(node)),
                )
                for node in inodes
            },
            {handle.id: _shown(handle) for handle in self.handles},
            {place: sorted(held) for place, held in self.handles.locks},
            dict(self.handles.releasing),
        )  # fmt: skip


def _shown(handle: Handle) -> Any:
    node = handle.node.id if handle.node is not None else None
    return node, handle.path, handle.remote, handle.flags, handle.directory


def restored(rows: Iterable[Any]) -> tuple[Inodes, Handles, Restored]:
    inodes = Inodes()
    handles = Handles(inodes)
    return inodes, handles, restore(rows, inodes, handles, MANY)


def known(tree: Tree, name: bytes = b"f", parent: Node | None = None, inode: int = 2, kind: int = REGULAR, **other: int) -> Node:
    return tree.inodes.known(parent or tree.inodes.root, name, attributes(inode, kind, **other))


def node_row(number: int, parent: int = ROOT, name: bytes = b"f", **other: Any) -> NodeRow:
    fields = {"identity": (7, number, REGULAR), "lookups": 1, "lost": "", "climbs": 0, "linked": False}
    return NodeRow(number, parent, name, **{**fields, **other})


def handle_row(number: int, node: int | None, **other: Any) -> HandleRow:
    fields = {
        "path": b"f", "remote": 70, "flags": 0, "directory": False, "opened_at": 1.5, "uid": 1, "pid": 2, "reads": 3,
        "bytes_read": 4, "writes": 5, "bytes_written": 6,
    }  # fmt: skip
    return HandleRow(number, node, **{**fields, **other})


# What is told.


def test_nothing_has_changed() -> None:
    assert Tree().commit() == []


def test_each_change_is_told_once() -> None:
    tree = Tree()
    node = known(tree)
    assert tree.commit() == [node_row(node.id, identity=(7, 2, REGULAR))]
    assert known(tree) is node
    assert tree.commit() == [LookedUp((node.id,))]
    handle = tree.handles.add(node, b"f", 70, 2)
    tree.handles.locks.changed(node.id, Lock(handle.id, 5, 0, 9, 1))
    [row, locked] = tree.commit()
    assert isinstance(row, HandleRow)
    assert (row.id, row.node, row.remote, row.flags) == (handle.id, node.id, 70, 2)
    assert locked == Locked(node.id, ((5, 0, 9, 1, 9, handle.id),))
    assert locked in list(journal.everything(tree.inodes, tree.handles))
    tree.handles.remove(handle.id)
    tree.inodes.forget(node.id, 2)
    assert tree.commit() == [NodeGone(node.id), HandleGone(handle.id), Locked(node.id, ())]
    assert tree.commit() == []


def test_a_handle_that_is_closed_here_alone() -> None:
    tree = Tree()
    handle = tree.handles.add(None, b"f", 70, 0)
    tree.handles.releasing[handle.id] = Releasing(70, False, (5,))
    tree.handles.remove(handle.id)
    assert tree.commit() == [HandleReleasing(handle.id, 70, False, (5,))]
    tree.compact()
    assert tree.again().picture() == tree.picture()
    tree.handles.released(handle.id)
    assert tree.commit() == [HandleGone(handle.id)]
    assert tree.again().picture() == tree.picture()


def test_what_was_counted_since_is_told_with_the_whole() -> None:
    """How much was read is no change of its own."""
    tree = Tree()
    handle = tree.handles.add(known(tree), b"f", 70, 0)
    tree.commit()
    handle.reads, handle.bytes_read, handle.writes, handle.bytes_written = 1, 2, 3, 4
    handle.opened_at, handle.uid, handle.pid = 5.5, 6, 7
    assert tree.commit() == []
    tree.compact()
    again = tree.again().handles.get(handle.id)
    assert again is not None
    assert (again.reads, again.bytes_read, again.writes, again.bytes_written) == (1, 2, 3, 4)
    assert (again.opened_at, again.uid, again.pid, again.generation) == (5.5, 6, 7, -1)


@pytest.mark.parametrize(("flags", "directory", "unflushed"), [(0, False, False), (1, False, True), (0, True, False)])
def test_what_was_open_for_writing_may_have_been_written(flags: int, directory: bool, unflushed: bool) -> None:
    tree = Tree()
    handle = tree.handles.add(known(tree), b"f", 70, flags, directory=directory)
    tree.commit()
    again = tree.again().handles.get(handle.id)
    assert again is not None
    assert again.unflushed is unflushed


def test_answers_that_may_be_worked_out_again_are_not_kept() -> None:
    entry = Entry(2, attributes(2))
    for answer in (Done(), Opened(3), Created(entry, Opened(3))):
        row = journal.kept(8, answer)
        assert row is not None
        _, _, found = restored(ROWS.decode(msgspec.msgpack.encode([row])))
        assert found.answers == {8: answer}
    again: list[Answer] = [entry, Attr(attributes(2)), Failed(2)]
    assert [journal.kept(8, answer) for answer in again] == [None] * 3


def test_the_request_that_opened_a_file_here_has_its_handle_when_it_comes_again() -> None:
    """And no other row says so."""
    tree = Tree()
    handle = tree.handles.add(known(tree), b"f", None, 0)
    handle.request = 8
    asked = tree.handles.add(known(tree), b"f", 70, 0)
    rows = tree.commit()
    again = tree.again().handles.get(handle.id)
    assert again is not None
    assert again.request == 8
    _, _, found = restored(ROWS.decode(msgspec.msgpack.encode(rows)))
    assert found.answers == {8: Opened(handle.id)}
    tree.handles.remove(handle.id)
    _, _, found = restored(ROWS.decode(msgspec.msgpack.encode([*rows, *tree.commit()])))
    assert (found.answers, asked.request) == ({}, 0)


# What comes of it.


def test_the_last_row_counts() -> None:
    inodes, handles, found = restored(
        [
            Known(None, None),
            node_row(2, name=b"old"),
            LookedUp((2, 2, 99)),
            node_row(2, name=b"new", lookups=5),
            LookedUp((2,)),
            handle_row(1, 2, remote=70),
            handle_row(1, 2, remote=71),
            Locked(2, ((1, 0, 9, 1, 9, 1),)),
            Locked(2, ((3, 0, 9, 1, 9, 1),)),
            Locked(b"by path", ((3, 0, 9, 1, 9, 1),)),
            Locked(b"by path", ()),
            Moving(((2, 1),), (2,)),
            Moving((), ()),
            Asked(4, b"raw"),
            Asked(6, b"other"),
            Settled(4),
            Settled(8),
            Known(attributes(1, DIRECTORY), Filesystem(1, 2, 3, 4, 5, 6, 7, 8)),
        ]
    )
    node = inodes.find(b"new")
    assert node is not None
    assert (node.id, node.lookups) == (2, 6)
    assert inodes.find(b"old") is None
    assert [handle.remote for handle in handles] == [71]
    assert [(place, [lock.owner for lock in held]) for place, held in handles.locks] == [(2, [3])]
    assert (found.moving, found.asked) == (Moving((), ()), {6: b"other"})
    assert found.known is not None
    assert found.known.root is not None


def owed(number: int) -> Owed:
    return Owed(number, 1, (7, 2, REGULAR), b"f", "write", b"", 0, 5)


def test_what_is_owed_is_so_until_it_is_settled() -> None:
    rows = [owed(4), owed(2), owed(6), SettledOwed(2), SettledOwed(8), owed(8)]
    _, _, found = restored(ROWS.decode(msgspec.msgpack.encode(rows)))
    assert list(found.owed.values()) == [owed(4), owed(6), owed(8)], "in their order"


def test_what_was_given_up_is_so_until_the_client_has_answered() -> None:
    two, four = (GivenUp(number, "open", b"raw") for number in (2, 4))
    _, _, found = restored([two, four, GivenUp(2), GivenUp(6), Interrupted(8), Interrupted(10), Settled(8)])
    assert (found.given_up, found.interrupted) == ({4: four}, {10})


def test_an_error_that_nobody_was_told_of_is_kept() -> None:
    tree = Tree()
    handle = tree.handles.add(known(tree), b"f", 70, 2)
    handle.failed = "ENOSPC"
    tree.commit()
    again = tree.again().handles.get(handle.id)
    assert again is not None
    assert again.failed == "ENOSPC"


def test_numbers_are_never_used_again() -> None:
    inodes, handles, _ = restored([Numbers(7, 8), node_row(5), NodeGone(9), HandleGone(4), HandleReleasing(11, 70, True, ())])
    assert (inodes.newest, handles.newest) == (10, 12)
    assert inodes.find(b"f") is not None
    inodes, handles, _ = restored([node_row(5), handle_row(6, 5), NodeGone(3)])
    assert (inodes.newest, handles.newest) == (6, 7)


def test_what_is_gone_is_gone() -> None:
    opened = [handle_row(1, None), HandleReleasing(1, 70, False, ()), HandleGone(1)]
    inodes, handles, _ = restored([node_row(2), LookedUp((2,)), *opened, NodeGone(2)])
    assert (len(inodes), len(handles), handles.releasing) == (1, 0, {})


def test_a_parent_may_be_younger() -> None:
    inodes, _, _ = restored([node_row(2, parent=9), node_row(5, parent=2, name=b"g"), node_row(9, name=b"d")])
    node = inodes.get(5)
    assert node is not None
    assert inodes.path(node) == b"d/f/g"


def test_who_has_lost_its_name_outlives_its_parent() -> None:
    tree = Tree()
    parent = known(tree, b"d", kind=DIRECTORY)
    node = known(tree, b"f", parent, 3)
    handle = tree.handles.add(node, b"d/f", 70, 0)
    tree.inodes.removed(node)
    tree.inodes.removed(parent)
    tree.inodes.forget(parent.id, 1)
    assert tree.inodes.get(parent.id) is None
    tree.commit()
    again = tree.again()
    lost = again.inodes.get(node.id)
    assert lost is not None
    assert (again.inodes.path(lost), again.inodes.gone(lost), lost.handles) == (b"d/f", "ENOENT", [handle.id])
    tree.compact()
    assert tree.again().picture() == again.picture()


def test_the_root() -> None:
    tree = Tree()
    tree.inodes.identified((7, 1, DIRECTORY))
    tree.inodes.climbed(tree.inodes.root, 3)
    tree.commit()
    root = tree.again().inodes.root
    assert (root.identity, root.climbs, root.lookups) == ((7, 1, DIRECTORY), 3, 1)
    inodes, _, _ = restored([node_row(ROOT, identity=None, climbs=2)])
    assert (inodes.root.identity, inodes.root.climbs) == (None, 2)


def test_no_more_answers_than_can_be_on_their_way() -> None:
    done = KeptAnswer("Done", msgspec.Raw(msgspec.msgpack.encode(Done())))
    _, _, found = restored(Answered(number, done) for number in range(2, 10_002, 2))
    assert len(found.answers) == 4096
    assert min(found.answers) == 10_000 - 2 * 4095


# What contradicts itself was not written by our code.


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([node_row(2, parent=5)], "node 2 has no parent"),
        ([node_row(2, parent=2)], "node 2 has no parent"),
        ([node_row(2, parent=3), node_row(3, parent=2)], "has no parent"),
        ([node_row(2), node_row(3)], "node 3 is there twice"),
        ([handle_row(1, 5)], "handle 1 is open on node 5, which is not there"),
        ([Answered(2, KeptAnswer("Attr", msgspec.Raw(b"\xc0")))], "an answer of kind 'Attr'"),
        ([Answered(2, KeptAnswer("Opened", msgspec.Raw(b"\xc1")))], "malformed"),
        ([node_row(number, name=b"%d" % number) for number in range(2, MANY + 3)], f"more than {MANY} nodes"),
        ([handle_row(number, None) for number in range(MANY + 1)], f"more than {MANY} nodes"),
        ([HandleReleasing(number, 1, False, ()) for number in range(MANY + 1)], f"more than {MANY} nodes"),
        ([Asked(number, b"") for number in range(MANY + 1)], f"more than {MANY} nodes"),
        ([owed(number) for number in range(MANY + 1)], f"more than {MANY} nodes"),
        ([Locked(2, ((1, 0, 9, 1, 9, 1),) * MANY), Locked(3, ((1, 0, 9, 1, 9, 1),))], f"more than {MANY} nodes"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_rows_that_contradict_each_other(rows: list[Row], reason: str) -> None:
    with pytest.raises((ValueError, msgspec.DecodeError), match=reason):
        restored(rows)


def test_a_handle_that_is_there_twice() -> None:
    handles = Handles(Inodes())
    handles.restore(Handle(1, None, b"f", 70, 0))
    with pytest.raises(ValueError, match="handle 1 is there twice"):
        handles.restore(Handle(1, None, b"f", 71, 0))


def test_what_is_gone_does_not_count() -> None:
    """A log may tell of far more than there is at its end."""
    inodes, handles, _ = restored(
        row
        for number in range(2, 3 * MANY)
        for row in (node_row(number), handle_row(number, number), Locked(number, ((1, 0, 9, 1, 9, 1),)), Locked(number, ()),
                    HandleGone(number), NodeGone(number))
    )  # fmt: skip
    assert (len(inodes), len(handles), len(handles.locks)) == (1, 0, 0)


@pytest.mark.parametrize(
    "row", [LookedUp((1,) * (2**20 + 1)), Moving((), (1,) * (2**20 + 1)), HandleReleasing(1, 2, False, (1,) * (2**20 + 1))]
)
def test_rows_that_would_fill_the_memory(row: Row) -> None:
    with pytest.raises(msgspec.ValidationError):
        ROWS.decode(msgspec.msgpack.encode([row]))


# Whatever happens, and wherever it is cut.

NAMES = st.sampled_from([b"a", b"b", b"c"])
PICK = st.integers(0, 7)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("known"), PICK, NAMES, st.integers(2, 6), st.booleans(), st.integers(1, 2)),
        st.tuples(st.just("forget"), PICK, st.integers(1, 3)),
        st.tuples(st.just("rename"), PICK, NAMES, PICK, NAMES, st.booleans()),
        st.tuples(st.just("remove"), PICK),
        st.tuples(st.just("open"), PICK, st.integers(0, 2), st.booleans()),
        st.tuples(st.just("close"), PICK, st.booleans()),
        st.tuples(st.just("released"), PICK),
        st.tuples(st.just("lock"), PICK, st.integers(1, 2), st.integers(0, 5), st.integers(0, 5), st.integers(0, 2)),
        st.tuples(st.just("flush"), PICK, st.integers(1, 2)),
        st.tuples(st.just("climb"), PICK, st.integers(1, 3)),
        st.tuples(st.just("commit")),
        st.tuples(st.just("compact")),
    ),
    max_size=40,
)


class Player:
    """Does at random what the turnstile does with a tree."""

    def __init__(self) -> None:
        self.tree = Tree()

    def node(self, pick: int) -> Node:
        nodes = list(self.tree.inodes)
        return nodes[pick % len(nodes)]

    def handle(self, pick: int) -> Handle | None:
        handles = list(self.tree.handles)
        return handles[pick % len(handles)] if handles else None

    def directory(self, pick: int) -> Node:
        found = [node for node in self.tree.inodes if node.id == ROOT or (node.identity or (0, 0, 0))[2] == DIRECTORY]
        return found[pick % len(found)]

    def known(self, pick: int, name: bytes, inode: int, is_directory: bool, nlink: int) -> None:
        self.tree.inodes.known(
            self.directory(pick), name, attributes(inode, DIRECTORY if is_directory else REGULAR, nlink=nlink)
        )

    def forget(self, pick: int, lookups: int) -> None:
        self.tree.inodes.forget(self.node(pick).id, lookups)

    def rename(self, pick: int, name: bytes, other: int, new_name: bytes, exchange: bool) -> None:
        parent, new_parent = self.directory(pick), self.directory(other)
        for moved, target in ((parent.children.get(name), new_parent), (new_parent.children.get(new_name), parent)):
            above: Node | None = target
            while above is not None:
                if above is moved:
                    return  # EINVAL, rename(2)
                above = above.parent
        if (parent, name) != (new_parent, new_name):
            self.tree.inodes.renamed(parent, name, new_parent, new_name, exchange=exchange)

    def remove(self, pick: int) -> None:
        node = self.node(pick)
        if node.id != ROOT and not node.lost:
            self.tree.inodes.removed(node)

    def open(self, pick: int, flags: int, nameless: bool) -> None:
        node = self.node(pick)
        self.tree.handles.add(None if nameless else node, self.tree.inodes.path(node), pick + 70, flags)

    def close(self, pick: int, told: bool) -> None:
        handle = self.handle(pick)
        if handle is not None:
            if told:
                self.tree.handles.releasing[handle.id] = Releasing(handle.remote, handle.directory)
            self.tree.handles.remove(handle.id)

    def released(self, pick: int) -> None:
        self.tree.handles.released(next(iter(self.tree.handles.releasing), pick))

    def lock(self, pick: int, owner: int, start: int, length: int, kind: int) -> None:
        handle = self.handle(pick)
        if handle is not None:
            self.tree.handles.locks.changed(handle.place, Lock(handle.id, owner, start, start + length, kind))

    def flush(self, pick: int, owner: int) -> None:
        handle = self.handle(pick)
        if handle is not None and self.tree.handles.locks.has(handle.place, owner):
            self.tree.handles.locks.flushed(handle.place, owner)

    def climb(self, pick: int, levels: int) -> None:
        self.tree.inodes.climbed(self.directory(pick), levels)

    def commit(self) -> None:
        self.tree.commit()
        self.compare()

    def compact(self) -> None:
        self.tree.compact()
        self.compare()

    def compare(self) -> None:
        again = self.tree.again()
        assert _but_for_what_moved_on(again.picture()) == _but_for_what_moved_on(self.tree.picture())
        assert again.inodes.newest >= max((node.id for node in self.tree.inodes), default=0)
        assert again.handles.newest >= max((handle.id for handle in self.tree.handles), default=0)


def _but_for_what_moved_on(picture: Any) -> Any:
    """The path of a node without a name is that of the moment in which it lost it, in a tree that was restored."""
    nodes, *rest = picture
    return {number: (None, *node[1:]) if node[1] else node for number, node in nodes.items()}, *rest


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_the_restored_tree_is_the_tree(steps: list[tuple[Any, ...]]) -> None:
    player = Player()
    for name, *arguments in steps:
        getattr(player, name)(*arguments)
    player.commit()
    player.compact()
