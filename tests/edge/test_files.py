"""A hostile server against an export: nothing outside it is read, changed or opened."""

import contextlib
import ctypes
import os
import resource
import signal
import stat
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import need, outcome
from harness.leftovers import descriptors
from harness.syscalls import exchange
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_gated.edge import files
from fuse_gated.edge.files import Export
from fuse_gated.errors import OperatorError
from fuse_gated.operations import Attributes
from fuse_gated.wire import messages as wire
from fuse_gated.wire.tables import ARGUMENTS

READ, WRITE, TRUNCATE = wire.OPEN_READ, wire.OPEN_WRITE, wire.OPEN_TRUNCATE
SECRET = b"CANARY"
OWNER = wire.Owner(os.getuid(), os.getgid())
IN_OPEN, IN_ALL_EVENTS = 0x20, 0xFFF

_libc = ctypes.CDLL(None, use_errno=True)


def empty(directory: Path) -> None:
    directory.chmod(0o755)
    for path in directory.iterdir():
        if stat.S_ISDIR(path.lstat().st_mode):
            empty(path)
            path.rmdir()
        else:
            path.unlink()


class Watch:
    """inotify(7): what happens to a path from now on. An O_PATH descriptor is no opening."""

    def __init__(self, mask: int, *paths: Path) -> None:
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for path in paths:
            assert _libc.inotify_add_watch(self.fd, os.fsencode(path), mask) > 0

    def happened(self) -> bool:
        try:
            return bool(os.read(self.fd, 65536))
        except BlockingIOError:
            return False
        finally:
            os.close(self.fd)


def snapshot(directory: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in (directory, *directory.rglob("*")):
        status = path.lstat()
        kept = (status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_size, status.st_ctime_ns)
        found[str(path)] = (*kept, status.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the export, in which nothing may happen during the test, be it reading."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "canary").write_bytes(SECRET)
    (directory / "deeper").mkdir()
    before = snapshot(directory)
    watch = Watch(IN_ALL_EVENTS, directory, directory / "canary", directory / "deeper")
    yield directory
    assert not watch.happened()
    assert snapshot(directory) == before


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


class Intruder:
    """A server that carries out a request, and then does with what it got whatever can be done with it. It must never see
    anything of `forbidden`."""

    def __init__(self, export: Export, forbidden: Path | None = None) -> None:
        self.export = export
        # By their known names: listing them would be an event that the watch tells.
        names = ("", "canary", "deeper") if forbidden else ()
        self.forbidden = {os.stat(f"{forbidden}/{name}").st_ino for name in names}

    def misuse(self, arguments: wire.Arguments) -> None:
        with contextlib.suppress(OSError):
            result = self.export.perform(arguments)
            if isinstance(result, wire.OpenedFile):
                self.see(result.attributes)
                self.misuse_handle(result.handle)
            elif isinstance(result, Attributes):
                self.see(result)

    def misuse_handle(self, handle: int) -> None:
        with contextlib.suppress(OSError):
            assert SECRET not in self.export.perform(wire.Read(handle, 0, 100))
        with contextlib.suppress(OSError):
            for entry in self.export.perform(wire.Readdir(handle, 0, 100, True)).entries:
                assert entry.name != b"deeper"
                assert entry.inode not in self.forbidden
        for request in (
            wire.Write(handle, 0, memoryview(b"overwritten")),
            wire.Setattr(handle, mode=0o777, size=0),
            wire.Setxattr(handle, b"user.a", b"1"),
            wire.Link(handle, b"linked"),
            wire.Unlink(b"linked"),
            wire.Release(handle),
            wire.Releasedir(handle),
        ):
            with contextlib.suppress(OSError):
                self.export.perform(request)

    def see(self, attributes: Attributes) -> None:
        assert attributes.inode not in self.forbidden


def link_target(kind: str, outside: Path) -> str:
    return {
        "absolute": str(outside),
        "relative": "../outside",
        "root": f"/proc/self/root{outside}",
        "working-directory": "/proc/self/cwd",
        "descriptor": f"/proc/self/fd/{os.open(outside, os.O_PATH) if kind == 'descriptor' else -1}",
    }[kind]


@pytest.mark.parametrize("kind", ["absolute", "relative", "root", "working-directory", "descriptor"])
def test_links_lead_nowhere(export: Export, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(outside)
    target = link_target(kind, outside)
    assert (Path(target) / "canary").exists() or kind == "relative"

    def set_up() -> None:
        empty(root)
        (root / "inside").mkdir()
        (root / "inside" / "file").touch()
        (root / "link").symlink_to(target)
        (root / "file").symlink_to(f"{target}/canary")

    intruder = Intruder(export, outside)
    for path in (b"link", b"file", b"link/canary", b"link/deeper", b"link/new", b"link/deeper/new"):
        for other in (b"inside/name", b"inside/file"):
            for request in requests(path, other):
                set_up()
                intruder.misuse(request)
    if kind == "descriptor":
        os.close(int(Path(target).name))


@pytest.mark.parametrize(
    "path", [b"..", b"../outside/canary", b"inside/../../outside/canary", b"/etc/passwd", b"inside/..", b"./../outside"]
)
def test_paths_lead_nowhere(export: Export, root: Path, outside: Path, path: bytes) -> None:
    (root / "inside").mkdir()
    for request in requests(path, b"inside/name"):
        assert outcome(export.perform, request) == "EINVAL"


def test_absolute_targets_are_stored_and_not_followed(export: Export, root: Path, outside: Path) -> None:
    export.perform(wire.Symlink(b"mine", os.fsencode(outside)))
    for request in requests(b"mine/canary", b"x"):
        assert outcome(export.perform, request) in ("ENOTDIR", "ENOENT")
    assert export.perform(wire.Readlink(b"mine")) == os.fsencode(outside)


class Swapper:
    """Another process that makes two names change places, as fast as it can."""

    def __init__(self, first: Path, second: Path) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            while True:
                exchange(first, second)

    def __enter__(self) -> "Swapper":
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def race(intruder: Intruder, made: list[wire.Arguments], probe: wire.Arguments, outcomes: set[str]) -> None:
    """Carry out all of `made` many times, and until `probe` has met both states."""
    met: set[str] = set()
    rounds = 0
    while rounds < 1500 or not outcomes <= met:
        rounds += 1
        for request in made:
            intruder.misuse(request)
        met.add(outcome(intruder.export.perform, probe))


def test_a_directory_that_becomes_a_link_meanwhile(export: Export, root: Path, outside: Path) -> None:
    (root / "swap").mkdir()
    (root / "link").symlink_to(outside)
    safe = [request for request in requests(b"swap/canary", b"swap/other") if not isinstance(request, wire.Rmdir)]
    with Swapper(root / "swap", root / "link"):
        race(Intruder(export, outside), safe, wire.Opendir(b"swap"), {"ok", "ENOTDIR"})


def test_a_file_that_becomes_a_link_meanwhile(export: Export, root: Path, outside: Path) -> None:
    (root / "swap").write_bytes(b"inside")
    (root / "link").symlink_to(outside / "canary")
    harmless = (wire.Unlink, wire.Rename, wire.Rmdir, wire.Link)
    with Swapper(root / "swap", root / "link"):
        race(
            Intruder(export, outside),
            [request for request in requests(b"swap", b"other") if not isinstance(request, harmless)],
            wire.Open(b"swap", READ),
            {"ok", "ELOOP"},
        )


def test_a_file_that_becomes_a_fifo_meanwhile(export: Export, root: Path) -> None:
    (root / "swap").write_bytes(b"inside")
    os.mkfifo(root / "fifo")
    kept = (wire.Unlink, wire.Rename, wire.Rmdir, wire.Link)
    watch = Watch(IN_OPEN, root / "fifo")
    with Swapper(root / "swap", root / "fifo"):
        race(
            Intruder(export),
            [request for request in requests(b"swap", b"other") if not isinstance(request, kept)],
            wire.Open(b"swap", READ),
            {"ok", "ENXIO"},
        )
    assert not watch.happened()


def test_devices_are_never_opened(export: Export, root: Path) -> None:
    need("root")
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    watch = Watch(IN_OPEN, root / "null")
    kept = (wire.Unlink, wire.Rename)
    for request in requests(b"null", b"other"):
        if not isinstance(request, kept):
            Intruder(export).misuse(request)
    assert not watch.happened()


def test_hard_links_stay_what_they_are(export: Export, root: Path, tmp_path: Path) -> None:
    """A hard link into the export was made by somebody on the client, and is in the export; a server makes none of what
    lies outside."""
    (tmp_path / "shared").write_bytes(b"shared")
    (root / "shared").hardlink_to(tmp_path / "shared")
    handle = export.perform(wire.Open(b"shared", READ)).handle
    assert export.perform(wire.Read(handle, 0, 10)) == b"shared"
    assert outcome(export.perform, wire.Link(os.fsencode(tmp_path / "shared"), b"x")) == "EINVAL"
    assert outcome(export.perform, wire.Link(b"../shared", b"x")) == "EINVAL"


@pytest.mark.parametrize("trusted", [False, True])
def test_nothing_made_runs_with_anothers_rights(root: Path, no_umask: None, trusted: bool) -> None:
    export = Export(root, trust_server=trusted)
    made = {
        "created": export.perform(wire.Create(b"created", WRITE, 0o6777)).attributes.mode,
        "node": export.perform(wire.Mknod(b"node", 0o106777, 0)).mode,
        "changed": export.perform(wire.Setattr(b"node", mode=0o6711)).mode,
        "directory": export.perform(wire.Mkdir(b"directory", 0o7777)).mode,
        "opened": export.perform(wire.Setattr(b"directory", mode=0o7777)).mode,
    }
    setid = {name: bool(mode & 0o6000) for name, mode in made.items()}
    # mkdir(2) takes neither setuid nor setgid from anybody.
    assert setid == {"created": trusted, "node": trusted, "changed": trusted, "directory": False, "opened": trusted}
    export.close()


NAMES = [b"a", b"a/b", b"a/c", b"f", b"", b"..", b"../outside/canary", b"link", b"link/canary", b"/etc/passwd", b"\0", b"x" * 300]
NUMBERS = [0, 1, 2, 3, 7, 4096, -1, -(2**63), 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
paths = st.sampled_from(NAMES) | st.binary(max_size=12)
numbers = st.sampled_from(NUMBERS) | st.integers(0, 20)
FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    bytes: paths,
    int: numbers,
    bool: st.booleans(),
    wire.Target: paths | numbers,
    int | None: st.none() | numbers,
    bytes | None: st.none() | paths,
    wire.Owner | None: st.none() | st.builds(wire.Owner, numbers, numbers),
    memoryview: st.binary(max_size=100).map(memoryview),
    tuple[bytes, ...]: st.lists(paths, max_size=4).map(tuple),
}


def arguments_of(kind: type[wire.Arguments]) -> st.SearchStrategy[wire.Arguments]:
    return st.builds(kind, *(FIELDS[hint] for hint in typing.get_type_hints(kind).values()))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(st.one_of(*(arguments_of(kind) for kind in ARGUMENTS.values())), max_size=30))
def test_whatever_is_asked_ends_in_a_result_or_an_errno(
    root: Path, outside: Path, no_umask: None, asked: list[wire.Arguments]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    (root / "a").mkdir(exist_ok=True)
    if not os.path.lexists(root / "link"):
        (root / "link").symlink_to(outside)
    export = Export(root, max_handles=16)
    opened = len(os.listdir("/proc/self/fd"))
    try:
        for number, arguments in enumerate(asked):
            with contextlib.suppress(OSError):
                (export.perform if number % 2 else export.attempt)(arguments)
        assert len(os.listdir("/proc/self/fd")) <= opened + 32
    finally:
        export.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        empty(root)


def test_every_operation_of_the_wire_is_served(export: Export) -> None:
    assert set(export._perform) == set(ARGUMENTS.values())


def test_an_export_needs_a_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").touch()
    for path in (root / "file", root / "missing"):
        with pytest.raises(OperatorError, match=path.name):
            Export(path)

    def missing() -> int:
        raise FileNotFoundError(2, "No such file")

    monkeypatch.setattr(files, "effective_capabilities", missing)
    with pytest.raises(OperatorError, match="proc"):
        Export(root)


def test_the_root_is_told_without_links(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    export = Export(os.fsencode(tmp_path / "link"))
    assert export.root == os.fsencode(root.resolve())
    more = ("watches", "after") if export.watches is not None else ("after",)
    assert export.capabilities == (("chown", *more) if os.geteuid() == 0 else more)
    export.close()


@pytest.mark.parametrize(
    ("problem", "name"), [(ValueError("a null byte"), "EINVAL"), (OverflowError("int"), "EINVAL"), (MemoryError(), "ENOMEM")]
)
def test_what_python_refuses_is_an_errno(
    export: Export, root: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, name: str
) -> None:
    def refusing(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(os, "rmdir", refusing)
    assert outcome(export.perform, wire.Rmdir(b"x")) == name


def test_closing_gives_every_descriptor_back(root: Path) -> None:
    (root / "file").touch()
    before = descriptors()
    export = Export(root)
    handle = export.perform(wire.Open(b"file", READ | WRITE)).handle
    export.perform(wire.Opendir(b""))
    export.perform(wire.Setlk(handle, 1, 0, 0, 1))
    assert stat.S_ISREG(export.perform(wire.Getattr(handle)).mode)
    export.close()
    assert descriptors() == before
