"""statvfs(3) and fstatvfs(3)."""

import os
from collections.abc import Callable
from pathlib import Path

from harness.files import make, opened


def test_says_what_the_filesystem_behind_says(area: Path, behind: Callable[[Path], Path]) -> None:
    here, there = os.statvfs(area), os.statvfs(behind(area))
    assert here.f_frsize * here.f_blocks == there.f_frsize * there.f_blocks
    assert here.f_files == there.f_files
    assert here.f_namemax == 255
    assert here.f_bsize > 0
    assert here.f_blocks >= here.f_bfree >= here.f_bavail
    assert here.f_files >= here.f_ffree


def test_by_descriptor_and_by_any_kind(area: Path) -> None:
    total = os.statvfs(area).f_blocks
    for kind in ("file", "directory", "fifo"):
        assert os.statvfs(make(kind, area / kind)).f_blocks == total
    with opened(area / "file", os.O_RDONLY) as descriptor:
        assert os.fstatvfs(descriptor).f_blocks == total
