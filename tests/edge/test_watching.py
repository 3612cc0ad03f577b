import errno
import mmap
import os
import select
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import need

from fuse_gated.edge import syscalls, watching
from fuse_gated.edge.attributes import attributes
from fuse_gated.edge.beneath import Beneath
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.watches import Watches
from fuse_gated.edge.watching import Watching
from fuse_gated.operations import Attributes
from fuse_gated.wire.messages import Notice

MOST_EVENTS = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


class Told:
    """What a server is told. `known` is what it makes of it, and `gone` the directories that it takes for unwatched."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loop = Loop()
        self.beneath = Beneath(os.fsencode(root))
        self.watches = Watches(self.beneath)
        self.queued = 0
        self.short = 0
        self.notices: list[Notice] = []
        self.watching = Watching(self.loop, self.watches, self.notices.append, lambda: self.queued, self._short)

    def _short(self) -> None:
        self.short += 1

    def watch(self, *paths: bytes) -> None:
        for path in paths:
            assert self.watches.watch(path) is not None

    def turn(self) -> list[Notice]:
        """What one turn of the loop tells, if there is anything to be done."""
        before = len(self.notices)
        if select.select([self.watches], [], [], 0)[0] or self.watching._timer is not None:
            self.loop.turn()
        return self.notices[before:]

    def settle(self) -> list[tuple[bytes, Attributes | None]]:
        """All that is told until there is nothing more to tell, each path as often as it was told."""
        before = len(self.notices)
        while select.select([self.watches], [], [], 0)[0] or self.watching._timer is not None:
            self.loop.turn()
        return said(self.notices[before:])

    def now(self, path: str) -> Attributes:
        return attributes((self.root / path).lstat())

    def close(self) -> None:
        self.watching.stop()
        self.watches.close()
        self.beneath.close()
        self.loop.close()


def said(notices: list[Notice]) -> list[tuple[bytes, Attributes | None]]:
    return [pair for notice in notices for pair in zip(notice.paths, notice.attributes, strict=True)]


@pytest.fixture
def told(root: Path) -> Iterator[Told]:
    (root / "a" / "b").mkdir(parents=True)
    (root / "z").mkdir()
    (root / "a" / "file").write_text("text")
    told = Told(root)
    yield told
    told.close()


# What is told.


def test_a_change_is_told_with_what_it_led_to(told: Told, root: Path) -> None:
    told.watch(b"a")
    (root / "a" / "file").write_text("longer than before")
    assert dict(told.settle()) == {b"a/file": told.now("a/file")}
    (root / "a" / "file").chmod(0o600)
    assert dict(told.settle()) == {b"a/file": told.now("a/file")}


def test_a_name_that_comes_or_goes_changes_its_directory(told: Told, root: Path) -> None:
    told.watch(b"a")
    (root / "a" / "new").symlink_to("file")
    assert dict(told.settle()) == {b"a": told.now("a"), b"a/new": told.now("a/new")}
    (root / "a" / "new").unlink()
    assert dict(told.settle()) == {b"a": told.now("a"), b"a/new": None}
    (root / "a" / "file").rename(root / "a" / "other")
    assert dict(told.settle()) == {b"a": told.now("a"), b"a/file": None, b"a/other": told.now("a/other")}
    (root / "a" / "d").mkdir()
    assert dict(told.settle()) == {b"a": told.now("a"), b"a/d": told.now("a/d")}
    assert told.now("a").nlink == 4 or told.now("a").nlink == 1  # As the filesystem counts.


def test_what_is_written_through_a_mapping_is_told_when_it_ends(told: Told, root: Path) -> None:
    told.watch(b"a")
    with (root / "a" / "file").open("r+b") as file, mmap.mmap(file.fileno(), 4) as mapping:
        mapping[0] = ord("T")
        mapping.flush()
        assert told.settle() == []
    assert dict(told.settle()) == {b"a/file": told.now("a/file")}


def test_only_what_is_watched_is_told(told: Told, root: Path) -> None:
    told.watch(b"a")
    (root / "z" / "new").touch()
    (root / "a" / "b" / "new").touch()
    assert told.settle() == []
    told.watches.unwatch([b"a"])
    (root / "a" / "new").touch()
    assert told.settle() == []


def test_what_is_written_by_another_name_elsewhere_is_not_told(told: Told, root: Path) -> None:
    """Which is why a file with several names is not to be remembered, and why there is a hint to it: its new name's notice."""
    told.watch(b"a", b"z")
    (root / "z" / "other").hardlink_to(root / "a" / "file")
    found = dict(told.settle())
    other = found[b"z/other"]
    assert other is not None
    assert (other.inode, other.nlink) == (told.now("a/file").inode, 2)
    assert b"a/file" not in found
    with (root / "z" / "other").open("w") as file:
        file.write("changed")
    assert set(dict(told.settle())) == {b"z/other"}


# As often as it is told.


def test_a_path_that_goes_on_changing_is_told_now_and_then_and_in_the_end(told: Told, root: Path) -> None:
    told.watch(b"a")
    with (root / "a" / "file").open("ab", buffering=0) as file:
        file.write(b"1")
        first = said(told.turn())
        assert first == [(b"a/file", told.now("a/file"))]
        for _ in range(100):
            file.write(b"more")
            assert select.select([told.watches], [], [], 10)[0]
            told.watching._readable(0)
        assert len(told.notices) == 1
        assert told.settle() == [(b"a/file", told.now("a/file"))]


def test_what_changes_in_one_turn_is_told_in_one_notice(told: Told, root: Path) -> None:
    told.watch(b"a")
    for number in range(100):
        (root / "a" / f"n{number}").write_text("text")
        (root / "a" / f"n{number}").chmod(0o600)
    [notice] = told.turn()
    assert sorted(notice.paths) == sorted([b"a", *(b"a/n%d" % number for number in range(100))])
    assert told.settle() == []


def test_many_small_changes_are_collected_by_the_kernel(told: Told, root: Path) -> None:
    told.watch(b"a")
    told.watching._reads = watching._READS_IN_A_TICK - 1
    (root / "a" / "n0").touch()
    assert told.turn()
    (root / "a" / "n1").touch()
    assert not told.loop._epoll.poll(0)
    assert dict(told.settle())[b"a/n1"] == told.now("a/n1")
    (root / "a" / "n2").touch()
    assert said(told.turn())[-1][0] == b"a/n2"


def test_a_turn_of_the_loop_tells_only_so_much(told: Told, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MOST_AT_ONCE", 64)
    told.watching._room = 64
    told.watch(b"a")
    for number in range(500):
        (root / "a" / f"n{number}").touch()
    while len(said(told.notices)) < 501:
        assert len(said(told.turn())) <= 64
    assert dict(said(told.notices)).keys() == {b"a", *(b"a/n%d" % number for number in range(500))}


def test_long_paths_are_told_in_several_frames(told: Told, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_FRAME_SIZE", 1000)
    told.watch(b"a")
    for number in range(20):
        (root / "a" / (f"{number:03}" * 60)).touch()
    notices = told.turn()
    assert len(notices) > 3
    assert all(len(notice.paths) == len(notice.attributes) <= 5 for notice in notices)
    assert len(said(notices)) == 21


def test_a_server_that_does_not_read_is_told_later(told: Told, root: Path) -> None:
    told.watch(b"a")
    told.queued = watching.MOST_QUEUED + 1
    (root / "a" / "file").write_text("first")
    for _ in range(3):
        assert told.turn() == []
    (root / "a" / "file").write_text("second")
    told.queued = 0
    assert dict(told.settle()) == {b"a/file": told.now("a/file")}


# Directories that move.


def test_a_watched_directory_that_moves_is_gone_with_all_beneath(told: Told, root: Path) -> None:
    told.watch(b"a/b", b"z")
    (root / "a").rename(root / "z" / "a")
    found = dict(told.settle())
    assert found == {b"": told.now(""), b"a": None, b"z": told.now("z"), b"z/a": told.now("z/a")}
    assert len(told.watches) == 2
    (root / "z" / "a" / "b" / "new").touch()
    assert told.settle() == []


def test_one_that_is_replaced_by_another_is_told_of_as_gone_first(told: Told, root: Path) -> None:
    told.watch(b"a/b")
    (root / "a").rename(root / "old")
    (root / "z").rename(root / "a")
    found = [pair for pair in told.settle() if pair[0] == b"a"]
    assert found == [(b"a", None), (b"a", told.now("a"))]
    assert len(told.watches) == 1


def test_one_that_was_removed_and_made_anew_is_told_of_as_gone_first(told: Told, root: Path) -> None:
    told.watch(b"z")
    (root / "z").rmdir()
    (root / "z").mkdir()
    assert [pair for pair in told.settle() if pair[0] == b"z"] == [(b"z", None), (b"z", told.now("z"))]
    assert told.watches.watched(b"z") is None


def test_two_that_change_places(told: Told, root: Path) -> None:
    told.watch(b"a/b", b"z")
    syscalls.renameat2(told.beneath.root, b"a", told.beneath.root, b"z", syscalls.RENAME_EXCHANGE)
    found = told.settle()
    assert [pair for pair in found if pair[0] == b"a"] == [(b"a", None), (b"a", told.now("a"))]
    assert [pair for pair in found if pair[0] == b"z"] == [(b"z", None), (b"z", told.now("z"))]
    assert len(told.watches) == 1


def test_one_that_came_back_is_still_watched(told: Told, root: Path) -> None:
    told.watch(b"a/b")
    (root / "a").rename(root / "c")
    (root / "c").rename(root / "a")
    assert dict(told.settle()) == {b"": told.now(""), b"a": told.now("a"), b"c": None}
    (root / "a" / "b" / "new").touch()
    assert dict(told.settle()) == {b"a/b": told.now("a/b"), b"a/b/new": told.now("a/b/new")}


def test_a_move_is_told_at_once_although_the_path_has_just_been_told(told: Told, root: Path) -> None:
    told.watch(b"a")
    (root / "a" / "new").touch()
    assert told.turn()
    (root / "a").rename(root / "c")
    assert dict(said(told.turn()))[b"a"] is None


def test_a_tree_that_is_removed(told: Told, root: Path) -> None:
    told.watch(b"a/b")
    shutil.rmtree(root / "a")
    found = dict(told.settle())
    assert found == {b"": told.now(""), b"a": None, b"a/b": None, b"a/file": None}
    assert len(told.watches) == 1


# What cannot be told.


def test_events_that_were_lost_end_all_watches(told: Told, root: Path) -> None:
    told.watch(b"a")
    for _ in range(MOST_EVENTS // 2 + 1):
        # Two events, and not the same one twice in succession, which would be folded.
        os.utime(root / "a" / "file")
        os.truncate(root / "a" / "file", 0)
    told.settle()
    assert told.notices[-1] == Notice((), (), True)
    assert [notice.overflow for notice in told.notices].count(True) == 1
    assert len(told.watches) == 0
    (root / "a" / "new").touch()
    assert told.settle() == []
    told.watch(b"a")
    (root / "a" / "newer").touch()
    assert dict(told.settle()) == {b"a": told.now("a"), b"a/newer": told.now("a/newer")}


def test_more_than_can_wait_ends_all_watches(told: Told, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MOST_WAITING", 50)
    told.watch(b"a")
    told.queued = watching.MOST_QUEUED + 1
    for number in range(51):
        (root / "a" / f"n{number}").touch()
    told.settle()
    assert told.notices == [Notice((), (), True)]
    assert len(told.watches) == 0


def test_what_cannot_be_looked_at_ends_all_watches(told: Told, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told.watch(b"a")

    def refused(path: bytes) -> Attributes | None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(told.watches, "look", refused)
    (root / "a" / "new").touch()
    told.settle()
    assert told.notices == [Notice((), (), True)]
    assert len(told.watches) == 0


def test_what_is_mounted_beneath_ends_all_watches(told: Told, root: Path, tmp_path: Path) -> None:
    need("root")
    (tmp_path / "outside").mkdir()
    told.watch(b"a")
    mount(tmp_path / "outside")
    try:
        # Polled, mountinfo tells of a change once: this turn is the only one that hears of it.
        told.loop.turn()
        assert told.notices == []
    finally:
        unmount(tmp_path / "outside")
    told.loop.turn()
    mount(root / "a" / "b")
    try:
        told.loop.turn()
        assert told.notices == [Notice((), (), True)]
        assert told.watches.watch(b"a/b") is None
        told.watch(b"a")
    finally:
        unmount(root / "a" / "b")
    told.loop.turn()
    assert len(told.notices) == 2
    told.watch(b"a/b")


def mount(directory: Path) -> None:
    assert syscalls._libc.mount(b"none", os.fsencode(directory), b"tmpfs", 0, None) == 0


def unmount(directory: Path) -> None:
    assert syscalls._libc.umount2(os.fsencode(directory), 2) == 0


# The end.


def test_with_the_connection_all_watches_are_lost(told: Told, root: Path) -> None:
    told.watch(b"a")
    (root / "a" / "file").write_text("more")
    told.watching.reset()
    assert told.settle() == []
    (root / "a" / "file").write_text("still more")
    assert told.settle() == []
    told.watch(b"a")
    (root / "a" / "file").write_text("again")
    assert dict(told.settle()) == {b"a/file": told.now("a/file")}


def test_a_shortage_is_said_once(told: Told) -> None:
    told.watches.most = 1
    for _ in range(3):
        assert told.watches.watch(b"a") is None
    told.loop.turn()
    assert told.short == 1


def test_without_inotify_the_rest_goes_on(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(syscalls, "inotify_init", refused)
    told.watch(b"a")
    told.watching.reset()
    assert told.short == 1
    assert told.watches.watch(b"a") is None
    told.watching.reset()


def test_stopped_twice(told: Told, root: Path) -> None:
    told.watch(b"a")
    (root / "a" / "file").write_text("more")
    assert told.turn()
    told.watching.stop()
    told.watching.stop()
    told.watching.reset()
    assert len(told.notices) == 1


# Before somebody hears that he has a lock.


def test_what_has_happened_until_now_is_told_at_once(told: Told, root: Path) -> None:
    told.watch(b"a")
    assert told.watching.catch_up()
    assert told.notices == []
    for content in ("one", "three", "thirteen"):
        (root / "a" / "file").write_text(content)
        assert told.watching.catch_up()
        assert said(told.notices)[-1] == (b"a/file", told.now("a/file")), "in one tick, each time"
    (root / "a" / "file").write_text("again")
    told.loop.turn()
    (root / "a" / "file").write_text("at last")
    (root / "a" / "new").touch()
    told.loop.turn()
    assert told.watching.catch_up()
    assert dict(said(told.notices))[b"a/file"] == told.now("a/file")
    assert dict(said(told.notices))[b"a/new"] == told.now("a/new")
    told.settle()


def test_nobody_waits_for_more_than_can_be_told_now(told: Told, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told.watch(b"a")
    told.queued = watching.MOST_QUEUED + 1
    (root / "a" / "new").touch()
    assert not told.watching.catch_up()
    told.queued = 0
    assert told.watching.catch_up()
    monkeypatch.setattr(watching, "_READS_TO_CATCH_UP", 2)
    monkeypatch.setattr(watching, "_READ_SIZE", 64)
    for number in range(4):
        (root / "a" / f"more{number}").touch()
    assert not told.watching.catch_up()
    told.settle()
    assert told.watching.catch_up()


def test_when_events_were_lost_everything_is_told_by_that(told: Told, root: Path) -> None:
    told.watch(b"a")
    for number in range(MOST_EVENTS + 1):
        os.utime(root / "a" / ("file" if number % 2 else "b"))
    while not told.watching.catch_up():
        pass
    assert told.notices[-1].overflow is True or any(notice.overflow for notice in told.notices)


def test_without_inotify_there_is_nothing_to_be_told(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "inotify_init", _refused)
    told.watching.reset()
    assert told.watching.catch_up()


def _refused() -> int:
    raise OSError(errno.EMFILE, "")
