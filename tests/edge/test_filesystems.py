import os
from pathlib import Path

import pytest
from harness import outcome

from fuse_gated.edge import filesystems
from fuse_gated.edge.filesystems import Filesystems


def test_this_machines_memory_is_local_and_proc_is_not_known() -> None:
    known = Filesystems()
    for path, local in (("/dev/shm", True), ("/proc", False)):
        fd = os.open(path, os.O_PATH)
        assert known.is_local(fd, os.fstat(fd).st_dev) is local
        os.close(fd)


def test_each_device_is_asked_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def magic(fd: int) -> int:
        asked.append(fd)
        return 0xEF53

    monkeypatch.setattr(filesystems, "filesystem_type", magic)
    known = Filesystems()
    assert known.is_local(3, 1)
    assert known.is_local(4, 1)
    assert asked == [3]
    for device in range(5000):
        known.is_local(5, device)
    assert len(known._known) <= 4098


def test_errors_are_told() -> None:
    assert outcome(Filesystems().is_local, 9999, 1) == "EBADF"
