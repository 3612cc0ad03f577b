"""flock(2) and fcntl(2)'s record locks, between processes of one machine."""

import fcntl
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.actor import Actor, actors
from harness.files import make, opened
from harness.log import DEADLINE
from harness.persona import outcome
from harness.waiting import until

EX, SH, UN, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB


@pytest.fixture
def path(area: Path) -> Path:
    path = make("file", area / "thing")
    path.write_bytes(b"0123456789" * 10)
    return path


@pytest.fixture
def two(path: Path) -> Iterator[tuple[Actor, Actor]]:
    """Two processes that have the file open as 'f'."""
    with actors(2) as cast:
        for actor in cast:
            actor.do("open", "f", path)
        yield cast[0], cast[1]


@pytest.mark.parametrize("kind", ["flock", "lock"])
@pytest.mark.parametrize(
    ("held", "asked", "expected"), [(EX, EX, "EAGAIN"), (EX, SH, "EAGAIN"), (SH, EX, "EAGAIN"), (SH, SH, "ok")]
)
def test_what_excludes_what(two: tuple[Actor, Actor], kind: str, held: int, asked: int, expected: str) -> None:
    one, other = two
    assert one.do(kind, "f", held) == "ok"
    assert other.do(kind, "f", asked | NB) == expected
    assert one.do(kind, "f", UN) == "ok"
    assert other.do(kind, "f", asked | NB) == "ok"


@pytest.mark.parametrize("kind", ["flock", "lock"])
@pytest.mark.parametrize("how", ["unlocks", "closes", "dies"])
def test_a_waiting_lock_is_given_when_the_holder(two: tuple[Actor, Actor], kind: str, how: str) -> None:
    one, other = two
    one.do(kind, "f", EX)
    other.tell(kind, "f", EX)
    other.wait_until_it_waits()
    if how == "unlocks":
        one.do(kind, "f", UN)
    elif how == "closes":
        one.do("close", "f")
    else:
        one.end()
    assert other.answer() == "ok"


@pytest.mark.parametrize("kind", ["flock", "lock"])
def test_a_waiting_lock_holds_nothing_else_up(two: tuple[Actor, Actor], kind: str, path: Path) -> None:
    one, other = two
    one.do(kind, "f", EX)
    other.tell(kind, "f", EX)
    other.wait_until_it_waits()
    assert path.read_bytes() == b"0123456789" * 10
    assert one.do("write", "f", b"written") == 7
    os.rename(path, path.with_name("renamed"))
    assert os.listdir(path.parent) == ["renamed"]
    assert other.waits()
    one.do(kind, "f", UN)
    assert other.answer() == "ok"


@pytest.mark.parametrize("kind", ["flock", "lock"])
def test_a_waiting_lock_is_interrupted_by_a_signal(two: tuple[Actor, Actor], kind: str) -> None:
    one, other = two
    one.do(kind, "f", EX)
    other.tell(kind, "f", EX)
    other.wait_until_it_waits()
    other.interrupt()
    assert other.answer() == "EINTR"
    one.do(kind, "f", UN)
    # What was interrupted must not have been granted behind the caller's back.
    assert one.do(kind, "f", EX | NB) == "ok"


def test_flock_belongs_to_the_open_file(path: Path) -> None:
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as two:
        copy = os.dup(one)
        fcntl.flock(one, EX | NB)
        fcntl.flock(copy, EX | NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, SH | NB)
        os.close(copy)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, SH | NB)
        fcntl.flock(one, SH | NB)
        fcntl.flock(two, SH | NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(one, EX | NB)


def test_flock_of_a_directory(area: Path) -> None:
    with opened(area, os.O_RDONLY) as one, opened(area, os.O_RDONLY) as two:
        fcntl.flock(one, EX | NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, EX | NB)


def test_flock_and_record_locks_know_nothing_of_each_other(two: tuple[Actor, Actor]) -> None:
    one, other = two
    assert one.do("flock", "f", EX | NB) == "ok"
    assert other.do("lock", "f", EX | NB) == "ok"


def test_record_locks_of_ranges(two: tuple[Actor, Actor]) -> None:
    one, other = two
    assert one.do("lock", "f", EX | NB, 10, 30) == "ok"
    assert one.do("lock", "f", UN, 20, 10) == "ok"
    for start, length, expected in (
        (0, 10, "ok"),
        (20, 10, "ok"),
        (40, 0, "ok"),
        (10, 1, "EAGAIN"),
        (39, 5, "EAGAIN"),
        (0, 0, "EAGAIN"),
    ):
        assert other.do("lock", "f", EX | NB, start, length) == expected, (start, length)
        if expected == "ok":
            other.do("lock", "f", UN, start, length)
    assert one.do("lock", "f", SH | NB, 0, 0) == "ok"
    assert other.do("lock", "f", SH | NB, 15, 5) == "ok"
    assert one.do("lock", "f", EX | NB, 15, 1) == "EAGAIN"


def test_record_locks_past_four_gibibytes(two: tuple[Actor, Actor]) -> None:
    one, other = two
    assert one.do("lock", "f", EX | NB, 2**40, 10) == "ok"
    assert other.do("lock", "f", EX | NB, 2**40 + 10, 0) == "ok"
    assert other.do("lock", "f", EX | NB, 0, 2**40) == "ok"
    assert other.do("lock", "f", EX | NB, 2**40 + 9, 1) == "EAGAIN"


def test_f_getlk_tells_the_lock_in_the_way(two: tuple[Actor, Actor]) -> None:
    one, other = two
    one.do("lock", "f", SH | NB, 10, 30)
    assert other.do("holder", "f", fcntl.F_WRLCK, 0, 0) == (fcntl.F_RDLCK, 10, 30, one.pid)
    assert other.do("holder", "f", fcntl.F_RDLCK, 0, 0)[0] == fcntl.F_UNLCK
    assert other.do("holder", "f", fcntl.F_WRLCK, 40, 0)[0] == fcntl.F_UNLCK
    assert one.do("holder", "f", fcntl.F_WRLCK, 0, 0)[0] == fcntl.F_UNLCK


def test_closing_any_descriptor_gives_up_the_processs_record_locks(two: tuple[Actor, Actor], path: Path) -> None:
    one, other = two
    one.do("lock", "f", EX | NB)
    one.do("open", "g", path, os.O_RDONLY)
    assert other.do("lock", "f", EX | NB) == "EAGAIN"
    one.do("close", "g")
    assert other.do("lock", "f", EX | NB) == "ok"


def test_a_read_lock_goes_with_a_descriptor_that_can_only_read(two: tuple[Actor, Actor], path: Path) -> None:
    """Twice: of the first such descriptor the kernel may have been asked to tell of its end alone (FOPEN_NOFLUSH), of the second
    it tells the close too."""
    one, other = two
    one.do("open", "r", path, os.O_RDONLY)
    assert one.do("lock", "r", SH | NB) == "ok"
    assert other.do("lock", "f", EX | NB) == "EAGAIN"
    one.do("close", "r")
    until(lambda: other.do("lock", "f", EX | NB) == "ok", "the lock has gone")
    other.do("lock", "f", UN)
    one.do("open", "again", path, os.O_RDONLY)
    assert one.do("lock", "again", SH | NB) == "ok"
    one.do("close", "again")
    assert other.do("lock", "f", EX | NB) == "ok"


def test_a_lock_of_the_open_file_goes_with_its_last_descriptor(path: Path) -> None:
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with opened(path, os.O_RDWR) as other:
        one = os.open(path, os.O_RDWR)
        again = os.dup(one)
        fcntl.fcntl(one, fcntl.F_OFD_SETLK, whole)
        os.close(one)
        assert outcome(fcntl.fcntl, other, fcntl.F_OFD_SETLK, whole) == "EAGAIN"
        os.close(again)
        # The kernel tells of a last close(2) without waiting for it (RELEASE), and libfuse's threads take it when they can.
        until(lambda: outcome(fcntl.fcntl, other, fcntl.F_OFD_SETLK, whole) != "EAGAIN", "the lock has gone")


def test_a_record_lock_needs_the_right_descriptor(two: tuple[Actor, Actor], path: Path) -> None:
    one, _ = two
    one.do("open", "r", path, os.O_RDONLY)
    one.do("open", "w", path, os.O_WRONLY)
    assert one.do("lock", "r", EX | NB) == "EBADF"
    assert one.do("lock", "w", SH | NB) == "EBADF"
    assert one.do("flock", "r", EX | NB) == "ok"
    assert one.do("flock", "w", SH | NB) == "EAGAIN"


def test_many_waiters_each_get_their_turn(path: Path) -> None:
    with actors(6) as cast:
        for actor in cast:
            actor.do("open", "f", path)
        cast[0].do("flock", "f", EX)
        for actor in cast[1:]:
            actor.tell("flock", "f", EX)
            actor.wait_until_it_waits()
        cast[0].do("flock", "f", UN)
        waiting = list(cast[1:])
        while waiting:
            ended, _, _ = select.select(waiting, [], [], DEADLINE)
            assert len(ended) == 1
            assert ended[0].answer() == "ok"
            waiting.remove(ended[0])
            assert ended[0].do("flock", "f", UN) == "ok"
