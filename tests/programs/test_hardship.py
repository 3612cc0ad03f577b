"""A client whose disk is full, and one that is not root and whose files become unreadable."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Mounted, Stage, need, outcome
from harness.files import create, opened
from harness.mounting import tmpfs

NOBODY = 65534
BLOCK = 64 * 1024


@pytest.fixture
def small(stage: Stage) -> Iterator[Mounted]:
    """An export on a filesystem of 4 MiB and 64 inodes."""
    need("root")
    directory = stage.directory / "small"
    directory.mkdir()
    with tmpfs(directory, "size=4m,nr_inodes=64,mode=777"):
        mounted = stage.mount(directory=directory)
        yield mounted
        mounted.client.stop()


def test_a_full_disk_is_enospc_and_loses_nothing_acknowledged(driver: str, small: Mounted) -> None:
    """What is written ahead of the client is acknowledged by fsync: the error comes first, and what is there has no holes."""
    acknowledged = 0
    with opened(small.path / "file", os.O_CREAT | os.O_WRONLY) as descriptor:

        def fill() -> None:
            nonlocal acknowledged
            while True:
                acknowledged += os.write(descriptor, bytes([acknowledged // BLOCK % 256]) * BLOCK)

        assert outcome(fill) == "ENOSPC"
        heard = outcome(os.fsync, descriptor)
        assert heard == "ok" or (driver == "watched" and heard == "ENOSPC")
        os.fsync(descriptor)
        if driver == "watched":
            acknowledged = min(acknowledged, os.fstat(descriptor).st_size)
        assert os.fstat(descriptor).st_size == acknowledged
    assert acknowledged > 3 * 2**20
    content = (small.export / "file").read_bytes()
    assert len(content) == acknowledged
    for offset in range(0, acknowledged, BLOCK):
        part = content[offset : offset + BLOCK]
        assert part == bytes([offset // BLOCK % 256]) * len(part)


def test_after_room_is_made_writing_goes_on(small: Mounted) -> None:
    (small.export / "ballast").write_bytes(bytes(4 * 2**20 - 8192))
    assert outcome(_write, small.path / "file", 100_000) == "ENOSPC"
    assert (small.path / "file").stat().st_size == (small.export / "file").stat().st_size
    (small.path / "ballast").unlink()
    assert outcome(_write, small.path / "file", 100_000) == "ok"
    assert (small.export / "file").read_bytes() == b"x" * 100_000


def test_no_inode_left_is_enospc_for_every_kind(small: Mounted) -> None:
    number = 0
    while outcome(create, small.path / str(number)) == "ok":
        number += 1
    assert 30 < number < 64
    assert outcome(create, small.path / "new") == "ENOSPC"
    assert outcome(os.mkdir, small.path / "new") == "ENOSPC"
    assert outcome(os.symlink, "target", small.path / "new") == "ENOSPC"
    assert outcome(os.mkfifo, small.path / "new") == "ENOSPC"
    assert sorted(os.listdir(small.path)) == sorted(str(made) for made in range(number))
    (small.path / "0").unlink()
    assert outcome(os.mkdir, small.path / "new") == "ok"


def test_statvfs_tells_how_full_it_is(small: Mounted) -> None:
    (small.path / "file").write_bytes(bytes(2**20))
    here, there = os.statvfs(small.path), os.statvfs(small.export)
    assert here.f_frsize * here.f_bavail == there.f_frsize * there.f_bavail
    assert here.f_ffree == there.f_ffree


def _write(path: Path, size: int) -> None:
    with opened(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC) as descriptor:
        written = 0
        while written < size:
            written += os.write(descriptor, b"x" * (size - written))


@pytest.fixture
def humble(stage: Stage) -> Mounted:
    """A client that is not root, and so is bound by its files' modes."""
    need("root", "setpriv")
    return stage.mount(user=NOBODY)


def test_chmod_to_unreadable_midway(humble: Mounted) -> None:
    there, here = humble.export / "file", humble.path / "file"
    content = bytes(range(256)) * 4096
    there.write_bytes(content)
    os.chown(there, NOBODY, NOBODY)
    with opened(here, os.O_RDONLY) as descriptor:
        assert os.read(descriptor, 1000) == content[:1000]
        there.chmod(0)
        assert os.pread(descriptor, 2**21, 0) == content
        assert outcome(create, here) == "EACCES"
        assert outcome(here.read_bytes) == "EACCES"
        assert here.stat().st_mode & 0o777 == 0
        here.chmod(0o600)
    assert here.read_bytes() == content


def test_a_directory_becomes_unreadable_midway(humble: Mounted, seen: Callable[[Callable[[], bool]], None]) -> None:
    (humble.path / "directory").mkdir()
    (humble.path / "directory" / "file").write_text("content")
    there = humble.export / "directory"
    assert (there.stat().st_uid, (there / "file").stat().st_uid) == (NOBODY, NOBODY)
    there.chmod(0)
    seen(lambda: outcome(os.listdir, humble.path / "directory") == "EACCES")
    seen(lambda: outcome((humble.path / "directory" / "file").read_text) == "EACCES")
    assert outcome(create, humble.path / "directory" / "new") == "EACCES"
    there.chmod(0o300)
    seen(lambda: (humble.path / "directory" / "file").read_text() == "content")
    assert outcome(os.listdir, humble.path / "directory") == "EACCES"
    there.chmod(0o700)
    seen(lambda: os.listdir(humble.path / "directory") == ["file"])


def test_what_belongs_to_another_is_refused_as_the_client_is(humble: Mounted) -> None:
    (humble.export / "roots").write_text("secret")
    (humble.export / "roots").chmod(0o600)
    assert outcome((humble.path / "roots").read_text) == "EACCES"
    assert outcome(os.chmod, humble.path / "roots", 0o644) == "EPERM"
    assert outcome(os.unlink, humble.path / "roots") == "ok"
