"""copy_file_range(2), sendfile(2), splice(2) and vectored I/O."""

import os
from pathlib import Path

import pytest
from harness import outcome
from harness.files import make, opened

CONTENT = bytes(range(256)) * 1000


@pytest.mark.parametrize(
    ("start", "to", "length"), [(0, 0, len(CONTENT)), (1000, 0, 5000), (0, 10_000, 5000), (255_000, 3, 5000), (300_000, 0, 10)]
)
def test_copy_file_range(area: Path, start: int, to: int, length: int) -> None:
    (area / "from").write_bytes(CONTENT)
    with opened(area / "from", os.O_RDONLY) as source, opened(area / "to", os.O_CREAT | os.O_RDWR) as target:
        copied = 0
        while count := os.copy_file_range(source, target, length - copied, start + copied, to + copied):
            copied += count
            if copied == length:
                break
        part = CONTENT[start : start + length]
        assert copied == len(part)
        assert os.pread(target, 2 * len(CONTENT), 0) == (bytes(to) + part if part else b"")
        assert os.fstat(target).st_size == (to + len(part) if part else 0)


def test_copy_file_range_within_a_file(area: Path) -> None:
    path = area / "thing"
    path.write_bytes(b"0123456789")
    with opened(path, os.O_RDWR) as descriptor:
        assert os.copy_file_range(descriptor, descriptor, 4, 0, 6) == 4
        assert outcome(os.copy_file_range, descriptor, descriptor, 4, 0, 2) == "EINVAL"
    assert path.read_bytes() == b"0123450123"


def test_copy_file_range_wants_the_right_descriptors(area: Path) -> None:
    make("file", area / "one").write_bytes(b"content")
    make("file", area / "two")
    with opened(area / "one", os.O_RDONLY) as one, opened(area / "two", os.O_RDONLY) as two:
        assert outcome(os.copy_file_range, one, two, 4) == "EBADF"
    with opened(area, os.O_RDONLY) as directory, opened(area / "two", os.O_WRONLY) as two:
        assert outcome(os.copy_file_range, directory, two, 4) == "EISDIR"
    with opened(area / "one", os.O_RDONLY) as one, opened(area / "two", os.O_WRONLY | os.O_APPEND) as two:
        assert outcome(os.copy_file_range, one, two, 4) == "EBADF"


def test_sendfile(area: Path) -> None:
    (area / "from").write_bytes(CONTENT)
    with opened(area / "from", os.O_RDONLY) as source, opened(area / "to", os.O_CREAT | os.O_WRONLY) as target:
        sent = 0
        while sent < len(CONTENT):
            sent += os.sendfile(target, source, sent, len(CONTENT))
    assert (area / "to").read_bytes() == CONTENT


def test_splice_through_a_pipe(area: Path) -> None:
    if not hasattr(os, "splice"):
        pytest.skip("os.splice came with Python 3.10")
    (area / "from").write_bytes(CONTENT[:60_000])
    reader, writer = os.pipe()
    with opened(area / "from", os.O_RDONLY) as source, opened(area / "to", os.O_CREAT | os.O_WRONLY) as target:
        moved = 0
        while count := os.splice(source, writer, 60_000 - moved):
            taken = 0
            while taken < count:
                taken += os.splice(reader, target, count - taken)
            moved += count
            if moved == 60_000:
                break
    os.close(reader)
    os.close(writer)
    assert (area / "to").read_bytes() == CONTENT[:60_000]


def test_readv_and_writev(area: Path) -> None:
    with opened(area / "thing", os.O_CREAT | os.O_RDWR) as descriptor:
        assert os.writev(descriptor, [b"one", b"", b"three" * 1000, b"!"]) == 5004
        parts = [bytearray(2), bytearray(5000), bytearray(100)]
        assert os.preadv(descriptor, parts, 0) == 5004
    assert b"".join(parts)[:5004] == b"one" + b"three" * 1000 + b"!"
