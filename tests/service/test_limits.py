"""What a tenant may cost: open files, the size of files, operations and bytes a second; each refusal with its record."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytest
from harness import Mounted, Server, Stage, digest, outcome
from harness.hostile import Child
from harness.parts import Parts
from harness.syscalls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate
from harness.waiting import records, told, until

from fuse_gated import control

LIMITS: Final[dict[str, dict[str, Any]]] = {
    "few": {"open_files": 3},
    "small": {"file_size": "8KiB"},
    "slow": {"operations": {"*": "100/s"}},
    "crawling": {"operations": {"*": "20/min"}},
    "slow-writes": {"operations": {"write": "20/s"}},
    "refused": {"operations": {"write": "10/s"}, "on_excess": "refuse"},
    "refused-bytes": {"bytes": {"write": "100KiB/s"}, "on_excess": "refuse"},
}


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    rule = {"path": "/**", "allow": ["read", "write", "delete"]}
    tenants = {
        name: {
            "tokens": [{"sha256": digest(name)}],
            "users": ["root"],
            "rules": [dict(rule, allow=list(rule["allow"]))],
            "limits": limits,
        }
        for name, limits in LIMITS.items()
    }
    return stage.server({"tenants": tenants})


@pytest.fixture
def limited(stage: Stage, server: Server) -> Callable[[str], Mounted]:
    """The mount of a tenant, made at its first use."""

    def mount(tenant: str) -> Mounted:
        if (stage.directory / f"export.{tenant}").exists():
            return MADE[tenant]
        MADE[tenant] = stage.mount(server=server, tenant=tenant, name=tenant)
        return MADE[tenant]

    return mount


MADE: Final[dict[str, Mounted]] = {}


def test_open_files(server: Server, limited: Callable[[str], Mounted]) -> None:
    mounted = limited("few")
    for name in "abcd":
        (mounted.export / name).touch()
    before = len(told(server))
    with contextlib.ExitStack() as stack:
        for name in "abc":
            stack.callback(os.close, os.open(mounted.path / name, os.O_RDONLY))
        assert outcome(os.open, mounted.path / "d", os.O_RDONLY) == "EMFILE"
        assert outcome(os.open, mounted.path / "e", os.O_CREAT | os.O_WRONLY) == "EMFILE"
        assert outcome(os.listdir, mounted.path) == "EMFILE"
        assert os.stat(mounted.path / "d").st_size == 0
        assert not (mounted.export / "e").exists()
    refusals = [record["FUSE_GATED_OPERATION"] for record in records(server, before, kind="limited", errno="EMFILE")]
    assert refusals == ["open", "create", "opendir"]
    # The kernel closes a file a moment after the program has.
    until(lambda: outcome(os.listdir, mounted.path) == "ok", "there is room again")


def grow_by_seek(descriptor: int) -> None:
    os.lseek(descriptor, 8192, os.SEEK_SET)
    os.write(descriptor, b"x")


def copy(descriptor: int) -> None:
    os.copy_file_range(descriptor, descriptor, 4096, 0, 8192)


GROWING: Final[dict[str, Callable[[int], object]]] = {
    "write": lambda descriptor: os.pwrite(descriptor, b"x" * 4097, 4096),
    "write past it": grow_by_seek,
    "truncate": lambda descriptor: os.ftruncate(descriptor, 8193),
    "fallocate": lambda descriptor: os.posix_fallocate(descriptor, 0, 8193),
    "fallocate unseen": lambda descriptor: fallocate(descriptor, FALLOC_KEEP_SIZE, 0, 8193),
    "copy": copy,
}


@pytest.mark.parametrize("how", GROWING)
def test_file_size(server: Server, limited: Callable[[str], Mounted], how: str) -> None:
    mounted = limited("small")
    name = how.replace(" ", "-")
    (mounted.export / name).write_bytes(b"y" * 4096)
    before = len(told(server))
    with open(mounted.path / name, "r+b", buffering=0) as opened:
        assert outcome(GROWING[how], opened.fileno()) == "EFBIG"
        assert os.pwrite(opened.fileno(), b"x" * 4096, 4096) == 4096
        fallocate(opened.fileno(), FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 0, 100_000)
    assert len(records(server, before, kind="limited", errno="EFBIG", path=f"/{name}")) == 1
    assert (mounted.export / name).stat().st_size == 8192


def test_a_file_that_is_too_large_already(server: Server, limited: Callable[[str], Mounted]) -> None:
    """The client made it: it can be read, made smaller, and changed within the limit."""
    mounted = limited("small")
    (mounted.export / "large").write_bytes(b"y" * 20_000)
    with open(mounted.path / "large", "r+b", buffering=0) as opened:
        assert len(os.pread(opened.fileno(), 20_000, 0)) == 20_000
        assert os.pwrite(opened.fileno(), b"x", 0) == 1
        assert outcome(os.pwrite, opened.fileno(), b"x", 10_000) == "EFBIG"
        assert outcome(os.ftruncate, opened.fileno(), 9000) == "EFBIG"
        os.ftruncate(opened.fileno(), 8192)


def look(path: Path, times: int) -> float:
    """The seconds that so many LOOKUPs take."""
    start = time.monotonic()
    for _ in range(times):
        outcome(os.stat, path / "nothing")
    return time.monotonic() - start


def test_too_many_operations_are_delayed(server: Server, limited: Callable[[str], Mounted]) -> None:
    """A second's worth goes at once, and every one after it takes its hundredth."""
    mounted = limited("slow")
    before = len(told(server))
    assert look(mounted.path, 300) >= 1.9
    assert records(server, before, kind="limited") == [], "who waits is not refused"


def test_what_is_delayed_holds_up_nothing_else(limited: Callable[[str], Mounted]) -> None:
    mounted = limited("slow-writes")

    def write(path: Path) -> None:
        with open(path, "wb", buffering=0) as opened:
            for _ in range(45):
                opened.write(b"x")

    with Child(write, mounted.path / "written") as writer:
        until(lambda: (mounted.export / "written").exists() and (mounted.export / "written").stat().st_size >= 20, "it writes")
        looked = 0
        while not writer.wait(0):
            look(mounted.path, 1)
            looked += 1
        writer.result()
    # Twenty-five writes at twenty a second: one that is held up by them looks once for each of them.
    assert looked > 50
    assert (mounted.export / "written").stat().st_size == 45


def test_what_is_delayed_can_be_interrupted_and_is_not_done(server: Server, limited: Callable[[str], Mounted]) -> None:
    mounted = limited("crawling")
    look(mounted.path, 1)
    start = time.monotonic()
    with Child(os.mkdir, mounted.path / "never") as program:
        until(program.waits_in_fuse, "it waits")
        program.send(signal.SIGINT)
        assert program.wait(10)
        assert time.monotonic() - start < 3.0, "at once, not when its turn comes"
        assert program.reap() == -signal.SIGINT
    session = next(one for one in control.call(str(server.runtime), "sessions") if one["export"] == "crawling")
    assert session["in_flight"] == 0
    look(mounted.path, 1)
    assert not (mounted.export / "never").exists()


def test_too_many_operations_are_refused(server: Server, limited: Callable[[str], Mounted]) -> None:
    mounted = limited("refused")
    before = len(told(server))
    start = time.monotonic()
    with open(mounted.path / "f", "wb", buffering=0) as opened:
        heard = [outcome(os.write, opened.fileno(), b"x") for _ in range(40)]
    seconds = time.monotonic() - start
    assert set(heard) == {"ok", "EAGAIN"}
    assert heard[:10] == ["ok"] * 10
    assert heard.count("ok") <= 11 + 10 * seconds
    assert len(records(server, before, kind="limited", errno="EAGAIN", operation="write")) == heard.count("EAGAIN")
    assert (mounted.export / "f").stat().st_size == heard.count("ok")


def test_too_many_bytes_are_refused(server: Server, limited: Callable[[str], Mounted]) -> None:
    mounted = limited("refused-bytes")
    before = len(told(server))
    start = time.monotonic()
    with open(mounted.path / "f", "wb", buffering=0) as opened:
        heard = [outcome(os.write, opened.fileno(), b"x" * 40_960) for _ in range(40)]
        assert os.write(opened.fileno(), b"") == 0
    seconds = time.monotonic() - start
    assert heard[:2] == ["ok", "ok"]
    assert "EAGAIN" in heard[2:]
    assert heard.count("ok") <= 3 + 2.5 * seconds
    assert len(records(server, before, kind="limited", errno="EAGAIN")) == heard.count("EAGAIN")
    assert (mounted.export / "f").stat().st_size == 40_960 * heard.count("ok")


def _pair(stage: Stage, name: str, **limits: Any) -> list[Mounted]:
    """Two sessions of one tenant of a server of their own."""
    server = stage.server(stage.tenant(limits=limits))
    return [stage.mount(server=server, name=f"{name}{number}") for number in range(2)]


def test_a_tenants_limit_is_for_all_its_sessions_together(own_stage: Stage) -> None:
    one, other = _pair(own_stage, "all", operations={"write": "40/s"}, on_excess="refuse", scope="tenant")

    def count(path: Path) -> tuple[int, float]:
        start, done = time.monotonic(), 0
        with open(path / "f", "wb", buffering=0) as opened:
            while time.monotonic() < start + 2.5:
                done += outcome(os.write, opened.fileno(), b"x") == "ok"
        return done, time.monotonic() - start

    with Child(count, one.path) as first, Child(count, other.path) as second:
        results = [first.result(), second.result()]
    seconds = max(passed for _, passed in results)
    done = [number for number, _ in results]
    # A second's worth, twice half a second's at most while there came to be two, and the rate: not twice of all that.
    assert sum(done) <= 40 * (seconds + 2) + 2
    assert sum(done) >= 40 * 2
    # Neither one starves.
    assert min(done) >= 40


def test_who_keeps_within_its_part_does_not_wait_for_the_greedy(own_stage: Stage) -> None:
    greedy, modest = _pair(own_stage, "fair", operations={"write": "100/s"}, scope="tenant")

    def write(path: Path) -> None:
        with open(path / "f", "wb", buffering=0) as opened:
            for _ in range(250):
                opened.write(b"x")

    with Child(write, greedy.path) as one, Child(write, greedy.path) as two, open(modest.path / "f", "wb", buffering=0) as opened:
        until(lambda: (greedy.export / "f").stat().st_size >= 110, "there is no room any more")
        start = time.monotonic()
        # Its part is fifty a second.
        for _ in range(20):
            opened.write(b"x")
        seconds = time.monotonic() - start
        assert not one.wait(0), "the others were held up meanwhile"
        one.result()
        two.result()
    assert seconds < 1.0, "not one a hundredth of a second, behind two others that wait"


def test_a_limit_is_as_used_up_for_a_session_that_comes_anew(own_stage: Stage) -> None:
    limits = {"operations": {"write": "0.05/s"}, "on_excess": "refuse", "scope": "tenant"}
    server = own_stage.server(own_stage.tenant(limits=limits))
    first = own_stage.mount(server=server, name="first")
    with open(first.path / "f", "wb", buffering=0) as opened:
        assert [outcome(os.write, opened.fileno(), b"x") for _ in range(2)] == ["ok", "EAGAIN"]
    first.client.stop()
    second = own_stage.mount(server=server, name="second")
    with open(second.path / "f", "wb", buffering=0) as opened:
        assert outcome(os.write, opened.fileno(), b"x") == "EAGAIN"


def test_only_a_tenants_own_sessions_share_their_counts(own_stage: Stage) -> None:
    policy = {"tenants": {**own_stage.tenant("acme")["tenants"], **deepcopy(own_stage.tenant("eve")["tenants"])}}
    server = own_stage.server(policy)
    pages = []
    for tenant, name in (("acme", "one"), ("acme", "two"), ("eve", "three")):
        own_stage.mount(server=server, tenant=tenant, name=name)
        pages.append(page_of(Parts(server).worker))
    assert pages[0] == pages[1]
    assert pages[2] != pages[0]


def page_of(pid: int) -> int:
    """Which memory it is (its inode) that a worker shares with others."""
    [page] = [
        os.stat(f"/proc/{pid}/fd/{number}").st_ino
        for number in os.listdir(f"/proc/{pid}/fd")
        if os.readlink(f"/proc/{pid}/fd/{number}").startswith("/memfd:fuse-gated-shares")
    ]
    return page
