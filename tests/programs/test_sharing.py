"""Two processes and one file: shared maps, appends, and locks between a program on the server and one on the client."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Work
from harness.actor import Actor, actors
from harness.files import make
from harness.waiting import until

EX, SH, UN, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB


@pytest.fixture
def pair() -> Iterator[tuple[Actor, Actor]]:
    with actors(2) as cast:
        yield cast[0], cast[1]


def test_a_shared_map_is_one_memory_for_two_processes(work: Work, pair: tuple[Actor, Actor]) -> None:
    one, two = pair
    (work.path / "shared").write_bytes(bytes(16_384))
    for actor in pair:
        actor.do("open", "f", work.path / "shared")
        actor.do("map", "f", 16_384)
    for number in range(20):
        text = f"message {number}".encode()
        one.do("store", "f", number * 700, text)
        assert two.do("load", "f", number * 700, number * 700 + len(text)) == text
    two.do("store", "f", 16_380, b"end!")
    one.do("msync", "f")
    two.do("msync", "f")
    content = (work.behind / "shared").read_bytes()
    assert content[16_380:] == b"end!"
    assert content[19 * 700 :].startswith(b"message 19")
    assert (work.path / "shared").read_bytes() == content


def test_a_map_and_write_see_each_other(work: Work, pair: tuple[Actor, Actor]) -> None:
    one, two = pair
    (work.path / "shared").write_bytes(b"a" * 8192)
    for actor in pair:
        actor.do("open", "f", work.path / "shared")
    one.do("map", "f", 8192)
    assert one.do("load", "f", 0, 4) == b"aaaa"
    two.do("write", "f", b"written")
    assert one.do("load", "f", 0, 8) == b"writtena"
    one.do("store", "f", 4096, b"stored")
    assert two.do("read", "f", 6, 4096) == b"stored"


def test_a_map_closed_without_msync_reaches_the_client(work: Work) -> None:
    path = make("file", work.path / "shared")
    path.write_bytes(bytes(4096))
    with actors(1) as (actor,):
        actor.do("open", "f", path)
        actor.do("map", "f", 4096)
        actor.do("close", "f")
        actor.do("store", "f", 0, b"stored after close")
    until(lambda: (work.behind / "shared").read_bytes()[:18] == b"stored after close", "it is on the client")


def _lines(writer: str, number: int) -> list[bytes]:
    return [f"{writer} {index:05} ".encode().ljust(100, b".") + b"\n" for index in range(number)]


@pytest.mark.parametrize("sides", [("path", "path"), ("path", "behind")], ids=["both-on-the-server", "one-on-each-side"])
def test_appends_of_two_processes_lose_nothing(work: Work, pair: tuple[Actor, Actor], sides: tuple[str, str]) -> None:
    make("file", work.behind / "log")
    for actor, side in zip(pair, sides, strict=True):
        actor.do("open", "f", getattr(work, side) / "log", os.O_WRONLY | os.O_APPEND)
    wanted = {0: _lines("one", 500), 1: _lines("two", 500)}
    for number, actor in enumerate(pair):
        actor.tell("append", "f", wanted[number])
    for actor in pair:
        actor.answer()
        actor.do("close", "f")
    content = (work.behind / "log").read_bytes()
    assert len(content) == 1000 * 101
    lines = content.splitlines(keepends=True)
    assert [line for line in lines if line.startswith(b"one")] == wanted[0]
    assert [line for line in lines if line.startswith(b"two")] == wanted[1]
    assert (work.path / "log").read_bytes() == content


@pytest.mark.parametrize("kind", [pytest.param("flock", marks=pytest.mark.beyond_libfuse("flock")), "lock"])
@pytest.mark.parametrize("holder", ["server", "client"])
class TestLocksAcross:
    """A program on the server and one on the client exclude each other, whichever was first."""

    @pytest.fixture
    def cast(self, work: Work, pair: tuple[Actor, Actor], holder: str) -> tuple[Actor, Actor]:
        """(holder, other), each with the file open as 'f' on its side."""
        (work.behind / "locked").write_bytes(b"content")
        first, second = (work.path, work.behind) if holder == "server" else (work.behind, work.path)
        pair[0].do("open", "f", first / "locked")
        pair[1].do("open", "f", second / "locked")
        return pair

    def test_excludes(self, cast: tuple[Actor, Actor], kind: str) -> None:
        one, two = cast
        assert one.do(kind, "f", EX | NB) == "ok"
        assert two.do(kind, "f", EX | NB) == "EAGAIN"
        assert two.do(kind, "f", SH | NB) == "EAGAIN"
        assert one.do(kind, "f", SH | NB) == "ok"
        # What a program on the server gives up is free on the client one way of the line later (docs/production/caching.md).
        until(lambda: two.do(kind, "f", SH | NB) == "ok", "it may be shared")
        assert one.do(kind, "f", EX | NB) == "EAGAIN"
        assert two.do(kind, "f", UN) == "ok"
        until(lambda: one.do(kind, "f", EX | NB) == "ok", "it is free")

    @pytest.mark.parametrize("how", ["unlocks", "closes", "dies"])
    def test_a_waiter_gets_it_when_the_holder(self, cast: tuple[Actor, Actor], kind: str, how: str) -> None:
        one, two = cast
        one.do(kind, "f", EX)
        two.tell(kind, "f", EX)
        two.wait_until_it_waits()
        {"unlocks": lambda: one.do(kind, "f", UN), "closes": lambda: one.do("close", "f"), "dies": one.end}[how]()
        assert two.answer() == "ok"

    def test_a_waiter_holds_nothing_up(self, cast: tuple[Actor, Actor], kind: str, work: Work) -> None:
        one, two = cast
        one.do(kind, "f", EX)
        two.tell(kind, "f", EX)
        two.wait_until_it_waits()
        for number in range(50):
            (work.path / f"other-{number}").write_text("not held up")
            assert (work.path / "locked").read_bytes() == b"content"
        assert len(os.listdir(work.path)) == 51
        assert two.waits()
        one.do(kind, "f", UN)
        assert two.answer() == "ok"

    def test_a_waiter_is_interrupted(self, cast: tuple[Actor, Actor], kind: str) -> None:
        one, two = cast
        one.do(kind, "f", EX)
        two.tell(kind, "f", EX)
        two.wait_until_it_waits()
        two.interrupt()
        assert two.answer() == "EINTR"
        one.do(kind, "f", UN)
        assert one.do(kind, "f", EX | NB) == "ok"


def test_record_locks_of_ranges_across(work: Work, pair: tuple[Actor, Actor]) -> None:
    one, two = pair
    (work.behind / "locked").write_bytes(bytes(100))
    one.do("open", "f", work.path / "locked")
    two.do("open", "f", work.behind / "locked")
    assert one.do("lock", "f", EX | NB, 10, 10) == "ok"
    assert two.do("lock", "f", EX | NB, 20, 10) == "ok"
    assert two.do("lock", "f", EX | NB, 19, 1) == "EAGAIN"
    assert one.do("lock", "f", SH | NB, 25, 1) == "EAGAIN"
    assert two.do("holder", "f", fcntl.F_WRLCK, 0, 0)[:3] == (fcntl.F_WRLCK, 10, 10)
    assert one.do("holder", "f", fcntl.F_WRLCK, 20, 0)[:3] == (fcntl.F_WRLCK, 20, 10)


def test_flock_of_the_shell(work: Work, tmp_path: Path) -> None:
    """flock(1) counts up a file a hundred times from four processes."""
    counter = work.path / "counter"
    counter.write_text("0")
    script = f"for i in $(seq 25); do flock {work.path}/lock sh -c 'n=$(cat {counter}); echo $((n + 1)) > {counter}'; done"
    shells = [subprocess.Popen(["sh", "-c", script]) for _ in range(4)]
    assert [shell.wait(60) for shell in shells] == [0] * 4
    assert (work.behind / "counter").read_text() == "100\n"
