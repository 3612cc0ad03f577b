import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import outcome

from fuse_gated.edge import listing
from fuse_gated.edge.handles import OpenDirectory
from fuse_gated.wire.messages import ListedEntry


@pytest.fixture
def directory(root: Path) -> Iterator[OpenDirectory]:
    directory = OpenDirectory(os.open(root, os.O_RDONLY))
    yield directory
    os.close(directory.fd)


def everything(directory: OpenDirectory, count: int, with_attributes: bool = False) -> list[ListedEntry]:
    entries: list[ListedEntry] = []
    while True:
        listed = listing.read(directory, len(entries), count, with_attributes)
        entries += listed.entries
        if listed.end:
            return entries
        assert listed.entries


def test_every_type_is_told(directory: OpenDirectory, root: Path) -> None:
    (root / "file").touch()
    (root / "directory").mkdir()
    (root / "link").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.fsencode(root / "socket"))
    for with_attributes in (False, True):
        listed = listing.read(directory, 0, 100, with_attributes)
        assert listed.end
        assert {entry.name: stat.S_IFMT(entry.type) for entry in listed.entries} == {
            b"file": stat.S_IFREG,
            b"directory": stat.S_IFDIR,
            b"link": stat.S_IFLNK,
            b"fifo": stat.S_IFIFO,
            b"socket": stat.S_IFSOCK,
        }
        for entry in listed.entries:
            status = (root / entry.name.decode()).lstat()
            assert entry.inode == status.st_ino
            assert (entry.attributes is not None) is with_attributes
            assert entry.attributes is None or entry.attributes.mtime == status.st_mtime_ns


def test_names_are_bytes(directory: OpenDirectory, root: Path) -> None:
    names = {b"\xff\xfe", "ü".encode(), b"a\nb", b"n" * 255}
    for name in names:
        os.close(os.open(os.path.join(os.fsencode(root), name), os.O_CREAT | os.O_WRONLY))
    assert {entry.name for entry in listing.read(directory, 0, 100, True).entries} == names


@pytest.mark.parametrize("count", [1, 7, 1000, 2**63])
def test_pieces_make_up_the_whole(directory: OpenDirectory, root: Path, count: int) -> None:
    for number in range(100):
        (root / f"{number}").touch()
    assert sorted(int(entry.name) for entry in everything(directory, count)) == list(range(100))


def test_a_directory_of_fifty_thousand(directory: OpenDirectory, root: Path) -> None:
    for number in range(50_000):
        os.close(os.open(f"{root}/{number:0100}", os.O_CREAT | os.O_WRONLY))
    assert not listing.is_quick(directory, 0, 100, False)
    first = listing.read(directory, 0, 2**31, False)
    assert not first.end
    assert sum(len(entry.name) for entry in first.entries) < listing.ANSWER_LIMIT
    entries = everything(directory, 2**31, with_attributes=True)
    assert {int(entry.name) for entry in entries} == set(range(50_000))
    assert len(entries) == 50_000
    assert all(entry.attributes for entry in entries)
    assert listing.read(directory, 50_000, 10, False) == listing.read(directory, 10**9, 10, False)


def test_what_vanishes_keeps_its_place(directory: OpenDirectory, root: Path) -> None:
    for number in range(10):
        (root / f"{number}").touch()
    names = [entry.name for entry in listing.read(directory, 0, 4, True).entries]
    for path in root.iterdir():
        if path.name.encode() not in names:
            path.unlink()
    (root / "new").touch()
    rest = listing.read(directory, 4, 100, True)
    assert len(rest.entries) == 6
    assert rest.end
    assert all(entry.attributes is None for entry in rest.entries)
    assert [entry.name for entry in listing.read(directory, 0, 100, False).entries].count(b"new") == 1


def test_a_type_that_nobody_knows(directory: OpenDirectory, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "fifo")
    scandir = os.scandir

    class Vanishing:
        def __init__(self, entries: object) -> None:
            self.entries = entries

        def __enter__(self) -> object:
            entries = list(self.entries.__enter__())
            (root / "fifo").unlink()
            return entries

        def __exit__(self, *_: object) -> None:
            self.entries.close()

    monkeypatch.setattr(os, "scandir", lambda fd: Vanishing(scandir(fd)))
    assert [entry.type for entry in listing.read(directory, 0, 10, False).entries] == [0]


@pytest.mark.parametrize(("cookie", "count"), [(-1, 1), (0, 0), (0, -1), (2**63, -(2**63))])
def test_what_makes_no_sense_is_refused(directory: OpenDirectory, cookie: int, count: int) -> None:
    assert outcome(listing.read, directory, cookie, count, False) == "EINVAL"


def test_an_empty_directory_ends_at_once(directory: OpenDirectory) -> None:
    listed = listing.read(directory, 0, 10, True)
    assert listed.entries == ()
    assert listed.end


def test_what_takes_long_is_known(directory: OpenDirectory, root: Path) -> None:
    for number in range(listing.QUICK_COUNT + 10):
        (root / f"{number}").touch()
    assert listing.is_quick(directory, 0, 10_000, False)
    listing.read(directory, 0, 1, False)
    assert listing.is_quick(directory, 1, 10_000, False)
    assert listing.is_quick(directory, 1, 10, True)
    assert not listing.is_quick(directory, 1, 10_000, True)
    assert listing.is_quick(directory, 20, 10_000, True)
