import math
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.gate.limiter import REFUSED, Bucket, Limiter
from fuse_gated.gate.shares import SIZE, Shares
from fuse_gated.gate.tenant import Limits


def test_without_limits_nothing_waits() -> None:
    limiter = Limiter(Limits(), 0.0)
    assert limiter.unlimited
    assert [limiter.take(0.0, "write", 2**40) for _ in range(1000)] == [0.0] * 1000


def test_a_second_s_worth_at_once_and_then_one_by_one() -> None:
    limiter = Limiter(Limits(operations={"read": 10}), 100.0)
    assert not limiter.unlimited
    assert [limiter.take(100.0, "read") for _ in range(10)] == [0.0] * 10
    # Each reservation stands behind the one before.
    assert [limiter.take(100.0, "read") for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    assert limiter.take(100.35, "read") == pytest.approx(0.05)
    # Idle for long: again a second's worth, and no more.
    assert [limiter.take(200.0, "read") for _ in range(10)] == [0.0] * 10
    assert limiter.take(200.0, "read") == pytest.approx(0.1)


def test_less_than_one_a_second_lets_one_through() -> None:
    limiter = Limiter(Limits(operations={"*": 0.5}), 0.0)
    assert limiter.take(0.0, "other") == 0.0
    assert limiter.take(0.0, "other") == pytest.approx(2.0)
    assert limiter.take(2.0, "other") == pytest.approx(2.0)


def test_classes_have_buckets_of_their_own_and_share_the_star() -> None:
    limiter = Limiter(Limits(operations={"read": 1, "*": 2}), 0.0)
    assert limiter.take(0.0, "read") == 0.0
    assert limiter.take(0.0, "write") == 0.0
    assert limiter.take(0.0, "write") == pytest.approx(0.5)
    # The own class is the slower one here: 1 a second.
    assert limiter.take(0.0, "read") == pytest.approx(1.0)


def test_bytes_count_beside_operations() -> None:
    limiter = Limiter(Limits(bytes={"write": 1000, "*": 4000}), 0.0)
    assert limiter.take(0.0, "write", 1000) == 0.0
    assert limiter.take(0.0, "write", 500) == pytest.approx(0.5)
    assert limiter.take(0.0, "read", 2500) == 0.0
    assert limiter.take(0.0, "read", 1000) == pytest.approx(0.25)
    # What moves no bytes is not held up by those who do.
    assert limiter.take(0.0, "write", 0) == 0.0
    assert limiter.take(0.0, "other") == 0.0


def test_what_is_larger_than_the_bucket_goes_when_it_is_full() -> None:
    limiter = Limiter(Limits(bytes={"read": 1000}), 0.0)
    assert limiter.take(0.0, "read", 5000) == 0.0
    # The debt of 4000 is worked off first, then the bucket fills.
    assert limiter.take(0.0, "read", 5000) == pytest.approx(5.0)
    assert limiter.take(0.0, "read", 1) == pytest.approx(9.001)
    refusing = Limiter(Limits(bytes={"read": 1000}, on_excess="refuse"), 0.0)
    assert refusing.take(0.0, "read", 5000) == 0.0
    assert refusing.take(4.5, "read", 5000) == REFUSED
    assert refusing.take(5.0, "read", 5000) == 0.0


def test_a_refusal_takes_nothing() -> None:
    limiter = Limiter(Limits(operations={"read": 2, "*": 3}, on_excess="refuse"), 0.0)
    assert [limiter.take(0.0, "read") for _ in range(2)] == [0.0, 0.0]
    assert [limiter.take(0.0, "read") for _ in range(5)] == [REFUSED] * 5
    # The star still has one: the refused ones did not take it.
    assert limiter.take(0.0, "write") == 0.0
    assert limiter.take(0.0, "write") == REFUSED
    assert limiter.take(0.5, "read") == 0.0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    limiter = Limiter(Limits(operations={"*": 1}), 100.0)
    assert limiter.take(100.0, "read") == 0.0
    assert limiter.take(50.0, "read") == pytest.approx(1.0)
    assert limiter.take(100.0, "read") == pytest.approx(2.0)


def test_a_change_keeps_what_was_used_up() -> None:
    limiter = Limiter(Limits(operations={"read": 10}), 0.0)
    for _ in range(10):
        limiter.take(0.0, "read")
    limiter.change(Limits(operations={"read": 100}), 0.0)
    assert limiter.take(0.0, "read") == pytest.approx(0.01)
    limiter.change(Limits(operations={"read": 100, "write": 5}, on_excess="refuse"), 0.0)
    assert limiter.take(0.0, "write") == 0.0
    assert limiter.take(0.0, "read") == REFUSED
    limiter.change(Limits(operations={"write": 5}), 0.0)
    assert limiter.take(0.0, "read") == 0.0
    limiter.change(Limits(), 0.0)
    assert limiter.unlimited
    # A limit that comes back is a new one.
    limiter.change(Limits(operations={"read": 1}), 0.0)
    assert limiter.take(0.0, "read") == 0.0


def test_a_bucket_is_as_full_after_a_change_of_its_size() -> None:
    limiter = Limiter(Limits(operations={"*": 10}), 0.0)
    for _ in range(5):
        limiter.take(0.0, "other")
    limiter.change(Limits(operations={"*": 0.1}), 0.0)
    assert limiter.take(0.0, "other") == pytest.approx(5.0)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_must_be_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Limiter(Limits(operations={"read": rate}), 0.0)


pauses = st.floats(0, 3)


def starts(limiter: Limiter, taken: list[tuple[float, int]]) -> list[float]:
    now, started = 0.0, []
    for pause, size in taken:
        now += pause
        wait = limiter.take(now, "read", size)
        assert wait >= 0.0
        started.append(now + wait)
    return started


@given(st.lists(pauses, min_size=1, max_size=60), st.sampled_from([0.5, 3, 20]), st.sampled_from([0.5, 1, 4]))
def test_never_more_operations_than_the_bucket_and_the_rate(taken: list[float], rate: float, span: float) -> None:
    started = starts(Limiter(Limits(operations={"*": rate}), 0.0), [(pause, 0) for pause in taken])
    assert started == sorted(started)
    for index, start in enumerate(started):
        within = [other for other in started[index:] if other < start + span]
        assert len(within) <= max(1.0, rate) + span * rate + 1
    # And everybody's turn comes, when those before have had theirs at the rate.
    assert started[-1] <= sum(taken) + len(taken) / rate


@given(st.lists(st.tuples(pauses, st.integers(0, 5000)), min_size=1, max_size=60), st.sampled_from([100, 1000]))
def test_never_more_bytes_than_the_bucket_and_the_rate(taken: list[tuple[float, int]], rate: int) -> None:
    limiter = Limiter(Limits(bytes={"read": rate}), 0.0)
    moved = [(start, size) for start, (_pause, size) in zip(starts(limiter, taken), taken, strict=True) if size]
    largest = max((size for _start, size in moved), default=0)
    for index, (start, _size) in enumerate(moved):
        within = sum(size for other, size in moved[index:] if other < start + 1)
        assert within <= rate + rate + largest + 1
    assert all(start <= sum(pause for pause, _ in taken) + sum(size for _, size in taken) / rate + 1 for start, _ in moved)


def test_a_wait_for_bytes_and_one_for_operations_go_on_at_once() -> None:
    limiter = Limiter(Limits(operations={"*": 1}, bytes={"*": 100}), 0.0)
    assert limiter.take(0.0, "read", 400) == 0.0
    # 4 s for the bytes and 1 s for the operation: 4 s, and after them the next operation's second has long been there.
    assert limiter.take(0.0, "read", 100) == pytest.approx(4.0)
    assert limiter.take(3.0, "read") == 0.0


def test_who_would_wait_too_long_is_refused_and_takes_nothing() -> None:
    limiter = Limiter(Limits(operations={"*": 10.0}), 0.0)
    for _ in range(15):
        limiter.take(0.0, "other")
    assert limiter.take(0.0, "other", longest=0.5) == REFUSED
    assert limiter.take(0.0, "other", longest=0.7) == pytest.approx(0.6)


def test_what_is_given_back_is_there_for_the_next_and_no_more_than_there_was() -> None:
    limiter = Limiter(Limits(operations={"write": 10.0}, bytes={"*": 100.0}), 0.0)
    assert limiter.take(0.0, "write", 100) == 0.0
    assert limiter.take(0.0, "write", 100) == pytest.approx(1.0)
    limiter.give_back("write", 100)
    limiter.give_back("write", 100)
    limiter.give_back("write", 100)
    assert limiter.take(0.0, "write", 100) == 0.0
    assert limiter.take(0.0, "write", 50) == pytest.approx(0.5)


def test_a_reservation_stands_behind_the_one_before_and_at_most_so_far_away() -> None:
    bucket = Bucket(10.0, 0.0)
    assert [bucket.reserve(0.0, 0.25) for _ in range(14)] == pytest.approx([0.0] * 10 + [0.1, 0.2, 0.25, 0.25])
    # Those that did not fit have taken nothing.
    assert bucket.reserve(1.0, 1.0) == 0.0
    assert Bucket(math.inf, 0.0).reserve(5.0, 1.0) == 0.0


# Limits of all of a tenant's sessions together.


def sharing(number: int, **limits: Any) -> list[Limiter]:
    """So many sessions of one tenant, as their processes have them."""
    numbers = array("d", bytes(SIZE))
    numbers[0] = number
    page = memoryview(numbers)
    return [Limiter(Limits(scope="tenant", **limits), 0.0, Shares(page, one)) for one in range(number)]


def test_what_is_each_session_s_is_not_shared() -> None:
    page = memoryview(array("d", bytes(SIZE)))
    limiters = [Limiter(Limits(operations={"*": 1}), 0.0, Shares(page, number)) for number in range(2)]
    assert [limiter.take(0.0, "read") for limiter in limiters] == [0.0, 0.0]
    # A tenant's limits, where nothing is shared, are the session's.
    alone = Limiter(Limits(operations={"*": 1}, scope="tenant"), 0.0)
    assert [alone.take(0.0, "read") for _ in range(2)] == [0.0, pytest.approx(1.0)]


def test_sessions_take_from_one_bucket() -> None:
    one, other = sharing(2, operations={"*": 10})
    assert not one.unlimited
    assert [one.take(5.0, "read") for _ in range(12)] == pytest.approx([0.0] * 10 + [0.1, 0.2])
    # The other one has its part of a second, half of it, and then waits as well: for its part, not behind all that one has taken.
    assert [other.take(5.002, "read") for _ in range(7)] == pytest.approx([0.0] * 5 + [0.2, 0.4])
    assert one.take(5.1, "read") == pytest.approx(0.3)
    # A second's worth, and no more, however many they are.
    assert [one.take(50.0, "read") for _ in range(11)] == [0.0] * 10 + [pytest.approx(0.1)]


def test_who_takes_little_does_not_wait_for_who_takes_much() -> None:
    greedy, modest = sharing(2, operations={"*": 100})
    waits, now = [], 10.0
    for _ in range(300):
        now += 0.01
        # As many as it can, and thirty more that wait.
        while greedy.take(now, "read", longest=0.3) != REFUSED:
            pass
        if round(now * 100) % 4 == 0:
            waits.append(modest.take(now, "read"))
    # Twenty-five a second, where its part is fifty.
    assert max(waits[25:]) == 0.0
    # And what it took was not given twice: the greedy one waits for it.
    assert greedy.take(now, "read") >= 0.3


def test_what_nobody_takes_is_for_everybody() -> None:
    alone, silent = sharing(2, operations={"read": 50}, bytes={"write": 1000})
    silent.take(10.0, "read")
    taken, now = 0, 10.0
    while now < 20.0:
        now += 0.01
        taken += alone.take(now, "read", longest=0.0) == 0.0
    assert taken == pytest.approx(50 * 11, abs=3)


def test_a_session_that_comes_anew_brings_nothing() -> None:
    numbers = array("d", bytes(SIZE))
    numbers[0] = 2
    limits = Limits(operations={"*": 10}, scope="tenant", on_excess="refuse")
    first = Limiter(limits, 0.0, Shares(memoryview(numbers), 0))
    assert [first.take(3.0, "write") for _ in range(11)] == [0.0] * 10 + [REFUSED]
    again = Limiter(limits, 3.01, Shares(memoryview(numbers), 0))
    assert again.take(3.01, "write") == REFUSED
    other = Limiter(limits, 3.02, Shares(memoryview(numbers), 1))
    assert other.take(3.02, "write") == REFUSED
    assert other.take(4.5, "write") == 0.0


def test_what_was_shared_is_given_back() -> None:
    one, other = sharing(2, bytes={"*": 100})
    assert one.take(1.0, "write", 100) == 0.0
    assert one.take(1.0, "write", 100) == pytest.approx(1.0)
    one.give_back("write", 100)
    assert other.take(2.0, "write", 100) == pytest.approx(0.0)


def test_a_policy_may_begin_to_share_and_cease_to() -> None:
    page = memoryview(array("d", bytes(SIZE)))
    limiter = Limiter(Limits(operations={"*": 1}), 0.0, Shares(page, 0))
    assert [limiter.take(1.0, "read") for _ in range(2)] == [0.0, pytest.approx(1.0)]
    limiter.change(Limits(operations={"*": 1}, scope="tenant"), 1.0)
    assert [limiter.take(1.0, "read") for _ in range(2)] == [0.0, pytest.approx(1.0)]
    # The same bucket at another rate, and the debt takes as long.
    limiter.change(Limits(operations={"*": 10}, scope="tenant"), 1.0)
    assert limiter.take(1.0, "read") == pytest.approx(1.1)
    limiter.change(Limits(operations={"*": 1}), 1.0)
    assert limiter.take(1.0, "read") == 0.0


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 0.5)), min_size=1, max_size=150), st.sampled_from([5, 50]),
)  # fmt: skip
def test_all_together_never_take_more_for_long(taken: list[tuple[int, float]], rate: float) -> None:
    limiters, now, started = sharing(4, operations={"*": rate}), 10.0, []
    for number, pause in taken:
        now += pause
        wait = limiters[number].take(now, "read")
        assert wait >= 0.0
        started.append(now + wait)
    # A second's worth at first, each one's part of a second while they become more, and the rate.
    parts = sum(1 / active for active in range(1, 5))
    assert len(started) <= rate * (1 + parts + max(started) - 10.0) + 4
