"""Positions in a listing that need no memory."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fuse_gated.tree import telldir
from fuse_gated.tree.telldir import OURS, in_order, positions

NAMES = some.sets(some.binary(min_size=1, max_size=12), max_size=60)


@given(NAMES)
def test_each_has_a_position_of_its_own_and_they_ascend(names):
    found = positions(in_order(names))
    assert len(found) == len(names)
    assert all(one < other for one, other in pairwise(found))
    assert all(OURS <= position < 2 * OURS + len(names) for position in found)


@given(NAMES, NAMES)
def test_what_comes_and_goes_moves_nobody_else(names, others):
    """But for those of one hash, which are not met here by chance."""
    here = dict(zip(in_order(names), positions(in_order(names)), strict=True))
    both = names | others
    there = dict(zip(in_order(both), positions(in_order(both)), strict=True))
    assert {name: there[name] for name in here} == here


@given(some.lists(some.binary(min_size=1, max_size=12), max_size=60, unique=True))
def test_the_order_is_that_of_the_names_alone(names):
    assert in_order(names) == in_order(reversed(names))


def test_names_of_one_hash_have_an_order_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(telldir, "crc32", lambda name: 2**32 - 1 if name != b"first" else 0)
    names = in_order([b"c", b"first", b"a", b"b"])
    assert names == [b"first", b"a", b"b", b"c"]
    assert positions(names) == [OURS, 2 * OURS - 1, 2 * OURS, 2 * OURS + 1]
    assert positions(names)[-1] <= telldir.LAST
