"""open(2): flags, permissions, and what O_TRUNC, O_EXCL and the rest promise."""

import fcntl
import mmap
import os
import stat
from pathlib import Path

import pytest
from harness import ALICE, BOB, ROOT, Persona, outcome
from harness.clock import changed
from harness.files import create, make, mode_of, open_close, opened, owner_of

READ, WRITE = os.O_RDONLY, os.O_WRONLY


@pytest.mark.parametrize("mode", range(0o10))
@pytest.mark.parametrize("which", ["owner", "group", "other"])
def test_permission_by_class(area: Path, mode: int, which: str) -> None:
    """The first class that fits decides, even where a later one would allow (path_resolution(7))."""
    shift = {"owner": 6, "group": 3, "other": 0}[which]
    path = make("file", area / "thing", mode << shift | 0o777 & ~(0o7 << shift), ALICE.uid, ALICE.gid)
    caller = {"owner": ALICE, "group": BOB.with_groups(ALICE.gid), "other": BOB}[which]
    for flags, needed in ((READ, 4), (WRITE, 2), (os.O_RDWR, 6), (READ | os.O_TRUNC, 6), (WRITE | os.O_APPEND, 2)):
        expected = "ok" if mode & needed == needed else "EACCES"
        assert caller.outcome(open_close, path, flags) == expected, oct(flags)


def test_root_opens_what_nobody_may(area: Path) -> None:
    path = make("file", area / "thing", 0)
    assert [outcome(open_close, path, flags) for flags in (READ, WRITE, os.O_RDWR)] == ["ok"] * 3


@pytest.mark.parametrize("mode", range(0o10))
def test_permission_to_list_and_to_search(area: Path, mode: int) -> None:
    path = make("directory", area / "thing", 0o700 | mode)
    make("file", path / "file", 0o644)
    assert ALICE.outcome(os.listdir, path) == ("ok" if mode & 4 else "EACCES")
    assert ALICE.outcome(os.stat, path / "file") == ("ok" if mode & 1 else "EACCES")
    assert ALICE.outcome(make, "file", path / "new") == ("ok" if mode & 3 == 3 else "EACCES")
    assert ALICE.outcome(os.unlink, path / "file") == ("ok" if mode & 3 == 3 else "EACCES")


def test_o_trunc_empties_and_keeps_the_rest(area: Path, probe: Path) -> None:
    path = make("file", area / "thing", 0o640, ALICE.uid, ALICE.gid)
    path.write_bytes(b"x" * 5000)
    inode = path.stat().st_ino
    assert changed(path, probe, lambda: open_close(path, WRITE | os.O_TRUNC)) == {"mtime", "ctime"}
    info = path.stat()
    assert (info.st_size, info.st_blocks, info.st_ino, mode_of(path)) == (0, 0, inode, 0o640)
    assert owner_of(path) == (ALICE.uid, ALICE.gid)


def test_o_creat_of_what_exists_changes_nothing(area: Path, probe: Path) -> None:
    path = make("file", area / "thing", 0o640)
    path.write_bytes(b"content")
    assert changed(path, probe, lambda: open_close(path, WRITE | os.O_CREAT, 0o777)) == set()
    assert changed(area, probe, lambda: open_close(path, WRITE | os.O_CREAT, 0o777)) == set()
    assert (path.read_bytes(), mode_of(path)) == (b"content", 0o640)


def test_o_trunc_without_permission_leaves_the_content(area: Path) -> None:
    path = make("file", area / "thing", 0o644)
    path.write_bytes(b"content")
    assert ALICE.outcome(open_close, path, WRITE | os.O_TRUNC) == "EACCES"
    assert ALICE.outcome(open_close, path, READ | os.O_TRUNC) == "EACCES"
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "socket", "block", "character", "symlink"])
def test_o_excl_of_what_exists_is_eexist(area: Path, kind: str) -> None:
    make(kind, area / "thing")
    assert outcome(open_close, area / "thing", WRITE | os.O_CREAT | os.O_EXCL) == "EEXIST"


def test_o_creat_makes_what_a_dangling_link_names(area: Path) -> None:
    (area / "link").symlink_to("made")
    create(area / "link", 0o600)
    assert stat.S_ISREG((area / "made").lstat().st_mode)


def test_o_creat_of_a_file_that_others_own(area: Path) -> None:
    path = make("file", area / "thing", 0o666, BOB.uid, BOB.gid)
    assert ALICE.outcome(create, path) == "ok"
    assert owner_of(path) == (BOB.uid, BOB.gid)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (READ, "ok"),
        (WRITE, "EISDIR"),
        (os.O_RDWR, "EISDIR"),
        (READ | os.O_TRUNC, "EISDIR"),
        (READ | os.O_CREAT, "EISDIR"),
        (READ | os.O_DIRECTORY, "ok"),
        (WRITE | os.O_CREAT, "EISDIR"),
    ],
)
def test_a_directory_is_opened_to_read_alone(area: Path, flags: int, expected: str) -> None:
    assert outcome(open_close, make("directory", area / "thing"), flags) == expected


def test_reading_a_directory_is_eisdir(area: Path) -> None:
    with opened(area, READ) as descriptor:
        assert outcome(os.read, descriptor, 10) == "EISDIR"


@pytest.mark.parametrize("kind", ["file", "fifo", "socket", "symlink", "character"])
def test_o_directory_of_anything_else_is_enotdir(area: Path, kind: str) -> None:
    make(kind, area / "thing")
    make("file", area / "nowhere")
    assert outcome(open_close, area / "thing", READ | os.O_DIRECTORY | os.O_NONBLOCK) == "ENOTDIR"


def test_o_nofollow(area: Path) -> None:
    make("file", area / "nowhere")
    make("symlink", area / "link")
    assert outcome(open_close, area / "link", READ | os.O_NOFOLLOW) == "ELOOP"
    assert outcome(open_close, area / "link", WRITE | os.O_CREAT | os.O_NOFOLLOW) == "ELOOP"
    assert outcome(open_close, area / "nowhere", READ | os.O_NOFOLLOW) == "ok"
    with opened(area / "link", os.O_PATH | os.O_NOFOLLOW) as descriptor:
        assert stat.S_ISLNK(os.fstat(descriptor).st_mode)


def test_o_path_gives_no_access(area: Path) -> None:
    path = make("file", area / "thing", 0)

    def look() -> tuple[str, int]:
        with opened(path, os.O_PATH) as descriptor:
            return outcome(os.read, descriptor, 1), os.fstat(descriptor).st_size

    assert ALICE.call(look) == ("EBADF", 0)


def test_a_descriptor_goes_as_far_as_its_flags(area: Path) -> None:
    path = make("file", area / "thing")
    with opened(path, READ) as descriptor:
        assert outcome(os.write, descriptor, b"x") == "EBADF"
        assert outcome(os.ftruncate, descriptor, 0) == "EINVAL"
    with opened(path, WRITE) as descriptor:
        assert outcome(os.read, descriptor, 1) == "EBADF"


def test_o_append_writes_at_the_end_wherever_one_stands(area: Path) -> None:
    path = make("file", area / "thing")
    path.write_bytes(b"0123456789")
    with opened(path, os.O_RDWR | os.O_APPEND) as descriptor, opened(path, WRITE) as other:
        os.lseek(descriptor, 2, os.SEEK_SET)
        os.write(descriptor, b"A")
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 11
        os.pwrite(other, b"far", 100)
        os.write(descriptor, b"B")
        # pwrite(2), BUGS: on Linux it appends too.
        os.pwrite(descriptor, b"C", 0)
        assert os.fstat(descriptor).st_size == 105
    assert path.read_bytes() == b"0123456789A" + bytes(89) + b"farBC"


def test_o_append_comes_and_goes_with_fcntl(area: Path) -> None:
    path = make("file", area / "thing")
    path.write_bytes(b"0123456789")
    with opened(path, os.O_RDWR | os.O_APPEND) as descriptor:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
        os.pwrite(descriptor, b"A", 0)
        os.lseek(descriptor, 2, os.SEEK_SET)
        os.write(descriptor, b"C")
        assert path.read_bytes() == b"A1C3456789"
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        os.pwrite(descriptor, b"Z", 0)
        assert os.pread(descriptor, 20, 0) == b"A1C3456789Z"


def test_writing_without_o_append_starts_at_the_beginning(area: Path) -> None:
    path = make("file", area / "thing")
    path.write_bytes(b"0123456789")
    with opened(path, WRITE) as descriptor:
        os.write(descriptor, b"abc")
    assert path.read_bytes() == b"abc3456789"


def test_two_descriptors_see_each_others_writes(area: Path) -> None:
    path = make("file", area / "thing")
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as two:
        for number in range(20):
            text = f"{number:04}".encode()
            os.pwrite(one, text, number * 4)
            assert os.pread(two, 4, number * 4) == text
            assert os.fstat(two).st_size == number * 4 + 4
        os.ftruncate(two, 2)
        assert os.pread(one, 100, 0) == b"00"


@pytest.mark.parametrize(
    "flags", [0, os.O_SYNC, os.O_DSYNC, os.O_DIRECT, os.O_NOATIME, os.O_CLOEXEC], ids=lambda flags: oct(flags)
)
def test_flags_that_change_no_content(area: Path, flags: int) -> None:
    path = make("file", area / "thing")
    block = mmap.mmap(-1, 8192)
    block.write(b"direct" * 1365)
    with opened(path, os.O_RDWR | flags) as descriptor:
        assert os.writev(descriptor, [memoryview(block)]) == 8192
        os.fsync(descriptor)
        os.fdatasync(descriptor)
        back = mmap.mmap(-1, 8192)
        assert os.preadv(descriptor, [memoryview(back)], 0) == 8192
        assert back[:] == block[:]


@pytest.mark.parametrize(("caller", "expected"), [(ALICE, "ok"), (BOB, "EPERM"), (ROOT, "ok")], ids=["owner", "other", "root"])
def test_o_noatime_is_for_the_owner(area: Path, caller: Persona, expected: str) -> None:
    path = make("file", area / "thing", 0o644, ALICE.uid, ALICE.gid)
    assert caller.outcome(open_close, path, READ | os.O_NOATIME) == expected


def test_reading_past_the_end_is_empty(area: Path) -> None:
    path = make("file", area / "thing")
    path.write_bytes(b"abc")
    with opened(path, READ) as descriptor:
        assert os.pread(descriptor, 10, 2) == b"c"
        assert os.pread(descriptor, 10, 3) == b""
        assert os.pread(descriptor, 10, 2**40) == b""
        assert outcome(os.pread, descriptor, 10, -1) == "EINVAL"


def test_a_write_past_the_end_leaves_a_hole_of_zeros(area: Path) -> None:
    path = make("file", area / "thing")
    with opened(path, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"end", 10_000)
        assert os.pread(descriptor, 20_000, 0) == bytes(10_000) + b"end"


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 131_072, 1_048_577, 3_500_001])
def test_sizes_around_pages_and_requests(area: Path, size: int) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    path = area / "thing"
    path.write_bytes(content[:size])
    assert path.stat().st_size == size
    assert path.read_bytes() == content[:size]
    with opened(path, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"<>", size // 2)
        assert (
            os.pread(descriptor, 4, max(0, size // 2 - 1))
            == (content[: size // 2] + b"<>" + content[size // 2 + 2 : size])[max(0, size // 2 - 1) :][:4]
        )


def test_a_file_may_be_opened_many_times_at_once(area: Path) -> None:
    path = make("file", area / "thing")
    path.write_bytes(b"content")
    descriptors = [os.open(path, READ) for _ in range(200)]
    try:
        assert {os.pread(descriptor, 10, 0) for descriptor in descriptors} == {b"content"}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_o_tmpfile_works_or_is_refused_by_its_own_errno(area: Path) -> None:
    """open(2): EOPNOTSUPP where the filesystem has no such files; programs fall back on that, and on nothing else."""

    def write_nameless() -> None:
        with opened(area, os.O_TMPFILE | os.O_RDWR, 0o600) as descriptor:
            os.write(descriptor, b"nameless")
            assert os.fstat(descriptor).st_nlink == 0

    assert outcome(write_nameless) in ("ok", "EOPNOTSUPP")
    assert os.listdir(area) == []
