import errno
import os
from pathlib import Path

import pytest
from harness import outcome

from fuse_gated.edge import filesystems
from fuse_gated.edge.filesystems import Filesystems, MountPoints


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


# Where something is mounted.


def mounted(monkeypatch: pytest.MonkeyPatch, *paths: bytes) -> None:
    points: dict[bytes, set[bytes]] = {}
    for path in paths:
        directory, _, name = path.rpartition(b"/")
        points.setdefault(directory or b"/", set()).add(name)
    monkeypatch.setattr(filesystems, "_mount_points", lambda _: points)


def test_mount_points_beneath_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.fsencode(tmp_path.resolve())
    root = os.open(tmp_path, os.O_PATH)
    points = MountPoints(root)
    assert not points.have_changed()
    mounted(monkeypatch, here + b"/a", here + b"x/a", here)
    assert points.have_changed()
    mounted(monkeypatch, here + b"/a", b"/elsewhere")
    assert not points.have_changed()
    mounted(monkeypatch, here + b"/a/b", here + b"/a")
    assert points.have_changed()
    mounted(monkeypatch)
    assert points.have_changed()
    points.close()
    os.close(root)


def test_mount_points_beneath_the_root_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    root = os.open("/", os.O_PATH)
    points = MountPoints(root)
    mounted(monkeypatch, b"/a")
    assert points.have_changed()
    mounted(monkeypatch, b"/a", b"/b/c")
    assert points.have_changed()
    points.close()
    os.close(root)


def test_beneath_a_path_that_cannot_be_said_any_change_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> bytes:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    root = os.open(tmp_path, os.O_PATH)
    monkeypatch.setattr(os, "readlink", refused)
    points = MountPoints(root)
    mounted(monkeypatch, b"/elsewhere")
    assert points.have_changed()
    points.close()
    os.close(root)


# Case.


@pytest.mark.parametrize("names", [(), (b"1", b"2"), (b"a",), (b"a", b"A", b"b"), (b"\xff.x",)], ids=str)
def test_what_tells_upper_from_lower_case_does_not_ignore_it(tmp_path, names):
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(name)
    assert not filesystems.ignores_case(str(tmp_path))


def test_a_name_that_is_not_listed_and_leads_to_the_same_file_tells_that_case_is_ignored(tmp_path, monkeypatch):
    """Here it is a hard link beyond what is looked at: few kernels have a file system at hand that ignores case."""
    (tmp_path / "name").write_text("text")
    os.link(tmp_path / "name", tmp_path / "NAME")
    assert not filesystems.ignores_case(str(tmp_path)), "both are listed"
    monkeypatch.setattr(filesystems, "_NAMES", 1)
    assert filesystems.ignores_case(str(tmp_path))


def test_another_file_by_the_other_name_is_another_file(tmp_path, monkeypatch):
    (tmp_path / "name").write_text("text")
    (tmp_path / "NAME").write_text("other")
    monkeypatch.setattr(filesystems, "_NAMES", 1)
    assert not filesystems.ignores_case(str(tmp_path))
