"""lseek(2) with SEEK_DATA and SEEK_HOLE, fallocate(2), and files past 4 GiB."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import outcome
from harness.files import make, opened
from harness.syscalls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate

MIB = 2**20
GIB = 2**30


@pytest.fixture
def sparse(area: Path, behind: Callable[[Path], Path]) -> Path:
    """Data in [1 MiB, 2 MiB) and [4 MiB, 5 MiB), a hole at the end up to 8 MiB."""
    path = area / "sparse"
    with opened(path, os.O_CREAT | os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, 8 * MIB)
        os.pwrite(descriptor, b"1" * MIB, MIB)
        os.pwrite(descriptor, b"2" * MIB, 4 * MIB)
        os.fsync(descriptor)
    if behind(path).stat().st_blocks * 512 > 3 * MIB:
        pytest.skip("this filesystem keeps no holes")
    return path


@pytest.mark.parametrize(
    ("offset", "data", "hole"),
    [
        (0, MIB, 0),
        (MIB, MIB, 2 * MIB),
        (MIB + 5, MIB + 5, 2 * MIB),
        (2 * MIB, 4 * MIB, 2 * MIB),
        (3 * MIB + 1, 4 * MIB, 3 * MIB + 1),
        (4 * MIB, 4 * MIB, 5 * MIB),
        (5 * MIB, None, 5 * MIB),
        (8 * MIB - 1, None, 8 * MIB - 1),
        (8 * MIB, None, None),
        (9 * MIB, None, None),
    ],
)
@pytest.mark.beyond_libfuse("lseek")
def test_data_and_holes_are_found(sparse: Path, offset: int, data: int | None, hole: int | None) -> None:
    with opened(sparse, os.O_RDONLY) as descriptor:
        for whence, expected in ((os.SEEK_DATA, data), (os.SEEK_HOLE, hole)):
            if expected is None:
                assert outcome(os.lseek, descriptor, offset, whence) == "ENXIO"
            else:
                assert os.lseek(descriptor, offset, whence) == expected
                assert os.lseek(descriptor, 0, os.SEEK_CUR) == expected


def test_a_file_without_holes_has_one_at_its_end(area: Path) -> None:
    path = area / "thing"
    path.write_bytes(b"x" * 10_000)
    with opened(path, os.O_RDONLY) as descriptor:
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 10_000
        assert os.lseek(descriptor, 5000, os.SEEK_DATA) == 5000
        assert outcome(os.lseek, descriptor, -1, os.SEEK_DATA) == "ENXIO"
        assert outcome(os.lseek, descriptor, 10_000, os.SEEK_DATA) == "ENXIO"


def test_lseek_keeps_to_its_rules(area: Path) -> None:
    path = area / "thing"
    path.write_bytes(b"0123456789")
    with opened(path, os.O_RDWR) as descriptor:
        assert os.lseek(descriptor, -3, os.SEEK_END) == 7
        assert os.read(descriptor, 10) == b"789"
        assert os.lseek(descriptor, 2**40, os.SEEK_SET) == 2**40
        assert outcome(os.lseek, descriptor, -11, os.SEEK_END) == "EINVAL"
        assert outcome(os.lseek, descriptor, 0, 99) == "EINVAL"


@pytest.mark.beyond_libfuse("fallocate")
def test_fallocate_grows_a_file_and_keeps_its_content(area: Path) -> None:
    path = area / "thing"
    path.write_bytes(b"content")
    with opened(path, os.O_RDWR) as descriptor:
        fallocate(descriptor, 0, 0, 100_000)
        assert os.pread(descriptor, 200_000, 0) == b"content" + bytes(100_000 - 7)
    info = path.stat()
    assert info.st_size == 100_000
    assert info.st_blocks * 512 >= 100_000


@pytest.mark.beyond_libfuse("fallocate")
def test_fallocate_within_a_file_changes_nothing(area: Path) -> None:
    path = area / "thing"
    path.write_bytes(b"content" * 100)
    with opened(path, os.O_RDWR) as descriptor:
        fallocate(descriptor, 0, 10, 20)
    assert path.read_bytes() == b"content" * 100


@pytest.mark.beyond_libfuse("fallocate")
def test_fallocate_that_keeps_the_size(area: Path) -> None:
    path = area / "thing"
    path.write_bytes(b"content")
    with opened(path, os.O_RDWR) as descriptor:
        fallocate(descriptor, FALLOC_KEEP_SIZE, 0, MIB)
    assert (path.stat().st_size, path.read_bytes()) == (7, b"content")
    assert path.stat().st_blocks * 512 >= MIB


def test_a_hole_is_punched_through_pages_already_read(area: Path) -> None:
    path = area / "thing"
    path.write_bytes(b"x" * MIB)
    with opened(path, os.O_RDWR) as descriptor:
        assert os.pread(descriptor, MIB, 0) == b"x" * MIB
        if outcome(fallocate, descriptor, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 64 * 1024, 128 * 1024) == "EOPNOTSUPP":
            pytest.skip("this filesystem punches no holes")
        assert os.pread(descriptor, MIB, 0) == b"x" * 64 * 1024 + bytes(128 * 1024) + b"x" * (MIB - 192 * 1024)
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 64 * 1024
        assert os.lseek(descriptor, 64 * 1024, os.SEEK_DATA) == 192 * 1024
    assert path.stat().st_size == MIB


def test_a_range_is_zeroed(area: Path) -> None:
    path = area / "thing"
    path.write_bytes(b"x" * 10_000)
    with opened(path, os.O_RDWR) as descriptor:
        if outcome(fallocate, descriptor, FALLOC_ZERO_RANGE, 1000, 2000) == "EOPNOTSUPP":
            pytest.skip("this filesystem zeroes no ranges")
    assert path.read_bytes() == b"x" * 1000 + bytes(2000) + b"x" * 7000


@pytest.mark.parametrize(
    ("flags", "mode", "offset", "length", "expected"),
    [
        (os.O_RDWR, 0, 0, 0, "EINVAL"),
        (os.O_RDWR, 0, -1, 10, "EINVAL"),
        (os.O_RDWR, 0, 0, -1, "EINVAL"),
        (os.O_RDONLY, 0, 0, 10, "EBADF"),
        (os.O_RDWR, FALLOC_PUNCH_HOLE, 0, 10, "EOPNOTSUPP"),
        (os.O_RDWR, 0, 2**63 - 10, 100, "EFBIG"),
    ],
)
@pytest.mark.beyond_libfuse("fallocate")
def test_what_fallocate_refuses(area: Path, flags: int, mode: int, offset: int, length: int, expected: str) -> None:
    with opened(make("file", area / "thing"), flags) as descriptor:
        assert outcome(fallocate, descriptor, mode, offset, length) == expected


def test_fallocate_of_what_is_no_file(area: Path) -> None:
    with opened(area, os.O_RDONLY) as descriptor:
        assert outcome(fallocate, descriptor, 0, 0, 10) == "EBADF"
    os.mkfifo(area / "fifo")
    with opened(area / "fifo", os.O_RDWR) as descriptor:
        assert outcome(fallocate, descriptor, 0, 0, 10) == "ESPIPE"
        assert outcome(os.lseek, descriptor, 0, os.SEEK_SET) == "ESPIPE"


@pytest.mark.parametrize("offset", [2**31 - 3, 2**31, 2**32 - 3, 2**32, 5 * GIB, 2**41 + 1])
def test_past_four_gibibytes(area: Path, behind: Callable[[Path], Path], offset: int) -> None:
    path = area / "thing"
    with opened(path, os.O_CREAT | os.O_RDWR) as descriptor:
        assert os.pwrite(descriptor, b"far away", offset) == 8
        assert os.pread(descriptor, 100, offset - 2 if offset else 0) == b"\0\0far away"
        assert os.lseek(descriptor, 0, os.SEEK_END) == offset + 8
        assert os.fstat(descriptor).st_size == offset + 8
        os.ftruncate(descriptor, offset + 4)
        assert os.pread(descriptor, 100, offset) == b"far "
    with opened(behind(path), os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 100, offset) == b"far "
