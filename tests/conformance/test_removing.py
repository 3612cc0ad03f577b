"""unlink(2) and rmdir(2)."""

import os
from pathlib import Path

import pytest
from harness import ALICE, BOB, Persona, outcome
from harness.clock import changed
from harness.files import KINDS, make, opened, remove

NOT_DIRECTORIES = [kind for kind in KINDS if kind != "directory"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_gone(area: Path, kind: str) -> None:
    path = make(kind, area / "thing")
    remove(path)
    assert outcome(os.lstat, path) == "ENOENT"
    assert os.listdir(area) == []
    assert outcome(remove, make(kind, path)) == "ok"


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_rmdir_of_anything_else_is_enotdir(area: Path, kind: str) -> None:
    assert outcome(os.rmdir, make(kind, area / "thing")) == "ENOTDIR"
    assert os.listdir(area) == ["thing"]


def test_unlink_of_a_directory_is_eisdir(area: Path) -> None:
    """unlink(2): EISDIR on Linux, where POSIX has EPERM."""
    assert outcome(os.unlink, make("directory", area / "thing")) == "EISDIR"


def test_unlink_takes_the_link_and_not_its_target(area: Path) -> None:
    make("file", area / "target")
    (area / "link").symlink_to("target")
    os.unlink(area / "link")
    assert os.listdir(area) == ["target"]


def test_rmdir_of_a_link_to_a_directory_is_enotdir(area: Path) -> None:
    make("directory", area / "target")
    (area / "link").symlink_to("target")
    assert outcome(os.rmdir, area / "link") == "ENOTDIR"
    assert outcome(os.rmdir, f"{area}/link/") == "ENOTDIR"


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_with_something_in_it_is_enotempty(area: Path, kind: str) -> None:
    below = make("directory", area / "below")
    path = make(kind, below / "thing")
    assert outcome(os.rmdir, below) == "ENOTEMPTY"
    remove(path)
    assert outcome(os.rmdir, below) == "ok"


def test_rmdir_of_the_dots(area: Path) -> None:
    make("directory", area / "below")
    assert outcome(os.rmdir, f"{area}/below/.") == "EINVAL"
    assert outcome(os.rmdir, f"{area}/below/..") == "ENOTEMPTY"
    assert outcome(os.unlink, f"{area}/below/.") in ("EISDIR", "EINVAL")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("caller", "expected"), [(ALICE, "ok"), (BOB, "EACCES"), (BOB.with_groups(ALICE.gid), "ok")])
def test_needs_write_permission_in_the_directory_alone(area: Path, kind: str, caller: Persona, expected: str) -> None:
    below = make("directory", area / "below", 0o775, ALICE.uid, ALICE.gid)
    path = make(kind, below / "thing", 0)
    assert caller.outcome(remove, path) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_updates_the_times_of_the_directory(area: Path, probe: Path, kind: str) -> None:
    below = make("directory", area / "below")
    path = make(kind, below / "thing")
    assert changed(below, probe, lambda: remove(path)) == {"mtime", "ctime"}


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_unlink_updates_ctime_of_the_file(area: Path, probe: Path, kind: str) -> None:
    path, other = make(kind, area / "thing"), area / "other"
    os.link(path, other, follow_symlinks=False)
    assert changed(other, probe, lambda: os.unlink(path)) == {"ctime"}


def test_failing_updates_nothing(area: Path, probe: Path) -> None:
    below = make("directory", area / "below")
    make("file", below / "file")
    for path in (area, below, below / "file"):
        assert changed(path, probe, lambda: outcome(os.rmdir, below)) == set()
        assert changed(path, probe, lambda: outcome(os.unlink, below)) == set()
        assert changed(path, probe, lambda: ALICE.outcome(os.unlink, below / "file")) == set()


def test_a_removed_name_can_be_another_kind_of_thing(area: Path) -> None:
    inodes = []
    with opened(make("file", area / "thing"), os.O_RDONLY) as descriptor:
        for kind in ("directory", "symlink", "fifo", "file"):
            remove(area / "thing")
            make(kind, area / "thing")
            inodes.append((area / "thing").lstat().st_ino)
            assert inodes[-1] == next(os.scandir(area)).inode()
        assert os.fstat(descriptor).st_ino not in inodes


@pytest.mark.beyond_libfuse("nodes")
def test_a_removed_open_directory_is_empty_and_takes_nothing(area: Path) -> None:
    below = make("directory", area / "below")
    with opened(below, os.O_RDONLY) as descriptor:
        os.rmdir(below)
        assert os.fstat(descriptor).st_nlink == 0
        assert os.listdir(descriptor) == []
        assert outcome(os.mkdir, "new", dir_fd=descriptor) == "ENOENT"
        assert outcome(os.stat, "new", dir_fd=descriptor) == "ENOENT"
        make("directory", below)
        make("file", below / "file")
        assert os.listdir(descriptor) == []


def test_the_working_directory_can_be_removed(area: Path) -> None:
    below = make("directory", area / "below")

    def stand_in_it() -> tuple[str, str]:
        os.chdir(below)
        os.rmdir(below)
        return outcome(os.getcwd), outcome(os.open, "new", os.O_CREAT | os.O_WRONLY)

    area.chmod(0o777)
    os.chown(below, ALICE.uid, ALICE.gid)
    assert ALICE.call(stand_in_it) == ("ENOENT", "ENOENT")
