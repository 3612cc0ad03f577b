"""turnstile/figures.py: numbers that anybody may have written, read, subtracted and added."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.turnstile import measures
from fuse_gated.turnstile.figures import Figures, quantile
from fuse_gated.turnstile.measures import AT, BOUNDS, BUCKETS, MAGIC, SIZE, WORDS


def block(**words: int) -> bytes:
    """A block with some words of the session's set."""
    made = [0] * WORDS
    made[0] = MAGIC
    for name, value in words.items():
        made[getattr(measures, name)] = value
    return struct.pack(f"={WORDS}Q", *made)


def of_operations(*counts: tuple[str, int]) -> bytes:
    made = list(struct.unpack(f"={WORDS}Q", block()))
    for name, count in counts:
        made[AT[name] + measures.OWN_WHOLE + 3] = count
        made[measures.WHOLE + 3] += count
    return struct.pack(f"={WORDS}Q", *made)


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * SIZE, b"\1" * SIZE])
def test_what_is_no_block_is_zeros(data):
    figures = Figures.read(data)
    assert (figures.count, figures.operations, figures.in_flight, figures.hit_ratio) == (0, [], 0, None)


def test_a_block_s_beginning_is_enough():
    """Zeros at its end are not copied, and the byte that is cut may be any of a word's."""
    whole = block(BYTES_READ=5, CACHE_HITS=3, CACHE_MISSES=1)
    figures = Figures.read(whole.rstrip(b"\0"))
    assert (figures.bytes_read, figures.cache_hits, figures.hit_ratio) == (5, 3, 0.75)


@given(st.binary(max_size=300), st.integers(0, 4096 * 8))
def test_nothing_that_is_written_there_does_any_harm(noise, at):
    data = bytearray(struct.pack("=Q", MAGIC) + b"\xff" * 4000)
    data[8 + at : 8 + at + len(noise)] = noise
    figures = Figures.read(bytes(data))
    for number in (figures.count, figures.in_flight, figures.waiting, figures.bytes_read, figures.untold, figures.slow):
        assert 0 <= number <= 2**53 * BUCKETS
    for operation in figures.operations:
        assert operation.count > 0
        assert 0 <= operation.asked <= operation.count
        quantile(operation.whole, 0.99)
    figures.since(figures)
    Figures.sum([figures, figures])


def test_more_than_a_block_is_not_read():
    assert Figures.read(block(ERRORS=1) + b"\xff" * 100).errors == 1


def test_what_came_between_two_looks():
    before = Figures.read(of_operations(("lookup", 5), ("read", 1)))
    later = bytearray(of_operations(("lookup", 7), ("read", 1)))
    struct.pack_into("=Q", later, 8 * measures.IN_FLIGHT, 4)
    struct.pack_into("=Q", later, 8 * measures.WAITING, 2)
    come = Figures.read(bytes(later)).since(before)
    assert {one.name: one.count for one in come.operations} == {"lookup": 2}
    assert come.count == 2
    # Of the moment, and so not subtracted.
    assert (come.in_flight, come.waiting) == (4, 2)


def test_what_went_back_is_nothing():
    come = Figures.read(of_operations(("lookup", 1))).since(Figures.read(of_operations(("lookup", 5))))
    assert (come.count, come.operations) == (0, [])


def test_several_together():
    total = Figures.sum(Figures.read(of_operations(("lookup", count))) for count in (1, 2, 3))
    assert {one.name: one.count for one in total.operations} == {"lookup": 6}
    assert Figures.sum([]).count == 0


def test_the_rest_of_the_session_s_words():
    figures = Figures.read(
        block(
            BYTES_WRITTEN=1, BYTES_COPIED=2, ERRORS=3, FAULTS=4, REFUSED=5, UNTOLD=6, SLOW=7, WAITING=8, IN_FLIGHT=9,
            CACHE_MISSES=10,
        )
    )
    assert (figures.bytes_written, figures.bytes_copied, figures.errors, figures.faults) == (1, 2, 3, 4)
    assert (figures.refused, figures.untold, figures.slow, figures.waiting, figures.in_flight) == (5, 6, 7, 8, 9)
    assert (figures.cache_misses, figures.hit_ratio) == (10, 0.0)


# Quantiles.


def test_of_nothing_there_is_none():
    assert quantile([0] * BUCKETS, 0.5) is None


def test_within_a_bucket_by_a_straight_line():
    histogram = [0] * BUCKETS
    histogram[4] = 4
    assert quantile(histogram, 0.5) == pytest.approx((BOUNDS[3] + BOUNDS[4]) / 2)
    assert quantile(histogram, 1.0) == pytest.approx(BOUNDS[4])
    assert quantile(histogram, 0.0) == pytest.approx(BOUNDS[3])


def test_in_the_last_bucket_its_lower_bound():
    histogram = [0] * BUCKETS
    histogram[-1] = 1
    assert quantile(histogram, 0.5) == BOUNDS[-1]


def test_near_to_the_true_one():
    chance = random.Random(5)
    times = sorted(chance.lognormvariate(-8, 1) for _ in range(5000))
    histogram = [0] * BUCKETS
    for time in times:
        histogram[min((int(time * 1e9) >> measures.SHIFT).bit_length(), BUCKETS - 1)] += 1
    for part in (0.1, 0.5, 0.9, 0.99):
        assert quantile(histogram, part) == pytest.approx(times[int(part * len(times))], rel=0.3)
