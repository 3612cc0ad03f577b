"""What is closed here is closed at the client too, although it may not have heard so the first time."""

import pytest
from harness.sansio import DIRECTORY, O_RDWR, REGULAR, ROOT, Errno, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.tree.journal import HandleGone, HandleReleasing, Row
from fuse_gated.wire import messages


def rows(mount: Mount) -> list[Row]:
    """What was committed of handles since the last call."""
    return [row for row in mount.t.ledger.rows() if isinstance(row, HandleGone | HandleReleasing)]


def successor(mount: Mount, *, committed: list[Row] | None = None) -> Mount:
    """A process that goes on with a client that is there."""
    other = Mount()
    other.t.restore(committed if committed is not None else list(mount.t.ledger.everything()), 2)
    other.t.resume(other.now)
    other.gather()
    return other


def asked(mount: Mount) -> list[messages.Arguments]:
    return [frame.arguments for frame in mount.sent]


def test_a_successor_closes_what_the_client_may_not_have_closed():
    mount = Mount()
    handle, directory = mount.open(mount.lookup(b"f"), remote=70), mount.opendir(remote=71)
    mount.ask(op.Release(0, handle))
    mount.ask(op.Releasedir(0, directory))
    other = successor(mount)
    assert asked(other) == [messages.Release(70), messages.Releasedir(71)]
    assert len(other.t.handles) == 0


def test_the_rows_alone_say_so_too():
    mount = Mount()
    handle = mount.open(mount.lookup(b"f"), remote=70)
    committed = list(mount.t.ledger.everything())
    mount.ask(op.Release(0, handle))
    assert asked(successor(mount, committed=[*committed, HandleReleasing(handle, 70, False, ())])) == [messages.Release(70)]


@pytest.mark.parametrize("outcome", [None, Errno("EBADF")], ids=["closed", "closed before"])
def test_what_the_client_has_closed_is_forgotten(outcome: object):
    mount = Mount()
    handle = mount.open(mount.lookup(b"f"), remote=70)
    committed = list(mount.t.ledger.everything())
    mount.ask(op.Release(0, handle))
    mount.reply(mount.sent[-1].id, outcome)
    mount.t.handles.released(handle)  # Once more changes nothing.
    gone = rows(mount)
    assert gone == [HandleGone(handle)]
    assert asked(successor(mount)) == asked(successor(mount, committed=[*committed, *gone])) == []


def test_it_is_kept_for_the_one_after_while_the_client_is_away():
    mount = Mount()
    handle = mount.open(mount.lookup(b"f"), remote=70)
    mount.ask(op.Release(0, handle))
    standby = Mount()
    standby.t.restore(list(mount.t.ledger.everything()), 2)
    standby.t.suspend(standby.now)
    assert asked(successor(standby)) == [messages.Release(70)]


def test_locks_of_the_open_file_itself_go_with_it():
    mount = Mount()
    node = mount.lookup(b"f")
    handle, _other = mount.open(node, remote=70), mount.open(node, remote=72)
    mount.do(op.Setlk(node, handle, 5, 0, 9, 1, 44, wait=False, flock=False), None)
    mount.clear()
    mount.ask(op.Release(0, handle))
    assert asked(mount) == [messages.Flush(70, 5), messages.Release(70)]
    assert asked(successor(mount)) == [messages.Flush(70, 5), messages.Release(70)]


def test_numbers_are_not_given_out_again():
    mount = Mount()
    handle = mount.open(mount.lookup(b"f"), remote=70)
    mount.ask(op.Release(0, handle))
    other = successor(mount)
    assert other.opendir(ROOT) > handle


@pytest.mark.parametrize(
    ("request_of", "kind", "back"),
    [
        (lambda _node: op.Opendir(ROOT, 0), DIRECTORY, messages.Releasedir(70)),
        (lambda node: op.Open(node, O_RDWR), REGULAR, messages.Release(70)),
    ],
    ids=["directory", "file"],
)
def test_what_came_too_late_is_closed_by_a_successor_if_the_client_has_not_heard(request_of, kind, back):
    mount = Mount()
    number = mount.ask(request_of(mount.lookup(b"f")))
    mount.interrupt(number)
    mount.tick(1.0)
    committed = list(mount.t.ledger.everything())
    mount.clear()
    mount.reply(number, messages.OpenedFile(70, attributes(1, kind)))
    assert asked(mount) == [back]
    committed += mount.t.ledger.rows()
    assert asked(successor(mount)) == asked(successor(mount, committed=committed)) == [back]
    mount.reply(mount.sent[-1].id, None)
    committed += mount.t.ledger.rows()
    assert asked(successor(mount)) == asked(successor(mount, committed=committed)) == []


@pytest.mark.parametrize(
    ("request_of", "back"),
    [
        (lambda _node: op.Opendir(ROOT, 0), messages.Releasedir(70)),
        (lambda node: op.Open(node, O_RDWR), messages.Release(70)),
        (lambda _node: op.Create(ROOT, b"new", O_RDWR, 0o644, 0), messages.Release(70)),
    ],
    ids=["opendir", "open", "create"],
)
def test_so_is_what_is_not_what_was_to_be_opened(request_of, back):
    mount = Mount()
    number = mount.ask(request_of(mount.lookup(b"f")))
    mount.reply(number, messages.OpenedFile(70, attributes(999, 0o010000)))
    assert isinstance(mount.answer(number), op.Failed)
    assert asked(successor(mount)) == [back]
