"""edge/libfuse.py: what must be there for libfuse, and the mounts that it makes, taken away."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import need
from harness.leftovers import mounts_beneath, unmount

from fuse_gated.edge import libfuse, mounts
from fuse_gated.errors import OperatorError


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is all of $PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def program(path: Path, text: str = "", mode: int = 0o755) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)


# What it lacks.


def test_what_it_lacks_is_said_of_each() -> None:
    table = {"flock", "fallocate", "rename flags", "readdirplus", "copy_file_range", "lseek"}
    assert table | {"interrupt", "invalidation", "takeover"} <= set(libfuse.LACKS)
    assert all(len(seen) > 20 for seen in libfuse.LACKS.values())


# What must be there.


def test_this_machine_will_do() -> None:
    need("fuse", "fusermount")
    libfuse.check()


def test_without_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libfuse, "DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(OperatorError, match=r"there is no .*/fuse \(as root: modprobe fuse; a container needs --device"):
        libfuse.check()


def test_with_a_device_that_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libfuse, "DEVICE", str(tmp_path))
    with pytest.raises(OperatorError, match=r"Is a directory \(as root: chmod 666"):
        libfuse.check()


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fuse").touch()
    monkeypatch.setattr(libfuse, "DEVICE", str(tmp_path / "fuse"))


def test_without_fusermount(device: None, path: Path) -> None:
    with pytest.raises(OperatorError, match=r"by fusermount, which is not installed \(install fuse3\)"):
        libfuse.check()
    program(path / "fusermount3")
    with pytest.raises(OperatorError, match=rf"\(as root: ln -s {path}/fusermount3 /usr/bin/fusermount\)"):
        libfuse.check()


def test_with_a_fusermount_that_is_not_setuid(device: None, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(path / "fusermount")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(OperatorError, match="is not setuid root"):
        libfuse.check()
    monkeypatch.setattr(os, "stat", lambda _: SimpleNamespace(st_uid=0, st_mode=stat.S_ISUID | 0o755))
    libfuse.check()


def test_without_a_table_of_mounts(device: None, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(path / "fusermount")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    table = str(tmp_path / "mtab")
    monkeypatch.setattr(libfuse, "TABLE", table)
    with pytest.raises(OperatorError, match=rf"there is no {table}, .* \(as root: ln -s /proc/self/mounts {table}\)"):
        libfuse.check()


def test_root_needs_no_setuid(device: None, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(path / "fusermount")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    libfuse.check()


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where `fusepy` and `fuse` are looked for first; they have not been imported yet."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("fusepy", "fuse"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    libfuse.library.cache_clear()
    yield tmp_path
    for name in ("fusepy", "fuse"):
        sys.modules.pop(name, None)
    libfuse.library.cache_clear()


def test_debians_name_comes_first(modules: Path) -> None:
    (modules / "fusepy.py").write_text("FUSE = fuse_get_context = None\n")
    assert libfuse.library().__name__ == "fusepy"


def test_another_binding_of_that_name_is_not_it(modules: Path) -> None:
    (modules / "fusepy.py").write_text("raise ImportError\n")
    (modules / "fuse.py").write_text("class Fuse: pass\n")
    with pytest.raises(OperatorError, match=r"by fusepy, which is not installed \(install python3-fusepy \(pip: fusepy\)\)"):
        libfuse.library()


def test_without_libfuse_itself(modules: Path) -> None:
    (modules / "fusepy.py").write_text("raise OSError('Unable to find libfuse')\n")
    with pytest.raises(OperatorError, match=r"cannot load libfuse 2: Unable to find libfuse \(install libfuse2 "):
        libfuse.library()


@pytest.mark.parametrize(
    ("text", "may"),
    [("user_allow_other\n", True), ("# x\n user_allow_other \n", True), ("#user_allow_other\n", False), (None, False)],
)
def test_whether_others_may_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, may: bool) -> None:
    monkeypatch.setattr(libfuse, "CONFIGURATION", str(tmp_path / "fuse.conf"))
    if text is not None:
        (tmp_path / "fuse.conf").write_text(text)
    assert libfuse.others_may_enter() is may


# Mounts.


@pytest.fixture
def mnt(tmp_path: Path) -> Iterator[Path]:
    need("root", "fuse", "fusermount3")
    directory = tmp_path.resolve() / "mnt"
    directory.mkdir()
    yield directory
    for point in mounts_beneath(directory):
        unmount(point)


def dead_mount(point: Path, times: int = 1) -> None:
    """A mount that nobody serves, or several, one upon the other."""
    point.mkdir(parents=True, exist_ok=True)
    directory = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(times):
        os.close(mounts.mount_fuse(directory, source="test"))
    os.close(directory)


def test_a_mount_is_taken_away(mnt: Path) -> None:
    point = mnt / "acme" / "work"
    assert libfuse.unmount(str(point)) == "", "nothing is there"
    dead_mount(point)
    dead_mount(point.with_name("other"))
    assert libfuse.is_mounted(str(point))
    assert libfuse.unmount(str(point)) == ""
    assert not libfuse.is_mounted(str(point))
    assert mounts_beneath(mnt) == [point.with_name("other")]


def test_mounts_upon_mounts_are_all_taken_away(mnt: Path) -> None:
    point = mnt / "acme" / "work"
    dead_mount(point, 3)
    assert mounts_beneath(mnt) == [point] * 3
    assert libfuse.unmount(str(point)) == ""
    assert mounts_beneath(mnt) == []


def test_what_cannot_be_taken_away(mnt: Path, path: Path) -> None:
    point = mnt / "acme" / "work"
    dead_mount(point)
    assert "fusermount3" in libfuse.unmount(str(point)), "there is none"
    program(path / "fusermount", "echo 'not you' >&2; exit 1")
    assert libfuse.unmount(str(point)) == "not you"
    program(path / "fusermount3", "exit 7")
    assert libfuse.unmount(str(point)) == "fusermount ended with 7"
    with pytest.raises(OperatorError, match=rf"stays: {point}: fusermount ended with 7 \(fusermount3 -u -z {point}\)"):
        libfuse.clear(str(mnt))


def test_what_an_earlier_server_left(mnt: Path) -> None:
    for name in ("acme/work", "acme/other", "beta/work"):
        dead_mount(mnt / name)
    (mnt / "gamma" / "empty").mkdir(parents=True)
    (mnt / "delta" / "full" / "of").mkdir(parents=True)
    (mnt / "file").touch()
    assert sorted(libfuse.clear(str(mnt))) == sorted(str(mnt / name) for name in ("acme/work", "acme/other", "beta/work"))
    assert mounts_beneath(mnt) == []
    assert sorted(os.listdir(mnt)) == ["delta", "file"], "what is not empty is not ours"
    assert libfuse.clear(str(mnt)) == []


def test_the_directories_of_a_mount(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "acme" / name).mkdir(parents=True)
    libfuse.remove_point(str(tmp_path), "acme", "one")
    assert os.listdir(tmp_path / "acme") == ["two"]
    libfuse.remove_point(str(tmp_path), "acme", "two")
    libfuse.remove_point(str(tmp_path), "acme", "two")
    assert os.listdir(tmp_path) == []


# Serving.


class Operations:
    """A root with two names, and what was asked of it."""

    use_ns = True
    flag_utime_omit_ok = 1

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.began = threading.Event()

    def __call__(self, name: str, *arguments: Any) -> Any:
        return getattr(self, name)(*arguments)

    def init(self, max_write: int) -> None:
        self.told.append(max_write)
        self.began.set()

    def getattr(self, path: str, _file: Any = None) -> dict[str, int]:
        self.told.append(libfuse.caller() if path == "/f" else None)
        return {"st_mode": stat.S_IFDIR | 0o755 if path == "/" else stat.S_IFREG | 0o644, "st_nlink": 1, "st_ino": 7}

    def opendir(self, _path: str) -> int:
        return 6

    def readdir(self, handle: int, offset: int, fill: Any) -> bool:
        self.told.append((handle, offset))
        names = [b"\xff\xfe", b"f"][offset:]
        for number, name in enumerate(names, offset + 1):
            fill(name, 40 + number, stat.S_IFREG, number)
        return bool(names)

    def utimens(self, path: str, times: libfuse.Timespecs) -> int:
        self.told.append((path, times))
        return 0

    def access(self, _path: str, _mask: int) -> int:
        self.told.append(libfuse.is_interrupted())
        return 0


@pytest.fixture
def served(mnt: Path) -> Iterator[tuple[Path, Operations]]:
    libfuse.library()
    point = mnt / "\xff-\u1234"
    point.mkdir()
    operations = Operations()
    # In a thread of ours, which alone serves it: coverage sees no thread that libfuse started.
    options = {"fsname": "test", "use_ino": True, "nothreads": True}
    thread = threading.Thread(target=libfuse.serve, args=(operations, str(point), options))
    thread.start()
    assert operations.began.wait(30)
    yield point, operations
    assert libfuse.unmount(str(point)) == ""
    thread.join(30)
    assert not thread.is_alive()


def in_a_process(code: str, point: Path) -> str:
    """Never in the process that serves the mount."""
    program = [sys.executable, "-c", f"import os, sys\npoint = sys.argv[1]\n{code}", point]
    done = subprocess.run(program, capture_output=True, check=True, text=True)
    return done.stdout.strip()


def test_what_fusepy_keeps_to_itself_is_told(served: tuple[Path, Operations]) -> None:
    point, operations = served
    assert operations.told[0] in (65536, 131072)
    assert in_a_process("print(os.listdir(os.fsencode(point)), os.stat(point + '/f').st_ino)", point) == r"[b'\xff\xfe', b'f'] 7"
    assert {(6, 0), (6, 2)} <= set(filter(None, operations.told))
    assert any(getattr(told, "uid", None) == os.geteuid() and told.pid > 0 for told in operations.told)
    in_a_process("os.utime(point + '/f'); os.utime(point + '/f', ns=(1, 2)); os.access(point + '/f', os.R_OK)", point)
    now = (0, (1 << 30) - 1)
    assert ("/f", libfuse.Timespecs(now, now)) in operations.told
    assert ("/f", libfuse.Timespecs((0, 1), (0, 2))) in operations.told
    assert operations.told[-1] is False


def test_a_listing_can_be_gone_back_in_after_its_end(served: tuple[Path, Operations]) -> None:
    """libfuse takes every position for the end once it was there, unless it is told otherwise."""
    point, _ = served
    code = """
import sys
sys.path.insert(0, "tests")
from harness.syscalls import DirectoryStream
with DirectoryStream(point) as stream:
    start = stream.tell()
    first, middle = stream.read()[0], stream.tell()
    second = stream.read()[0]
    assert stream.read() is None
    stream.seek(middle)
    print(stream.read()[0] == second, stream.read())
"""
    assert in_a_process(code, point) == "True None"


def test_where_nothing_can_be_mounted(mnt: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError):
        libfuse.serve(Operations(), str(mnt / "missing"), {"fsname": "test"})
    assert "missing" in capfd.readouterr().err
