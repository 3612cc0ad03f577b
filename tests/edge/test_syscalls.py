import errno
import os
from pathlib import Path

import pytest
from harness import outcome

from fuse_gated.edge import syscalls


def test_utimensat_leaves_sets_and_takes_now(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.utime(path, ns=(1, 2))
    name = os.fsencode(path)
    syscalls.utimensat(name, None, 10**18 + 3, -1)
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1, 10**18 + 3)
    syscalls.utimensat(name, -(10**9) - 1, None, -1)
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (-(10**9) - 1, 10**18 + 3)
    syscalls.utimensat(name, None, -1, -1)
    assert path.stat().st_mtime_ns > 10**18 + 3
    assert outcome(syscalls.utimensat, b"/missing", 1, 1, -1) == "ENOENT"


def test_what_is_mounted_on_a_name_lies_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    root, here = os.open("/", os.O_PATH), os.open(tmp_path, os.O_PATH)
    before = os.listdir("/proc/self/fd")
    try:
        assert syscalls.is_elsewhere(root, b"proc")
        assert not syscalls.is_elsewhere(here, b"file")
        assert not syscalls.is_elsewhere(here, b"missing")
        numbers = iter([errno.EINTR, errno.EXDEV])
        monkeypatch.setattr(syscalls.ctypes, "get_errno", lambda: next(numbers))
        assert syscalls.is_elsewhere(here, b"missing")
        assert os.listdir("/proc/self/fd") == before
    finally:
        os.close(root)
        os.close(here)


def test_fallocate_tells_its_errno_and_goes_on_after_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("wb") as file:
        syscalls.fallocate(file.fileno(), 0, 0, 4096)
        assert os.fstat(file.fileno()).st_size == 4096
        assert outcome(syscalls.fallocate, file.fileno(), 0, 0, 0) == "EINVAL"
        numbers = iter([errno.EINTR, errno.ENOSPC])
        monkeypatch.setattr(syscalls.ctypes, "get_errno", lambda: next(numbers))
        assert outcome(syscalls.fallocate, file.fileno(), 0, 0, 0) == "ENOSPC"


def test_proc_filesystem_is_known_by_its_number() -> None:
    with open("/proc/self/status", "rb") as file:
        assert syscalls.filesystem_type(file.fileno()) == 0x9FA0
    assert outcome(syscalls.filesystem_type, 9999) == "EBADF"


def test_inotify_tells_its_errno(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = syscalls.inotify_init()
    try:
        watch = syscalls.inotify_add_watch(fd, os.fsencode(tmp_path), 0x100)
        (tmp_path / "new").touch()
        assert os.read(fd, 4096)[16:].rstrip(b"\0") == b"new"
        assert outcome(os.read, fd, 4096) == "EAGAIN"
        assert outcome(syscalls.inotify_add_watch, fd, os.fsencode(tmp_path / "missing"), 0x100) == "ENOENT"
        syscalls.inotify_rm_watch(fd, watch)
        assert outcome(syscalls.inotify_rm_watch, fd, watch) == "EINVAL"
    finally:
        os.close(fd)
