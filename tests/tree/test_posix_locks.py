"""The locks' table against fcntl(2)'s own splitting and joining, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.operations import Setlk
from fuse_gated.tree import posix_locks
from fuse_gated.tree.posix_locks import UNLOCK, WRITE, Held, PosixLocks


def taken(owner: int, start: int, end: int, kind: int, pid: int = 7) -> Setlk:
    return Setlk(1, 1, owner, start, end, kind, pid, False, False)


requests = st.lists(
    st.builds(
        lambda owner, one, two, kind: taken(owner, min(one, two), max(one, two), kind, 100 + owner),
        st.integers(1, 3), st.integers(0, 9), st.integers(0, 9), st.sampled_from([0, 1, UNLOCK]),
    ),
    max_size=12,
)  # fmt: skip


def test_who_has_wanted_a_lock_is_remembered() -> None:
    locks = PosixLocks()
    locks.restore(5, [])
    locks.wants(6)
    locks.restore(7, [Held(1, 0, 9, 1, 101)])
    locks.closed(7)
    assert [locks.is_wanted(place) for place in (5, 6, 7)] == [False, True, True]


def test_where_too_many_were_wanted_all_may_have_been(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix_locks, "MOST_REMEMBERED", 3)
    locks = PosixLocks()
    for place in range(10):
        assert locks.is_wanted(100) is (place >= 3)
        locks.wants(place)
    assert len(locks._wanted) == 3, "and no more memory is taken for it"


@given(requests)
def test_each_byte_is_whose_it_was_last_made(sequence: list[Setlk]) -> None:
    locks, model = PosixLocks(), {}
    for request in sequence:
        locks.changed(5, request)
        for byte in range(request.start, request.end + 1):
            model.pop((request.owner, byte), None)
            if request.type != UNLOCK:
                model[request.owner, byte] = request.type
    for owner in (1, 2, 3):
        assert locks.has(5, owner) == any(key[0] == owner for key in model)
        for byte in range(10):
            for kind in (0, 1):
                pid = locks.holder(5, 0, Held(0, byte, byte, kind, 0))
                holders = {100 + key[0] for key, value in model.items() if key[1] == byte and value == kind}
                assert pid in holders if holders else pid == 0


def test_an_owner_is_not_in_its_own_way() -> None:
    locks = PosixLocks()
    locks.changed(b"path", taken(1, 0, 9, 1))
    assert locks.holder(b"path", 1, Held(0, 0, 9, 1, 0)) == 0
    assert locks.holder(b"path", 2, Held(0, 3, 3, 1, 0)) == 7
    assert locks.holder(b"other", 2, Held(0, 3, 3, 1, 0)) == 0


def test_locks_are_known_by_the_handle_through_which_they_were_taken() -> None:
    locks = PosixLocks()
    for owner, handle in ((2, 5), (1, 5), (3, 6)):
        locks.changed(b"path", Setlk(1, handle, owner, 0, 9, 0, 7, False, False))
    locks.changed(b"path", Setlk(1, 6, 1, 4, 5, UNLOCK, 7, False, False))
    assert locks.through(b"path", 5) == [1, 2]
    assert locks.through(b"path", 6) == [3]
    assert locks.through(b"path", 7) == locks.through(b"other", 5) == []


def test_close_gives_up_the_owners_locks_and_no_others() -> None:
    locks = PosixLocks()
    locks.changed(5, taken(1, 0, 9, 0))
    locks.changed(5, taken(2, 0, 9, 0))
    locks.flushed(5, 1)
    assert not locks.has(5, 1)
    assert locks.has(5, 2)
    locks.flushed(5, 2)
    assert len(locks) == 0
    locks.changed(5, taken(2, 0, 9, 0))
    locks.closed(5)
    locks.closed(6)
    assert len(locks) == 0


@given(requests, st.integers(1, 3), st.integers(0, 9), st.integers(0, 9))
def test_who_excludes_all_others_has_each_byte_for_writing(asked: list[Setlk], owner: int, one: int, two: int) -> None:
    locks, writers = PosixLocks(), {}
    for request in asked:
        locks.changed(1, request)
        for byte in range(request.start, request.end + 1):
            writers[request.owner, byte] = request.type == WRITE
    start, end = min(one, two), max(one, two)
    assert locks.excludes_others(1, owner, start, end) == all(writers.get((owner, byte)) for byte in range(start, end + 1))
    assert not locks.excludes_others(2, owner, start, end)


@given(requests, st.integers(1, 3), st.integers(0, 9), st.integers(0, 9))
def test_the_parts_of_a_range_are_what_its_owner_has(asked: list[Setlk], owner: int, one: int, two: int) -> None:
    start, end = min(one, two), max(one, two)
    locks, has = PosixLocks(), dict.fromkeys(range(10), UNLOCK)
    for request in asked:
        locks.changed(1, request)
        if request.owner == owner:
            has.update(dict.fromkeys(range(request.start, request.end + 1), request.type))
    parts = locks.parts(1, owner, start, end)
    assert [kind for first, last, kind in parts for _ in range(first, last + 1)] == [has[at] for at in range(start, end + 1)]
    assert [first for first, _, _ in parts] == [start, *(last + 1 for _, last, _ in parts[:-1])]


def test_through_the_last_handle_all_are_given_up_and_through_another_only_those_of_nobody_elses() -> None:
    locks = PosixLocks()
    locks.restore(1, [Held(1, 0, 1, 1, 7, 5), Held(1, 2, 3, 1, 7, 6), Held(2, 4, 5, 1, 7, 5), Held(3, 6, 7, 1, 7, 6)])
    assert locks.through(1, 5) == [2]
    assert locks.through(1, 5, last=True) == [1, 2, 3]
