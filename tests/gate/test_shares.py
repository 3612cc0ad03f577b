"""gate/shares.py: several sessions' views of one page, which here are in one process."""

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.gate.shares import SESSIONS, SIZE, Shares

NOW = 1000.0
LATER = 0.002
"""Seconds after which a session looks at the others again."""


def page(sessions: int) -> "memoryview[float]":
    numbers = array("d", bytes(SIZE))
    numbers[0] = sessions
    return memoryview(numbers)


def test_a_new_page_is_full_whenever_it_is_looked_at() -> None:
    shares = Shares(page(1), 0)
    assert shares.credit(0, NOW, 1.0) == 1.0
    assert shares.credit(1, NOW + 50, 2.0) == 2.0
    assert shares.credit(0, NOW + 7, 1.0) == 1.0, "and holds no more than there is room for"


def test_what_one_takes_is_gone_for_all() -> None:
    numbers = page(3)
    sessions = [Shares(numbers, number) for number in range(3)]
    assert [session.credit(0, NOW, 1.0) for session in sessions] == [1.0] * 3
    for session in sessions:
        session.spend(0, 0.5)
    assert [session.credit(0, NOW + LATER, 1.0) for session in sessions] == pytest.approx([-0.5 + LATER] * 3)
    assert sessions[0].credit(1, NOW + LATER, 1.0) == 1.0, "each bucket for itself"
    assert [session.credit(0, NOW + 1, 1.0) for session in sessions] == pytest.approx([0.5] * 3)
    assert [session.credit(0, NOW + 9, 1.0) for session in sessions] == [1.0] * 3
    sessions[1].spend(0, 1.0)
    sessions[1].spend(0, -0.25)
    assert sessions[2].credit(0, NOW + 9 + LATER, 1.0) == pytest.approx(0.25 + LATER), "what was given back is there again"


def test_who_has_not_looked_for_long_has_nothing_more() -> None:
    """While it looked away the others took what came, and the bucket was never full."""
    numbers = page(2)
    idle, busy = Shares(numbers, 0), Shares(numbers, 1)
    assert idle.credit(0, NOW, 1.0) == 1.0
    for second in range(20):
        assert busy.credit(0, NOW + second, 1.0) == pytest.approx(1.0 if second == 0 else 0.0)
        busy.spend(0, 2.0 if second == 0 else 1.0)
    assert idle.credit(0, NOW + 19 + LATER, 1.0) == pytest.approx(-1.0 + LATER)


def test_a_sum_is_used_again_for_a_moment_but_not_for_what_is_its_own() -> None:
    numbers = page(2)
    one, other = Shares(numbers, 0), Shares(numbers, 1)
    assert one.credit(0, NOW, 1.0) == 1.0
    other.credit(0, NOW, 1.0)
    other.spend(0, 0.5)
    one.spend(0, 0.25)
    assert one.credit(0, NOW + LATER / 4, 1.0) == pytest.approx(0.75 + LATER / 4)
    assert one.credit(0, NOW + LATER, 1.0) == pytest.approx(0.25 + LATER)


def test_a_successor_goes_on_where_the_last_process_stopped() -> None:
    numbers = page(1)
    first = Shares(numbers, 0)
    first.credit(0, NOW, 1.0)
    first.spend(0, 3.0)
    assert Shares(numbers, 0).credit(0, NOW + 1, 1.0) == pytest.approx(-1.0)


def test_who_is_active() -> None:
    numbers = page(3)
    sessions = [Shares(numbers, number) for number in range(3)]
    assert sessions[0].active(NOW) == 1
    assert sessions[1].active(NOW + 0.3) == 2
    assert sessions[0].active(NOW + 0.31) == 2
    assert sessions[2].active(NOW + 0.32) == 3
    assert sessions[0].active(NOW + 0.33) == 2, "it has counted a moment ago"
    assert sessions[0].active(NOW + 0.9) == 3
    assert sessions[0].active(NOW + 5) == 1
    assert sessions[1].active(NOW - 5) == 3, "a clock that goes back is no reason to stumble"


def test_a_session_that_nobody_counted_counts_itself() -> None:
    numbers = page(0)
    assert Shares(numbers, 4).active(NOW) == 1
    last = Shares(numbers, SESSIONS - 1)
    assert last.credit(5, NOW, 1.0) == 1.0
    last.spend(5, 2.0)
    assert last.credit(5, NOW, 1.0) == pytest.approx(-1.0)


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, -1.0, 1e308, 0.5])
def test_whatever_a_hostile_session_wrote_nobody_stumbles(nonsense: float) -> None:
    numbers = page(2)
    for index in range(len(numbers)):
        numbers[index] = nonsense
    shares = Shares(numbers, 0)
    shares.credit(0, NOW, 1.0)
    shares.spend(0, 1.0)
    shares.credit(0, NOW + 1, 1.0)
    assert shares.active(NOW) >= 1


class Bucket:
    """What all of them together are to be: one bucket in one place."""

    def __init__(self) -> None:
        self.credit, self.when = 1.0, NOW

    def look(self, now: float) -> float:
        self.credit, self.when = min(1.0, self.credit + now - self.when), now
        return self.credit


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(LATER, 3), st.floats(0, 2)), max_size=60))
def test_it_is_one_bucket(taken: list[tuple[int, float, float]]) -> None:
    numbers, bucket, now = page(5), Bucket(), NOW
    sessions = [Shares(numbers, number) for number in range(5)]
    for number, pause, seconds in taken:
        now += pause
        assert sessions[number].credit(2, now, 1.0) == pytest.approx(bucket.look(now), abs=1e-6)
        sessions[number].spend(2, seconds)
        bucket.credit -= seconds
