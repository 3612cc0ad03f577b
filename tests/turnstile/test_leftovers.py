"""What callers gave up before the connection was lost is asked once more, under its number, and given back."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from harness.sansio import CALLER, DIRECTORY, O_RDWR, ROOT, Errno, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import Limiter
from fuse_gated.gate.tenant import Outage
from fuse_gated.tree.journal import GivenUp, Row
from fuse_gated.turnstile import effects
from fuse_gated.turnstile.limits import Limits
from fuse_gated.turnstile.turnstile import Turnstile
from fuse_gated.wire import codec
from fuse_gated.wire.messages import Ask, Opendir, OpenedFile, Read, Reply, Setlk
from fuse_gated.wire.session import Pending


def rows_of(log: Iterable[effects.Effect]) -> list[Row]:
    return [row for effect in log if isinstance(effect, effects.Answer) for row in effect.rows]


def successor(mount: Mount, rows: Iterable[Any]) -> Turnstile:
    """Another process's, with its client."""
    gate, limiter = Gate(mount.tenant, mount.identity), Limiter(mount.tenant.limits, mount.now)
    turnstile = Turnstile(gate, limiter, Limits(), export_root=b"/r")
    turnstile.restore(rows, 2)
    turnstile.resume(mount.now)
    return turnstile


def asked(turnstile: Turnstile) -> list[Ask]:
    wanted, turnstile.effects = turnstile.effects, []
    return [effect.frame for effect in wanted if isinstance(effect, effects.Send) and isinstance(effect.frame, Ask)]


def given_up(request: op.Request) -> tuple[Mount, int]:
    """A request whose caller got a signal, and no answer in time."""
    mount = Mount(outage=Outage("wait", 60.0))
    number = mount.ask(request)
    mount.interrupt(number)
    mount.tick(1.0)
    return mount, number


@pytest.mark.parametrize(
    ("request_", "operation", "undone"),
    [
        (op.Opendir(ROOT, 0), "opendir", "releasedir"),
        (op.Create(ROOT, b"new", O_RDWR, 0o644, 0), "create", "release"),
    ],
    ids=["opendir", "create"],
)
def test_what_was_opened_for_nobody_is_closed(request_: op.Request, operation: str, undone: str) -> None:
    mount, number = given_up(request_)
    everything = list(mount.t.ledger.everything())
    assert [row.request for row in everything if isinstance(row, GivenUp)] == [number]
    next_one = successor(mount, everything)
    (again,) = asked(next_one)
    assert (again.id, again.operation) == (number, operation)
    kind = DIRECTORY if operation == "opendir" else 0o100000
    next_one.received(mount.now, codec.encode(Reply(number, None, OpenedFile(77, attributes(9, kind)))))
    (back,) = asked(next_one)
    assert (back.operation, back.arguments.handle) == (undone, 77)
    assert not next_one.ledger.leftovers
    assert GivenUp(number) in next_one.ledger.rows()


def test_what_was_told_before_the_loss_is_over() -> None:
    mount, number = given_up(op.Opendir(ROOT, 0))
    other = mount.ask(op.Statfs(ROOT))
    mount.reply(other, Errno("EIO"))
    assert mount.t.ledger.leftovers
    mount.reply(number, Errno("ENOENT"))
    assert not mount.t.ledger.leftovers
    assert not [row for row in mount.t.ledger.everything() if isinstance(row, GivenUp)]


def test_who_gives_up_while_the_client_is_away() -> None:
    """The client had been asked before."""
    mount = Mount(outage=Outage("wait", 60.0))
    number = mount.ask(op.Opendir(ROOT, 0))
    mount.t.suspend(mount.now)
    mount.gather()
    mount.interrupt(number)
    mount.tick(1.0)
    assert [row.request for row in rows_of(mount.log) if isinstance(row, GivenUp)] == [number]


def test_a_request_that_was_never_sent_leaves_nothing() -> None:
    mount = Mount(bounds=Limits(max_in_flight=1), outage=Outage("wait", 60.0))
    mount.ask(op.Statfs(ROOT))
    number = mount.ask(op.Opendir(ROOT, 0))
    mount.interrupt(number)
    mount.tick(1.0)
    assert not mount.t.ledger.leftovers


def test_what_the_kernel_asks_again_was_given_up_by_another_process() -> None:
    """Its word did not reach the kernel."""
    mount, number = given_up(op.Opendir(ROOT, 0))
    next_one = successor(mount, mount.t.ledger.everything())
    next_one.effects.clear()
    next_one.request(mount.now, number, CALLER, op.Opendir(ROOT, 0))
    answers = [effect.answer for effect in next_one.effects if isinstance(effect, effects.Answer)]
    assert answers == [op.Failed(4)]


def test_a_lock_is_not_waited_for_once_more() -> None:
    mount = Mount()
    pending = Pending(8, Setlk(1, 2, 0, 10, 1, False, 5000), 0.0, lambda _result: None, lambda _errno: None)
    pending.sent = True
    mount.t.ledger.leftovers.add(pending)
    again = mount.t.ledger.leftovers.arguments(8)
    assert isinstance(again, Setlk)
    assert (again.wait, again.type) == (0, 1)


@pytest.mark.parametrize("arguments", [Setlk(1, 2, 0, 10, 2), Read(1, 0, 10)])
def test_what_leaves_nothing_behind_is_not_kept(arguments: Any) -> None:
    mount = Mount()
    pending = Pending(8, arguments, 0.0, lambda _result: None, lambda _errno: None)
    pending.sent = True
    mount.t.ledger.leftovers.add(pending)
    assert not mount.t.ledger.leftovers.changed


def test_nonsense_of_another_process_is_dropped() -> None:
    """A worker that was taken over may have written anything."""
    mount = Mount()
    rows = [GivenUp(8, "opendir", b"\xc1"), GivenUp(10, "opendir", msgspec.msgpack.encode(Opendir(b"x"))), GivenUp(10)]
    next_one = successor(mount, rows)
    assert not asked(next_one)
    assert not next_one.ledger.leftovers
