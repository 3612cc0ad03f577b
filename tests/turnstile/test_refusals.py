"""Refusals are told at once, and answered at the pace at which they may be told: so their records are as few as their rate."""

import math

import pytest
from harness.sansio import Errno, Mount, attributes
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.gate.tenant import Limits as TenantLimits
from fuse_gated.gate.verdict import ALL, DELETE, READ, WRITE, Rule
from fuse_gated.operations import ROOT
from fuse_gated.turnstile.turnstile import Limits

RULES = (Rule("/no/**", deny=ALL), Rule("/**", allow=ALL))


def mount(refusals: float = 2.0, **other: object) -> Mount:
    return Mount(RULES, bounds=Limits(refusals=refusals, deadline=10.0), **other)


def refused(mount: Mount) -> int:
    return mount.ask(op.Lookup(ROOT, b"no"))


def errno(mount: Mount, number: int) -> str:
    answer = mount.answer(number)
    assert isinstance(answer, op.Failed)
    return errno_name(answer.errno)


def test_a_seconds_worth_at_once_and_then_each_in_its_turn():
    m = mount(refusals=2.0)
    numbers = [refused(m) for _ in range(5)]
    assert [bool(m.answers(number)) for number in numbers] == [True, True, False, False, False]
    assert [record.kind for record in m.records] == ["refused"] * 5, "each is told when it is refused"
    assert m.t.next_due(m.now) == pytest.approx(m.now + 0.5)
    m.tick(0.6)
    assert [bool(m.answers(number)) for number in numbers] == [True, True, True, False, False]
    m.tick(1.0)
    assert [errno(m, number) for number in numbers] == ["EACCES"] * 5
    assert len(m.records) == 5, "once"
    assert m.t.statistics.denied == m.t.statistics.failed == 5


def test_what_is_allowed_waits_for_no_refusal():
    m = mount(refusals=1.0)
    for _ in range(4):
        refused(m)
    assert isinstance(m.do(op.Lookup(ROOT, b"yes"), attributes(21)), op.Entry)


def test_a_signal_does_not_shorten_the_wait():
    """Else a program that interrupts itself would have as many told as it likes."""
    m = mount(refusals=1.0)
    refused(m)
    number = refused(m)
    m.interrupt(number)
    assert not m.answers(number)
    m.tick(1.1)
    assert errno(m, number) == "EACCES"


def test_nobody_waits_for_longer_than_a_deadline():
    m = mount(refusals=1.0)
    numbers = [refused(m) for _ in range(30)]
    m.tick(10.0)
    assert [errno(m, number) for number in numbers] == ["EACCES"] * 30


def test_who_waits_when_the_client_leaves_is_told_that():
    m = mount(refusals=1.0)
    refused(m)
    number = refused(m)
    m.t.lost(m.now)
    m.gather()
    assert errno(m, number) == "ENOTCONN"
    m.tick(2.0)
    assert len(m.answers(number)) == 1


def test_limits_that_are_met_count_as_well():
    m = mount(refusals=2.0, limits=TenantLimits(operations={"*": 1.0}, on_excess="refuse"))
    m.do(op.Lookup(ROOT, b"a"), attributes(21))
    numbers = [m.ask(op.Lookup(ROOT, b"b")) for _ in range(3)]
    assert [bool(m.answers(number)) for number in numbers] == [True, True, False]
    m.tick(0.6)
    assert [errno(m, number) for number in numbers] == ["EAGAIN"] * 3


def test_what_the_clients_answer_is_refused_by_waits_too():
    m = mount(refusals=1.0)
    link = m.lookup(b"l", 0o120000)
    first, second = m.ask(op.Readlink(link)), m.ask(op.Readlink(link))
    for number in (first, second):
        m.reply(number, b"/etc/passwd")
    assert errno(m, first) == "EACCES"
    assert not m.answers(second)
    m.tick(1.1)
    assert errno(m, second) == "EACCES"


def test_a_rename_that_the_client_refused_for_us_waits_too():
    """It may not replace what is there, which the client alone knows."""
    m = Mount((Rule("/b", deny=DELETE), Rule("/**", allow=READ | WRITE | DELETE)), bounds=Limits(refusals=1.0))
    m.lookup(b"a")
    numbers = []
    for _ in range(2):
        numbers.append(m.ask(op.Rename(ROOT, b"a", ROOT, b"b", 0)))
        m.reply(numbers[-1], Errno("EEXIST"))
    assert errno(m, numbers[0]) == "EACCES"
    assert not m.answers(numbers[1])
    m.tick(1.1)
    assert errno(m, numbers[1]) == "EACCES"


@given(st.lists(st.floats(0, 3), max_size=60), st.floats(0.5, 20))
def test_records_are_no_more_than_their_rate(pauses: list[float], rate: float):
    """By programs that ask again as soon as they are answered, however many of them."""
    m, programs = mount(refusals=rate), 3
    start, waiting = m.now, [refused(m) for _ in range(programs)]
    for pause in pauses:
        m.tick(pause)
        waiting = [refused(m) if m.answers(number) else number for number in waiting]
    most = math.ceil(rate * (m.now - start)) + max(1, rate) + programs
    assert len(m.records) <= most
