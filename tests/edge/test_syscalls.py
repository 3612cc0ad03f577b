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
