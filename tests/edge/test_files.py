"""A hostile server against an export: nothing outside it is read, changed or opened."""

import contextlib
import ctypes
import os
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ALICE, need, outcome

from fuse_gated.edge import files
from fuse_gated.edge.files import Export
from fuse_gated.errors import OperatorError
from fuse_gated.wire import messages as wire

READ, WRITE, TRUNCATE = wire.OPEN_READ, wire.OPEN_WRITE, wire.OPEN_TRUNCATE
SECRET = b"CANARY"
OWNER = wire.Owner(os.getuid(), os.getgid())


def answer(export: Export, arguments: wire.Arguments) -> str:
    return outcome(export.perform, arguments)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the export, which must be at the end what it was at the start."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "canary").write_bytes(SECRET)
    (directory / "deeper").mkdir()
    before = snapshot(directory)
    yield directory
    assert snapshot(directory) == before


def snapshot(directory: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in (directory, *directory.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        xattrs = tuple(os.listxattr(path, follow_symlinks=False))
        kept = (status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)
        found[str(path)] = (*kept, content, xattrs)
    return found


def requests(path: bytes, other: bytes) -> list[wire.Arguments]:
    """Every operation that names a path, on `path`; those with a second one use `other` for it."""
    return [
        wire.Getattr(path),
        wire.Setattr(path, mode=0o777),
        wire.Setattr(path, size=0),
        wire.Setattr(path, atime=1, mtime=1),
        wire.Setattr(path, uid=os.getuid(), gid=os.getgid()),
        wire.Readlink(path),
        wire.Symlink(path, b"/etc/passwd", OWNER),
        wire.Mknod(path, 0o100777, 0, OWNER),
        wire.Mkdir(path, 0o777, OWNER),
        wire.Unlink(path),
        wire.Rmdir(path),
        wire.Rename(path, other),
        wire.Rename(other, path),
        wire.Rename(path, other, no_replace=True),
        wire.Rename(path, other, exchange=True),
        wire.Link(path, other),
        wire.Link(other, path),
        wire.Open(path, READ),
        wire.Open(path, WRITE),
        wire.Open(path, READ | WRITE | TRUNCATE),
        wire.Create(path, READ | WRITE, 0o777, OWNER),
        wire.Create(path, READ | WRITE | TRUNCATE, 0o777),
        wire.Opendir(path),
        wire.Access(path, 7),
        wire.Getxattr(path, b"user.a"),
        wire.Setxattr(path, b"user.a", b"1"),
        wire.Listxattr(path),
        wire.Removexattr(path, b"user.a"),
    ]


def misuse(export: Export, arguments: wire.Arguments) -> None:
    """Carry it out, and do with a handle that it gives whatever can be done with one."""
    with contextlib.suppress(OSError):
        result = export.perform(arguments)
        if isinstance(result, wire.OpenedFile):
            use(export, result.handle)
        elif isinstance(result, bytes):
            assert SECRET not in result


def use(export: Export, handle: int) -> None:
    with contextlib.suppress(OSError):
        assert SECRET not in export.perform(wire.Read(handle, 0, 100))
    with contextlib.suppress(OSError):
        export.perform(wire.Write(handle, 0, b"overwritten"))
    with contextlib.suppress(OSError):
        names = [entry.name for entry in export.perform(wire.Readdir(handle, 0, 100, True)).entries]
        assert b"canary" not in names
    for request in (wire.Setattr(handle, mode=0o777, size=0), wire.Setxattr(handle, b"user.a", b"1"), wire.Link(handle, b"stolen")):
        with contextlib.suppress(OSError):
            export.perform(request)
    for release in (wire.Release(handle), wire.Releasedir(handle)):
        with contextlib.suppress(OSError):
            export.perform(release)


LINKS: list[tuple[str, Callable[[Path], str]]] = [
    ("absolute", lambda outside: str(outside)),
    ("relative", lambda outside: "../outside"),
    ("magic root", lambda outside: f"/proc/self/root{outside}"),
    ("magic cwd", lambda outside: "/proc/self/cwd"),
    ("magic descriptor", lambda outside: f"/proc/self/fd/{os.open(outside, os.O_RDONLY)}"),
]


@pytest.mark.parametrize("make", [make for _, make in LINKS], ids=[name for name, _ in LINKS])
def test_links_lead_nowhere(export: Export, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], str]) -> None:
    monkeypatch.chdir(outside)
    target = make(outside)
    (root / "inside").mkdir()
    for suffix in ("", "/canary", "/deeper", "/new"):
        for request in requests(b"link" + suffix.encode(), b"inside/name"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                (root / "link").unlink()
            if not (root / "link").exists():
                (root / "link").symlink_to(target)
            misuse(export, request)
        (root / "link").unlink(missing_ok=True) if not (root / "link").is_dir() or (root / "link").is_symlink() else None
        (root / "file-link").symlink_to(f"{target}/canary")
        for request in requests(b"file-link", b"inside/other"):
            misuse(export, request)
        shutil.rmtree(root)
        (root / "inside").mkdir(parents=True)
        break_down(export, root)
    if target.startswith("/proc/self/fd/"):
        os.close(int(target.rpartition("/")[2]))


def break_down(export: Export, root: Path) -> None:
    """The export's root was replaced: the descriptor that is held is of the old one, which has no names any more."""
    assert answer(export, wire.Mkdir(b"x", 0o755)) == "ENOENT"
