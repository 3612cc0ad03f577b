"""turnstile/ledger.py: what a successor is told, and that it knows all of it."""

from typing import Any

import pytest
from harness.sansio import DIRECTORY, ROOT, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.operations import Filesystem
from fuse_gated.tree.journal import Answered, Asked, Interrupted, Known, LookedUp, Moving, NodeRow, Row, Settled
from fuse_gated.turnstile.effects import Answer
from fuse_gated.wire import messages as wire

FILESYSTEM = Filesystem(1, 2, 3, 4, 5, 6, 7, 8)


def kinds(rows: tuple[Row, ...]) -> list[str]:
    return [type(row).__name__ for row in rows]


def successor(*rows: Any) -> Mount:
    mount = Mount()
    mount.t.restore(rows, 2)
    return mount


def rows_of(mount: Mount, number: int) -> tuple[Row, ...]:
    """What has to be kept before the request is answered."""
    [rows] = [effect.rows for effect in mount.log if isinstance(effect, Answer) and effect.request == number]
    return rows


def test_a_fresh_one_has_nothing_to_tell() -> None:
    assert Mount().t.ledger.changed is False
    assert Mount().t.ledger.rows() == ()


def test_an_answer_comes_with_what_it_changed() -> None:
    mount = Mount()
    number = mount.ask(op.Lookup(ROOT, b"f"))
    mount.reply(number, attributes(2))
    assert kinds(rows_of(mount, number)) == ["NodeRow"], "the lookup may be answered again"
    again = mount.ask(op.Lookup(ROOT, b"f"))
    mount.reply(again, attributes(2))
    assert kinds(rows_of(mount, again)) == ["LookedUp"]
    opened = mount.ask(op.Open(2, 0))
    mount.reply(opened, wire.OpenedFile(70, attributes(2)))
    rows = rows_of(mount, opened)
    assert kinds(rows) == ["HandleRow", "Answered"]
    assert isinstance(rows[-1], Answered)
    assert rows[-1].request == opened
    read = mount.ask(op.Read(2, 1, 0, 4))
    mount.reply(read, b"data")
    assert rows_of(mount, read) == ()


def test_what_forget_changed_is_told_without_an_answer() -> None:
    mount = Mount()
    node = mount.lookup(b"f")
    mount.ask(op.Forget(((node, 1),)))
    assert mount.t.ledger.changed
    assert kinds(mount.t.ledger.rows()) == ["NodeGone"]
    assert not mount.t.ledger.changed


def test_an_answer_that_did_not_arrive_is_given_when_the_request_comes_again() -> None:
    """Nothing is done twice."""
    mount = Mount()
    node = mount.lookup(b"f", inode=2)
    rows = list(mount.t.ledger.everything())
    opened = mount.ask(op.Open(node, 0))
    mount.reply(opened, wire.OpenedFile(70, attributes(2)))
    other = successor(*rows, *rows_of(mount, opened))
    other.t.request(other.now, opened, op.Caller(1000, 1000, 4321), op.Open(node, 0))
    other.gather()
    assert other.answer(opened) == mount.answer(opened)
    assert other.sent == []
    assert len(other.t.handles) == 1
    other.t.request(other.now, opened + 100, op.Caller(1000, 1000, 4321), op.Open(node, 0))
    other.gather()
    assert [frame.operation for frame in other.sent] == ["open"]


def test_an_answer_that_is_owed_is_owed_by_every_successor() -> None:
    [owed] = _owed()
    removed = owed.request
    other = successor(owed)
    third = successor(*other.t.ledger.everything())
    assert third.t.ledger.owed == other.t.ledger.owed == {removed: op.Done()}
    third.t.request(third.now, removed, op.Caller(1000, 1000, 4321), op.Unlink(ROOT, b"f"))
    third.gather()
    assert third.answer(removed) == op.Done()
    assert successor(*third.t.ledger.everything()).t.ledger.owed == {}


def _owed() -> list[Answered]:
    mount = Mount()
    node = mount.lookup(b"f")
    number = mount.ask(op.Unlink(ROOT, b"f"))
    mount.reply(number, None)
    assert node
    return [row for row in rows_of(mount, number) if isinstance(row, Answered)]


def test_what_was_known_of_the_client() -> None:
    mount = Mount()
    mount.t.ledger.saw_root(attributes(1, DIRECTORY))
    mount.t.ledger.saw_filesystem(FILESYSTEM)
    assert mount.t.ledger.changed
    known = Known(attributes(1, DIRECTORY), FILESYSTEM)
    assert mount.t.ledger.rows() == (known,)
    assert not mount.t.ledger.changed
    other = successor(known)
    assert other.t.ledger.known == known
    assert not other.t.ledger.changed
    assert known in list(other.t.ledger.everything())


def test_a_move_that_the_kernel_may_not_have_finished() -> None:
    mount = Mount()
    node = mount.t.inodes.get(mount.lookup(b"d", DIRECTORY))
    assert node is not None
    mount.t.ledger.rows()
    mount.t.ledger.moving([(node, 2)], (ROOT, b"by path", node.id))
    assert mount.t.ledger.changed
    assert mount.t.ledger.rows() == (Moving(((node.id, 2),), (ROOT, node.id)),)
    other = successor(*mount.t.ledger.everything())
    assert [(found.id, depth) for found, depth in other.t.ledger.unfinished] == [(node.id, 2)]
    assert other.t.ledger.moved_between == (ROOT, node.id)
    assert successor(Moving(((99, 2),), ())).t.ledger.unfinished == [], "it is gone by now"


def test_requests_that_nobody_sends_again() -> None:
    ledger = Mount().t.ledger
    assert ledger.is_asked(8, b"raw") == Asked(8, b"raw")
    assert Asked(8, b"raw") in list(ledger.everything())
    assert successor(Asked(8, b"raw")).t.ledger.asked == {8: b"raw"}
    assert ledger.is_settled(8) == Settled(8)
    assert ledger.is_settled(8) is None


def test_a_signal_that_the_kernel_tells_once() -> None:
    ledger = Mount().t.ledger
    assert ledger.is_interrupted(8) is None, "the kernel tells it again with its request"
    ledger.is_asked(8, b"raw")
    assert ledger.is_interrupted(8) == Interrupted(8)
    assert ledger.is_interrupted(8) is None
    assert Interrupted(8) in list(ledger.everything())
    assert successor(Asked(8, b"raw"), Interrupted(8), Interrupted(10)).t.ledger.interrupted == {8}
    assert successor(Asked(8, b"raw"), Interrupted(8), Settled(8)).t.ledger.interrupted == set()
    ledger.is_settled(8)
    assert not ledger.interrupted


def test_more_nodes_than_there_should_be() -> None:
    """Twice the limit, and what the kernel forgets late: nothing of ours has left more."""
    row = NodeRow(2, ROOT, b"f", (7, 2, 0o100000), 1, "", 0, False)
    mount = Mount()
    with pytest.raises(ValueError, match="more than 1 nodes"):
        mount.t.ledger.restore([row, NodeRow(3, ROOT, b"g", (7, 3, 0o100000), 1, "", 0, False)], 1)
    assert successor(row, LookedUp((2,))).t.inodes.get(2) is not None
