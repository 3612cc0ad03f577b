"""What mkdir(2), mkfifo(3), mknod(2), symlink(2) and open(2) with O_CREAT have in common: owner, mode, times, and the parent."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from harness import ALICE, BOB, outcome
from harness.clock import changed, stamps, tick
from harness.files import KINDS, MAKERS, TYPES, connect, create, make, mode_of, open_close, opened, owner_of

WITH_MODE: Final[dict[str, Callable[[Path, int], object]]] = {
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda path, mode: os.mknod(path, stat.S_IFREG | mode),
    "socket": lambda path, mode: os.mknod(path, stat.S_IFSOCK | mode),
    "creat": create,
}
MODES: Final = [
    (0o777, 0o022),
    (0o777, 0o077),
    (0o777, 0o070),
    (0o666, 0o501),
    (0o345, 0o022),
    (0o755, 0o777),
    (0o1777, 0),
    (0, 0),
]


@pytest.mark.parametrize("kind", KINDS)
def test_has_its_type(area: Path, kind: str) -> None:
    info = make(kind, area / "thing").lstat()
    assert stat.S_IFMT(info.st_mode) == TYPES[kind]
    assert info.st_nlink == (area / "thing").lstat().st_nlink
    assert [(entry.name, entry.inode()) for entry in os.scandir(area)] == [("thing", info.st_ino)]


@pytest.mark.parametrize("name", WITH_MODE)
@pytest.mark.parametrize(("mode", "umask"), MODES)
def test_the_umask_is_taken_off(area: Path, name: str, mode: int, umask: int) -> None:
    os.umask(umask)
    WITH_MODE[name](area / "thing", mode)
    assert mode_of(area / "thing") == mode & ~umask


@pytest.mark.parametrize("kind", KINDS)
def test_belongs_to_its_maker(area: Path, kind: str) -> None:
    area.chmod(0o777)
    if kind in ("block", "character"):
        assert ALICE.outcome(MAKERS[kind], area / "thing") == "EPERM"
        return
    ALICE.with_groups(BOB.gid).call(MAKERS[kind], area / "thing")
    assert owner_of(area / "thing") == (ALICE.uid, ALICE.gid)


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "socket", "symlink"])
def test_in_a_setgid_directory_it_gets_the_directorys_group(area: Path, kind: str) -> None:
    """inode(7): and a directory gets the bit too."""
    os.chown(area, 0, BOB.gid)
    area.chmod(0o2777)
    ALICE.call(MAKERS[kind], area / "thing")
    assert owner_of(area / "thing") == (ALICE.uid, BOB.gid)
    assert bool(mode_of(area / "thing") & stat.S_ISGID) == (kind == "directory")


@pytest.mark.parametrize("name", ["mkfifo", "mknod", "creat"])
@pytest.mark.parametrize("member", [True, False])
def test_setgid_with_a_foreign_group_is_not_granted(area: Path, name: str, member: bool) -> None:
    """A file that would be setgid with execute for a group that its maker is not in, is not."""
    os.chown(area, 0, BOB.gid)
    area.chmod(0o2777)
    caller = ALICE.with_umask(0).with_groups(*((BOB.gid,) if member else ()))
    caller.call(WITH_MODE[name], area / "thing", 0o2755)
    expected = 0o2755 if member else 0o755
    # Not every call passes S_ISGID on to the filesystem for a fifo; then there is nothing to be granted either.
    assert mode_of(area / "thing") in {expected, 0o755}


def test_creat_keeps_special_bits_in_a_plain_directory(area: Path) -> None:
    os.umask(0)
    create(area / "thing", 0o6755)
    assert mode_of(area / "thing") == 0o6755


def test_a_new_file_may_be_written_whatever_its_mode(area: Path) -> None:
    area.chmod(0o777)

    def write() -> int:
        with opened(area / "thing", os.O_CREAT | os.O_RDWR, 0) as descriptor:
            return os.write(descriptor, b"written") + len(os.pread(descriptor, 100, 0))

    assert ALICE.call(write) == 14
    assert mode_of(area / "thing") == 0
    assert ALICE.outcome(os.open, area / "thing", os.O_RDONLY) == "EACCES"


@pytest.mark.parametrize("kind", KINDS)
def test_its_times_are_now_and_its_parents_move(area: Path, probe: Path, kind: str) -> None:
    below = make("directory", area / "below")
    tick(probe)
    earliest = stamps(probe)["ctime"]
    assert changed(below, probe, lambda: make(kind, below / "thing")) == {"mtime", "ctime"}
    assert min(stamps(below / "thing").values()) >= earliest


@pytest.mark.parametrize("kind", KINDS)
def test_failing_leaves_the_parent_as_it_is(area: Path, probe: Path, kind: str) -> None:
    below = make("directory", area / "below")
    make("file", below / "thing")
    assert changed(below, probe, lambda: outcome(MAKERS[kind], below / "thing")) == set()


def test_directories_count_as_links_of_their_parent(area: Path) -> None:
    below = make("directory", area / "below")
    if below.stat().st_nlink != 2:
        pytest.skip("this filesystem does not count directories as links")
    for number in range(3):
        (below / str(number)).mkdir()
        assert below.stat().st_nlink == 3 + number
        assert (below / str(number)).stat().st_nlink == 2
    make("file", below / "file")
    assert below.stat().st_nlink == 5
    (below / "0").rmdir()
    assert below.stat().st_nlink == 4


@pytest.mark.parametrize("name", [".", ".."])
def test_mkdir_of_the_dots_is_eexist(area: Path, name: str) -> None:
    assert outcome(os.mkdir, f"{area}/{name}") == "EEXIST"


@pytest.mark.beyond_libfuse("nodes")
def test_mkdir_in_a_removed_directory_is_enoent(area: Path) -> None:
    below = make("directory", area / "below")
    with opened(below, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        below.rmdir()
        assert outcome(os.mkdir, "new", dir_fd=descriptor) == "ENOENT"
        assert outcome(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor) == "ENOENT"
        assert os.listdir(descriptor) == []


@pytest.mark.parametrize(("type_", "expected"), [(stat.S_IFDIR, "EPERM"), (stat.S_IFLNK, "EINVAL"), (0o150000, "EINVAL")])
def test_mknod_makes_neither_directories_nor_links(area: Path, type_: int, expected: str) -> None:
    assert outcome(os.mknod, area / "thing", type_ | 0o644) == expected


@pytest.mark.parametrize("device", [os.makedev(1, 3), os.makedev(255, 255), os.makedev(300, 70000)])
@pytest.mark.parametrize("type_", [stat.S_IFBLK, stat.S_IFCHR])
def test_a_device_keeps_its_number(area: Path, device: int, type_: int) -> None:
    os.mknod(area / "thing", type_ | 0o600, device)
    assert (area / "thing").stat().st_rdev == device


def test_a_fifo_carries_bytes(area: Path) -> None:
    os.mkfifo(area / "fifo")
    assert outcome(os.open, area / "fifo", os.O_WRONLY | os.O_NONBLOCK) == "ENXIO"
    with opened(area / "fifo", os.O_RDONLY | os.O_NONBLOCK) as reader, opened(area / "fifo", os.O_WRONLY) as writer:
        os.write(writer, b"through")
        assert os.read(reader, 100) == b"through"
    assert (area / "fifo").stat().st_size == 0


def test_a_socket_nobody_listens_at(area: Path) -> None:
    make("socket", area / "socket")
    assert outcome(connect, area / "socket") == "ECONNREFUSED"
    assert outcome(open_close, area / "socket", os.O_RDONLY) == "ENXIO"
