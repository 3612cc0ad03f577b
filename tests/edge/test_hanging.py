"""A filesystem that answers nothing, mounted inside the export: whoever must not wait does not ask it anything."""

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from harness import Stage, need
from harness.hostile import SILENCE, Child, HostileClient, honest
from harness.leftovers import descriptors, unmount
from harness.mounting import MS_BIND, NOTHING, hanging, mount, tmpfs

from fuse_gated.edge.beneath import Beneath, BeyondMount
from fuse_gated.edge.files import ELSEWHERE, Export
from fuse_gated.edge.filesystems import Filesystems
from fuse_gated.wire import messages as wire

READ, WRITE = wire.OPEN_READ, wire.OPEN_WRITE
OWNER: Final = wire.Owner(0, 0)


@pytest.fixture
def hung(root: Path, no_umask: None) -> Iterator[Path]:
    (root / "d").mkdir()
    (root / "d" / "hung").mkdir()
    with hanging(root / "d" / "hung") as point:
        yield point


def naming(path: bytes) -> list[wire.Arguments]:
    """Every operation that would ask the filesystem that `path` leads to."""
    return [
        wire.Getattr(path),
        wire.Setattr(path, mode=0o777),
        wire.Setattr(path, size=0),
        wire.Setattr(path, atime=1, mtime=1),
        wire.Readlink(path),
        wire.Symlink(path, b"x", OWNER),
        wire.Mknod(path, 0o100777, 0, OWNER),
        wire.Mkdir(path, 0o777, OWNER),
        wire.Unlink(path),
        wire.Rmdir(path),
        wire.Rename(path, b"d/new"),
        wire.Rename(b"d/file", path),
        wire.Link(path, b"d/new"),
        wire.Link(b"d/file", path),
        wire.Open(path, READ),
        wire.Create(path, READ | WRITE, 0o777, OWNER),
        wire.Opendir(path),
        wire.Fsyncdir(0, True, path),
        wire.Access(path, 7),
        wire.Getxattr(path, b"user.a"),
        wire.Setxattr(path, b"user.a", b"1"),
        wire.Listxattr(path),
        wire.Removexattr(path, b"user.a"),
    ]


def in_child(function: Any, *arguments: Any) -> Any:
    """What it returns. One that hangs is no more than a test that fails."""
    with Child(function, *arguments) as child:
        return child.result()


def attempts(root: Path, wanted: list[wire.Arguments]) -> list[str]:
    export = Export(root)
    try:
        return [str(export.attempt(arguments)) for arguments in wanted]
    finally:
        export.close()


@pytest.mark.parametrize("path", [b"d/hung", b"d/hung/x", b"d/hung/x/y"])
def test_nothing_beyond_a_mount_point_is_tried(root: Path, hung: Path, path: bytes) -> None:
    (root / "d" / "file").touch()
    wanted = naming(path)
    assert in_child(attempts, root, wanted) == [str(ELSEWHERE)] * len(wanted)
    assert sorted(os.listdir(root / "d")) == ["file", "hung"], "nothing of it was done"


def test_everything_else_is_as_quick_as_ever(root: Path, hung: Path) -> None:
    def look() -> list[Any]:
        export = Export(root)
        try:
            made = export.attempt(wire.Create(b"d/file", READ | WRITE, 0o600))
            return [
                export.attempt(wire.Write(made.handle, 0, memoryview(b"abc"))),
                bytes(export.attempt(wire.Read(made.handle, 0, 3))),
                export.attempt(wire.Getattr(b"d/file")).size,
                export.attempt(wire.Rename(b"d/file", b"moved")),
                export.attempt(wire.Release(made.handle)),
            ]
        finally:
            export.close()

    assert in_child(look) == [3, b"abc", 3, None, None]


@pytest.mark.parametrize("with_attributes", [False, True])
def test_its_directory_is_listed(root: Path, hung: Path, with_attributes: bool) -> None:
    """And says of it what the directory itself says."""
    (root / "d" / "file").touch()

    def look() -> dict[bytes, bool]:
        export = Export(root)
        try:
            handle = export.attempt(wire.Opendir(b"d")).handle
            listed = export.attempt(wire.Readdir(handle, 0, 100, with_attributes))
            return {entry.name: entry.attributes is not None for entry in listed.entries}
        finally:
            export.close()

    assert in_child(look) == {b"hung": False, b"file": with_attributes}


def test_without_openat2_nothing_with_a_path_is_tried(root: Path, hung: Path) -> None:
    def look() -> list[Any]:
        export = Export(root, openat2=False)
        try:
            paths = (b"d/hung/x", b"d/hung", b"d", b"d/file")
            return [str(export.attempt(wire.Getattr(path))) for path in paths] + [export.attempt(wire.Getattr(b"")).mode]
        finally:
            export.close()

    *elsewhere, mode = in_child(look)
    assert elsewhere == [str(ELSEWHERE)] * 4
    assert mode == root.stat().st_mode


def test_without_openat2_only_the_root_is_certain(root: Path) -> None:
    with contextlib.closing(Beneath(os.fsencode(root), openat2=False)) as beneath, beneath.within_mount:
        for look, path in ((beneath.parent, b"x"), (beneath.parent, b"x/y"), (beneath.node, b"x")):
            with pytest.raises(BeyondMount):
                look(path)
        with beneath.node(b"") as node:
            assert node == beneath.root


def test_long_paths_are_left_to_those_who_may_wait(root: Path) -> None:
    deep = b"/".join([b"n" * 200] * 25)
    with contextlib.closing(Beneath(os.fsencode(root))) as beneath, beneath.within_mount:
        for look in (beneath.node, beneath.status, beneath.parent):
            with pytest.raises(BeyondMount):
                look(deep)


def test_a_refused_try_keeps_no_descriptor(root: Path, hung: Path) -> None:
    before = len(descriptors())
    with contextlib.closing(Beneath(os.fsencode(root))) as beneath, beneath.within_mount:
        parent, node, status = beneath.parent, beneath.node, beneath.status
        looks = ((parent, b"d/hung"), (parent, b"d/hung/x"), (node, b"d/hung"), (status, b"d/hung"))
        for look, path in looks:
            with pytest.raises(BeyondMount):
                look(path)
    assert len(descriptors()) == before


# What is open there.


class Hanging:
    """An export in whose directory `there` a filesystem is mounted that answers at first, and then no more."""

    def __init__(self, stage: Stage, root: Path) -> None:
        self.silent = False
        self.client = HostileClient(stage.server(), tenant="acme")
        self.point = root / "there"
        self.point.mkdir()
        mount(str(self.client.open(self._answer)), self.point, NOTHING, MS_BIND)

    def _answer(self, *asked: Any) -> Any:
        return SILENCE if self.silent else honest(*asked)

    def close(self) -> None:
        unmount(self.point)
        self.client.close()


@pytest.fixture
def there(root: Path) -> Iterator[Hanging]:
    need("root", "fuse")
    with Stage("kernel") as stage:
        hanging = Hanging(stage, root)
        yield hanging
        hanging.close()


def by_handle(handle: int, directory: int, near: int) -> list[wire.Arguments]:
    return [
        wire.Getattr(handle),
        wire.Getattr(directory),
        wire.Setattr(handle, size=0),
        wire.Open(handle, READ),
        wire.Link(handle, b"new"),
        wire.Read(handle, 0, 10),
        wire.Write(handle, 0, memoryview(b"x")),
        wire.Flush(handle, 1),
        wire.Release(handle),
        wire.Fsync(handle, True),
        wire.Fsyncdir(directory, True),
        wire.Readdir(directory, 0, 10, True),
        wire.Releasedir(directory),
        wire.Access(handle, 4),
        wire.Getxattr(handle, b"user.a"),
        wire.Lseek(handle, 0, True),
        wire.Fallocate(handle, 0, 1, 0),
        wire.CopyFileRange(handle, 0, near, 0, 10),
        wire.CopyFileRange(near, 0, handle, 0, 10),
        wire.Setlk(handle, 1, 0, 10, 1),
        wire.Setlk(handle, 1, 0, 10, 1, flock=True),
        wire.Getlk(handle, 1, 0, 10, 1),
    ]


def test_nothing_that_is_open_there_is_touched(root: Path, there: Hanging) -> None:
    (root / "near").write_bytes(b"near")
    reader, writer = os.pipe()
    again_reader, again_writer = os.pipe()

    def work() -> list[str]:
        export = Export(root)
        handle = export.perform(wire.Open(b"there/f", READ | WRITE)).handle
        directory = export.perform(wire.Opendir(b"there")).handle
        near = export.perform(wire.Open(b"near", READ | WRITE)).handle
        os.write(writer, b"open")
        os.read(again_reader, 1)
        found = [str(export.attempt(arguments)) for arguments in by_handle(handle, directory, near)]
        # What is open on the root's own filesystem is, and locks on it wait for nobody.
        assert bytes(export.attempt(wire.Read(near, 0, 4))) == b"near"
        assert export.attempt(wire.Setlk(near, 1, 0, 10, 1)) is None
        return found

    with Child(work) as child:
        there.client.pump(lambda: bool(select.select([reader], [], [], 0)[0]), reader)
        there.silent = True
        os.write(again_writer, b"x")
        assert child.result() == [str(ELSEWHERE)] * 22
        there.silent = False
        # The child's end releases what it had open.
        there.client.leave()
    for descriptor in (reader, writer, again_reader, again_writer):
        os.close(descriptor)


# Where things are mounted.


def test_mounts_that_come_and_go_are_noticed(tmp_path: Path) -> None:
    need("root")
    known = Filesystems()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert b"new\nname" not in known.mounted_in(fd)
        (tmp_path / "new\nname").mkdir()
        with tmpfs(tmp_path / "new\nname", "size=64k"):
            assert b"new\nname" in known.mounted_in(fd)
            assert b"new" not in known.mounted_in(fd)
        assert b"new\nname" not in known.mounted_in(fd)
    finally:
        os.close(fd)
        known.close()


def test_a_device_is_asked_about_again_after_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another filesystem's by then."""
    need("root")
    asked: list[int] = []

    def magic(fd: int) -> int:
        asked.append(fd)
        return 0xEF53

    monkeypatch.setattr("fuse_gated.edge.filesystems.filesystem_type", magic)
    known = Filesystems()
    assert known.is_local(3, 1)
    with tmpfs(tmp_path, "size=64k"):
        assert known.is_local(4, 1)
    assert asked == [3, 4]
    known.close()


def test_a_directory_whose_path_is_too_long_to_tell_may_hold_mounts(tmp_path: Path) -> None:
    known = Filesystems()
    fd = os.open(tmp_path, os.O_RDONLY)
    made = []
    try:
        for _ in range(25):
            os.mkdir("n" * 200, dir_fd=fd)
            made.append(fd)
            fd = os.open("n" * 200, os.O_RDONLY, dir_fd=fd)
        assert b"anything" in known.mounted_in(fd)
        os.close(fd)
        with pytest.raises(FileNotFoundError):
            known.mounted_in(fd)
        while made:
            fd = made.pop()
            os.rmdir("n" * 200, dir_fd=fd)
            if made:
                os.close(fd)
    finally:
        os.close(fd)
        known.close()
