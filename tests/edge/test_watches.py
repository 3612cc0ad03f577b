import errno
import os
import select
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuse_gated.edge import inotify, syscalls
from fuse_gated.edge.beneath import Beneath
from fuse_gated.edge.watches import CHANGED, LOST, MOVED, Watches


@pytest.fixture
def beneath(root: Path) -> Iterator[Beneath]:
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "x").mkdir()
    (root / "file").write_text("text")
    (root / "link").symlink_to("a")
    beneath = Beneath(os.fsencode(root))
    yield beneath
    beneath.close()


@pytest.fixture
def watches(beneath: Beneath) -> Iterator[Watches]:
    watches = Watches(beneath)
    yield watches
    watches.close()


def happened(watches: Watches) -> dict[bytes, int] | None:
    """What all events say that have come until now."""
    found: dict[bytes, int] = {}
    while select.select([watches], [], [], 0)[0]:
        more = watches.happened(os.read(watches.fileno(), 65536))
        if more is None:
            return None
        for path, what in more.items():
            found[path] = max(what, found.get(path, 0))
    return found


def test_all_above_is_watched_too(watches: Watches, root: Path) -> None:
    directory = watches.watch(b"a/b")
    assert directory is not None
    assert directory.alive
    status = (root / "a" / "b").stat()
    assert directory.key == (status.st_dev, status.st_ino)
    assert len(watches) == 3
    assert watches.watched(b"a/b") is directory is watches.watch(b"a/b")
    assert watches.watched(b"a") is None
    (root / "new").touch()
    (root / "a" / "new").touch()
    assert happened(watches) == dict.fromkeys((b"", b"new", b"a", b"a/new"), CHANGED)


@pytest.mark.parametrize(
    "path",
    [b"missing", b"a/missing/b", b"file", b"link", b"link/b", b"..", b"a/../x", b"/", b"//a", b"a//b", b"a\0b", b".", b"n" * 256,
     b"a/" * 3000 + b"a"],
)  # fmt: skip
def test_what_cannot_be_watched_leaves_nothing_behind(watches: Watches, path: bytes) -> None:
    assert watches.watch(path) is None
    assert len(watches) == 0
    assert watches.watch(b"a") is not None


def test_unwatched_directories_go_with_those_above_that_nobody_wants(watches: Watches) -> None:
    for path in (b"a/b/c", b"a", b"x"):
        assert watches.watch(path) is not None
    assert len(watches) == 5
    watches.unwatch([b"a/b/c", b"missing", b".."])
    assert len(watches) == 3
    assert watches.watch(b"a/b/c") is not None
    watches.unwatch([b"a"])  # It is watched for the sake of the other.
    assert watches.watched(b"a") is None
    assert len(watches) == 5
    watches.unwatch([b"a/b/c", b"x"])
    assert len(watches) == 0
    assert happened(watches) == {}


def test_the_root_is_watched(watches: Watches, root: Path) -> None:
    assert watches.watch(b"") is not None
    (root / "file").write_text("more")
    (root / "x").chmod(0o700)
    root.chmod(0o700)
    assert happened(watches) == dict.fromkeys((b"file", b"x", b""), CHANGED)


def test_a_watched_directory_that_moves_is_told_apart(watches: Watches, root: Path) -> None:
    watches.watch(b"a/b/c")
    watches.watch(b"x")
    (root / "a" / "b").rename(root / "x" / "b")
    assert happened(watches) == {b"a": CHANGED, b"a/b": MOVED, b"x": CHANGED, b"x/b": CHANGED}
    assert watches.is_lost(b"a/b", watches.look(b"a/b"))
    assert not watches.is_lost(b"a/b", watches.look(b"a/b"))
    assert not watches.is_lost(b"x/b", watches.look(b"x/b"))
    assert len(watches) == 3
    assert watches.watch(b"x/b/c") is not None


def test_one_that_came_back_is_still_watched(watches: Watches, root: Path) -> None:
    directory = watches.watch(b"a/b")
    (root / "a").rename(root / "z")
    (root / "z").rename(root / "a")
    assert happened(watches) == {b"": CHANGED, b"a": MOVED, b"z": CHANGED}
    assert not watches.is_lost(b"a", watches.look(b"a"))
    assert directory is not None
    assert directory.alive
    (root / "a" / "b" / "new").touch()
    assert happened(watches) == dict.fromkeys((b"a/b", b"a/b/new"), CHANGED)


def test_one_that_is_removed_is_lost_with_all_beneath(watches: Watches, root: Path) -> None:
    lost = [watches.watch(b"a/b"), watches.watch(b"a/b/c")]
    shutil.rmtree(root / "a" / "b")
    assert happened(watches) == {b"a/b/c": LOST, b"a/b": LOST, b"a": CHANGED}
    assert not any(directory is None or directory.alive for directory in lost)
    assert len(watches) == 2


def test_another_directory_of_the_same_name_and_number_is_another(watches: Watches, root: Path) -> None:
    """Some filesystems give a number out again at once."""
    watches.watch(b"x")
    (root / "x").rmdir()
    (root / "x").mkdir()
    found = happened(watches)
    assert found is not None
    assert found[b"x"] == LOST
    assert watches.watched(b"x") is None
    assert watches.watch(b"x") is not None


def test_the_end_of_the_root_ends_all(watches: Watches) -> None:
    """Its filesystem is unmounted. Removed alone, it stays for as long as it is open here."""
    watches.watch(b"a")
    directory = watches.watch(b"")
    assert directory is not None
    assert watches.happened(struct.pack("=iIII", directory.watch, inotify.UNMOUNT, 0, 0)) is None


def test_the_root_may_be_removed(watches: Watches, root: Path) -> None:
    watches.watch(b"a")
    shutil.rmtree(root)
    found = happened(watches)
    assert found is not None
    assert found[b"a"] == LOST
    status = watches.look(b"")
    assert status is not None
    assert status.nlink == 0


def test_it_is_looked_at_again_after_it_was_watched(
    watches: Watches, beneath: Beneath, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was moved away before its watch was known would be told of by its old name for ever."""
    watches.watch(b"")
    really: Callable[[bytes], os.stat_result] = beneath.status

    def moved(path: bytes) -> os.stat_result:
        (root / "a").rename(root / "elsewhere")
        monkeypatch.setattr(beneath, "status", really)
        return really(path)

    monkeypatch.setattr(beneath, "status", moved)
    assert watches.watch(b"a") is None
    assert len(watches) == 1


def test_what_is_still_known_by_its_old_path_is_not_watched_twice(watches: Watches, root: Path) -> None:
    watches.watch(b"a")
    (root / "a").rename(root / "z")
    assert watches.watch(b"z") is None
    assert happened(watches) == {b"": CHANGED, b"a": MOVED, b"z": CHANGED}
    assert watches.is_lost(b"a", watches.look(b"a"))
    assert watches.watch(b"z") is not None


def test_one_whose_parent_was_lost_meanwhile_is_not_watched(
    watches: Watches, beneath: Beneath, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = watches.watch(b"a")
    assert above is not None
    really = watches._insert

    def insert(path: bytes, *others: object) -> object:
        (root / "a").rename(root / "elsewhere")
        assert happened(watches) == {b"": CHANGED, b"a": MOVED, b"elsewhere": CHANGED}
        assert watches.is_lost(b"a", watches.look(b"a"))
        return really(path, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(watches, "_insert", insert)
    assert watches.watch(b"a/b") is None
    assert watches.watched(b"a") is None


def test_only_so_many_are_watched(beneath: Beneath) -> None:
    watches = Watches(beneath, most=3)
    short: list[bool] = []
    watches.on_shortage = lambda: short.append(True)
    assert watches.watch(b"a/b") is not None
    assert watches.watch(b"x") is None
    assert watches.watch(b"a/b/c") is None
    assert len(short) == 2
    assert len(watches) == 3
    watches.unwatch([b"a/b"])
    assert watches.watch(b"x") is not None
    watches.close()


def test_its_own_bound_is_nobodys_shortage(beneath: Beneath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inotify, "MOST_WATCHES", 1)
    watches = Watches(beneath, most=1)
    watches.on_shortage = lambda: pytest.fail("there are enough")
    assert watches.watch(b"a") is None
    watches.close()


@pytest.mark.parametrize(("problem", "is_short"), [(errno.ENOSPC, True), (errno.EACCES, False)])
def test_what_the_kernel_does_not_watch(
    watches: Watches, monkeypatch: pytest.MonkeyPatch, problem: int, is_short: bool
) -> None:
    short: list[bool] = []
    watches.on_shortage = lambda: short.append(True)

    def refused(*_: object) -> int:
        raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(syscalls, "inotify_add_watch", refused)
    assert watches.watch(b"a") is None
    assert bool(short) is is_short
    assert len(watches) == 0


def test_renewed_it_watches_nothing(watches: Watches, root: Path) -> None:
    before = watches.watch(b"a/b")
    watches.renew()
    assert before is not None
    assert not before.alive
    assert len(watches) == 0
    (root / "a" / "b" / "new").touch()
    assert happened(watches) == {}
    after = watches.watch(b"a/b")
    assert after is not None
    assert after is not before
    assert not watches.is_busy


def test_without_inotify_nothing_is_watched(watches: Watches, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(syscalls, "inotify_init", refused)
    with pytest.raises(OSError, match="Too many open files"):
        watches.renew()
    assert watches.fileno() == -1
    assert watches.watch(b"a") is None
    with pytest.raises(OSError, match="Too many open files"):
        watches.renew()


def test_what_a_path_stands_for(watches: Watches, root: Path) -> None:
    for path in (b"", b"a", b"file", b"link"):
        found = watches.look(path)
        status = (root / path.decode()).lstat()
        assert found is not None
        assert (found.inode, found.mode, found.size) == (status.st_ino, status.st_mode, status.st_size)
    assert watches.look(b"missing") is None
    assert watches.look(b"file/missing") is None
