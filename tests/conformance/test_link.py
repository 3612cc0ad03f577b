"""link(2) and linkat(2): names of one file, which must go on being one file."""

import os
from pathlib import Path

import pytest
from harness import ALICE, BOB, Persona, outcome, syscalls
from harness.actor import actors
from harness.clock import changed
from harness.files import KINDS, make, opened

LINKABLE = [kind for kind in KINDS if kind != "directory"]


@pytest.mark.parametrize("kind", LINKABLE)
def test_both_names_are_one_file(area: Path, kind: str) -> None:
    one, two = make(kind, area / "one"), area / "two"
    os.link(one, two, follow_symlinks=False)
    first, second = one.lstat(), two.lstat()
    assert (first.st_ino, first.st_dev, first.st_mode) == (second.st_ino, second.st_dev, second.st_mode)
    assert first.st_nlink == second.st_nlink == 2
    os.unlink(one)
    assert two.lstat().st_nlink == 1
    assert outcome(os.lstat, one) == "ENOENT"


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_a_change_through_one_name_is_seen_through_all(area: Path, kind: str) -> None:
    one, two, three = make(kind, area / "one", 0o644), area / "two", area / "three"
    os.link(one, two)
    os.link(two, three)
    assert [path.lstat().st_nlink for path in (one, two, three)] == [3, 3, 3]
    two.chmod(0o201)
    os.chown(three, 31, 32)
    infos = [path.lstat() for path in (one, two, three)]
    assert {(info.st_mode & 0o7777, info.st_uid, info.st_gid, info.st_ctime_ns) for info in infos} == {
        (0o201, 31, 32, infos[0].st_ctime_ns)
    }
    os.unlink(two)
    assert [path.lstat().st_nlink for path in (one, three)] == [2, 2]


def test_content_written_through_one_name_is_read_through_the_other(area: Path) -> None:
    one, two = make("file", area / "one"), area / "two"
    os.link(one, two)
    one.write_bytes(b"first")
    assert two.read_bytes() == b"first"
    assert two.stat().st_size == 5
    with opened(one, os.O_WRONLY | os.O_APPEND) as writer, opened(two, os.O_RDONLY) as reader:
        assert os.read(reader, 100) == b"first"
        os.write(writer, b" and second")
        assert os.fstat(reader).st_size == 16
        assert os.read(reader, 100) == b" and second"
        os.pwrite(writer, b"!", 0)
    os.truncate(two, 3)
    assert one.stat().st_size == 3


def test_an_open_descriptor_sees_what_is_done_through_the_other_name(area: Path) -> None:
    one, two = make("file", area / "one", 0o644), area / "two"
    with opened(one, os.O_RDONLY) as descriptor:
        assert os.fstat(descriptor).st_nlink == 1
        os.link(one, two)
        assert os.fstat(descriptor).st_nlink == 2
        two.chmod(0o600)
        assert os.fstat(descriptor).st_mode & 0o777 == 0o600
        two.write_bytes(b"content")
        assert os.fstat(descriptor).st_size == 7
        os.rename(two, area / "three")
        os.unlink(area / "three")
        assert os.fstat(descriptor).st_nlink == 1


@pytest.mark.beyond_libfuse("invalidation")
def test_pages_already_read_through_one_name_follow_a_write_through_the_other(area: Path) -> None:
    one, two = make("file", area / "one"), area / "two"
    one.write_bytes(b"old!" * 2048)
    os.link(one, two)
    with opened(one, os.O_WRONLY) as writer, opened(two, os.O_RDONLY) as reader:
        assert os.pread(reader, 4, 4096) == b"old!"
        os.pwrite(writer, b"new!", 4096)
        assert os.pread(reader, 4, 4096) == b"new!"


def test_a_link_into_another_directory(area: Path) -> None:
    make("directory", area / "below")
    make("file", area / "one").write_bytes(b"content")
    os.link(area / "one", area / "below" / "two")
    os.rename(area / "one", area / "below" / "one")
    assert (area / "below" / "two").read_bytes() == b"content"
    assert (area / "below" / "one").samefile(area / "below" / "two")


@pytest.mark.parametrize("kind", LINKABLE)
def test_updates_ctime_of_the_file_and_times_of_the_directory(area: Path, probe: Path, kind: str) -> None:
    path = make(kind, area / "thing")
    below = make("directory", area / "below")
    assert changed(path, probe, lambda: os.link(path, below / "one", follow_symlinks=False)) == {"ctime"}
    assert changed(below, probe, lambda: os.link(path, below / "two", follow_symlinks=False)) == {"mtime", "ctime"}


def test_failing_updates_nothing(area: Path, probe: Path) -> None:
    one, two = make("file", area / "one"), make("file", area / "two")
    assert changed(one, probe, lambda: outcome(os.link, one, two)) == set()
    assert changed(area, probe, lambda: outcome(os.link, one, two)) == set()
    assert one.lstat().st_nlink == two.lstat().st_nlink == 1


@pytest.mark.parametrize("caller", [None, ALICE], ids=["root", "owner"])
def test_a_directory_cannot_be_linked(area: Path, caller: Persona | None) -> None:
    area.chmod(0o777)
    path = make("directory", area / "thing", 0o755, ALICE.uid, ALICE.gid)
    call = caller.outcome if caller else outcome
    assert call(os.link, path, area / "two") == "EPERM"


def test_a_link_itself_is_linked_unless_followed(area: Path) -> None:
    make("file", area / "file")
    (area / "link").symlink_to("file")
    os.link(area / "link", area / "same", follow_symlinks=False)
    assert os.readlink(area / "same") == "file"
    assert (area / "link").lstat().st_nlink == 2
    syscalls.link_following(area / "link", area / "followed")
    assert (area / "followed").lstat().st_ino == (area / "file").lstat().st_ino


def test_an_unlinked_open_file_cannot_be_linked_back(area: Path) -> None:
    """linkat(2): a file whose link count is 0 stays without a name, unless it was made with O_TMPFILE."""
    path = make("file", area / "thing")
    with opened(path, os.O_RDWR) as descriptor:
        os.unlink(path)
        assert outcome(syscalls.link_following, f"/proc/self/fd/{descriptor}", area / "back") == "ENOENT"


@pytest.mark.parametrize(("mode", "expected"), [(0o644, "EPERM"), (0o666, "ok"), (0o4666, "EPERM")])
def test_others_files_are_protected(area: Path, mode: int, expected: str) -> None:
    """proc(5), /proc/sys/fs/protected_hardlinks: only what the caller may read and write, and what is not special."""
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        expected = "ok"
    area.chmod(0o777)
    path = make("file", area / "thing", mode, ALICE.uid, ALICE.gid)
    assert BOB.outcome(os.link, path, area / "two") == expected


def test_many_names(area: Path) -> None:
    path = make("file", area / "0")
    for number in range(1, 200):
        os.link(path, area / str(number))
    assert path.stat().st_nlink == 200
    assert {entry.inode() for entry in os.scandir(area)} == {path.stat().st_ino}
    for number in range(199):
        os.unlink(area / str(number))
    assert (area / "199").stat().st_nlink == 1


def test_what_is_written_through_one_name_is_read_at_once_through_the_other(area: Path) -> None:
    path, other = area / "thing", area / "other"
    late = 0
    for _ in range(20):
        path.write_bytes(b"q")
        os.link(path, other)
        with opened(path, os.O_RDWR) as reader, opened(other, os.O_WRONLY) as writer:
            assert os.pread(reader, 10, 0) == b"q"
            os.write(writer, b"hello")
            late += os.pread(reader, 10, 0) != b"hello"
            assert os.pread(reader, 10, 0) == b"hello"
            assert os.fstat(reader).st_size == 5
        path.unlink()
        other.unlink()
    # On a busy machine the server may have answered before the kernel had forgotten the other name's pages: it waits a moment.
    assert late <= 5


def test_both_names_are_written_at_the_same_time(area: Path) -> None:
    path, other = area / "thing", area / "other"
    path.touch()
    os.link(path, other)
    with actors(2) as cast:
        for actor, name in zip(cast, (path, other), strict=True):
            actor.do("open", "f", name, os.O_WRONLY | os.O_APPEND)
        for actor, letter in zip(cast, (b"a", b"b"), strict=True):
            actor.tell("append", "f", [letter * 5000 + b"\n"] * 50)
        for actor in cast:
            actor.answer()
    # Through two names of a mount the kernel splits an append at a page's end, so the lines may mix; but nothing is lost.
    content = path.read_bytes()
    assert [content.count(letter) for letter in (b"a", b"b", b"\n")] == [50 * 5000, 50 * 5000, 100]
