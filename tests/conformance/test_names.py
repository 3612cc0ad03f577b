"""Names: any bytes but '/' and NUL, up to 255 of them, and paths deeper than PATH_MAX step by step."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import outcome
from harness.files import opened

NAMES = [
    b"\xff\xfe",
    b"\x80",
    b"half \xc3",
    "größe".encode(),
    "größe".encode("latin-1"),
    "e\u0301".encode(),
    "\u00e9".encode(),
    b" leading and trailing ",
    b"new\nline",
    b"\x01\x1f\x7f",
    b"back\\slash",
    b"*?[]{}$`'\"",
    b"-rf",
    b"...",
    b".hidden",
    b"CON",
    b"a:b|c<d>",
    b"n" * 255,
    "ü".encode() * 127 + b"x",
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_any_name_is_kept_to_the_byte(area: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(area), name)
    with open(path, "wb") as file:
        file.write(b"content")
    assert os.listdir(os.fsencode(area)) == [name]
    assert os.stat(path).st_size == 7
    os.mkdir(os.path.join(os.fsencode(area), b"below"))
    moved = os.path.join(os.fsencode(area), b"below", name)
    os.rename(path, moved)
    os.link(moved, path)
    os.symlink(name, path + b"~") if len(name) < 255 else None
    assert sorted(os.listdir(os.fsencode(area))) == sorted([name, b"below"] + ([name + b"~"] if len(name) < 255 else []))
    os.unlink(moved)
    with open(path, "rb") as file:
        assert file.read() == b"content"


def test_all_names_side_by_side(area: Path) -> None:
    """Names that only some encoding or some normalisation takes for one stay two."""
    base = os.fsencode(area)
    for number, name in enumerate([*NAMES, b"case", b"CASE", b"Case"]):
        with open(os.path.join(base, name), "wb") as file:
            file.write(str(number).encode())
    assert sorted(os.listdir(base)) == sorted([*NAMES, b"case", b"CASE", b"Case"])
    for number, name in enumerate([*NAMES, b"case", b"CASE", b"Case"]):
        with open(os.path.join(base, name), "rb") as file:
            assert file.read() == str(number).encode()


def test_every_single_byte(area: Path) -> None:
    base = os.fsencode(area)
    names = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    for name in names:
        os.mkdir(os.path.join(base, name))
    assert sorted(os.listdir(base)) == names


DEPTH = 24
STEP = "d" * 250


@pytest.fixture
def deep(area: Path) -> Iterator[int]:
    """A descriptor of a directory whose path is longer than PATH_MAX (4096 bytes)."""
    descriptor = os.open(area, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(DEPTH):
        os.mkdir(STEP, dir_fd=descriptor)
        below = os.open(STEP, os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    yield descriptor
    os.close(descriptor)


def test_a_file_below_path_max(deep: int) -> None:
    file = os.open("file", os.O_CREAT | os.O_RDWR, 0o600, dir_fd=deep)
    try:
        os.write(file, b"deep content")
        assert os.pread(file, 100, 0) == b"deep content"
        os.fchmod(file, 0o640)
        os.ftruncate(file, 4)
    finally:
        os.close(file)
    info = os.stat("file", dir_fd=deep)
    assert (info.st_size, info.st_mode & 0o777) == (4, 0o640)
    again = os.open("file", os.O_RDONLY, dir_fd=deep)
    assert os.read(again, 100) == b"deep"
    os.close(again)


def test_every_call_below_path_max(deep: int) -> None:
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=deep))
    os.link("file", "hard", src_dir_fd=deep, dst_dir_fd=deep)
    os.symlink("file", "soft", dir_fd=deep)
    os.mkfifo("fifo", dir_fd=deep)
    os.mkdir("directory", dir_fd=deep)
    os.rename("hard", "directory/moved", src_dir_fd=deep, dst_dir_fd=deep)
    os.utime("file", ns=(1, 2), dir_fd=deep)
    os.chown("file", 5, 6, dir_fd=deep)
    os.chmod("file", 0o604, dir_fd=deep)
    info = os.stat("soft", dir_fd=deep)
    assert (info.st_mtime_ns, info.st_uid, info.st_gid, info.st_mode & 0o777, info.st_nlink) == (2, 5, 6, 0o604, 2)
    assert os.readlink("soft", dir_fd=deep) == "file"
    assert os.access("file", os.R_OK, dir_fd=deep)
    assert sorted(os.listdir(deep)) == ["directory", "fifo", "file", "soft"]
    os.unlink("directory/moved", dir_fd=deep)
    os.rmdir("directory", dir_fd=deep)
    assert os.stat("..", dir_fd=deep).st_nlink >= 1


def test_a_deep_directory_moves_up_and_back(deep: int, area: Path, behind: Callable[[Path], Path]) -> None:
    os.mkdir("moving", dir_fd=deep)
    os.close(os.open("moving/file", os.O_CREAT | os.O_WRONLY, dir_fd=deep))
    with opened(area, os.O_RDONLY) as top:
        os.rename("moving", "moved", src_dir_fd=deep, dst_dir_fd=top)
        assert os.listdir(behind(area) / "moved") == ["file"]
        os.rename("moved", "moving", src_dir_fd=top, dst_dir_fd=deep)
    assert os.listdir(deep) == ["moving"]


def test_the_path_itself_is_too_long(deep: int, area: Path) -> None:
    assert outcome(os.stat, "/".join([str(area), *[STEP] * DEPTH])) == "ENAMETOOLONG"
    assert os.stat("/".join([str(area), *[STEP] * 10])).st_nlink >= 1
