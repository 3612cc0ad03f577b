"""What the server remembers of a client's files: it is used, and it is never wrong for longer than a change takes to be told.

Where nothing but a notice could make the server look again within an hour, waiting until it shows the change proves the notice.
"""

import fcntl
import functools
import mmap
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Mounted, Persona, Stage, need_that
from harness.proxy import Proxy
from harness.syscalls import DirectoryStream
from harness.waiting import records, until, wait_for_record

from fuse_gated import control

Change = Callable[[Path], object]
WATCHED = {"mode": "watched"}


def view(root: Path) -> dict[str, Any]:
    """All that programs see beneath a directory."""
    found: dict[str, Any] = {}
    for directory, directories, files in os.walk(root):
        for name in (".", *directories, *files):
            path = Path(directory, name)
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            content: Any = None
            if kind == stat.S_IFREG:
                content = path.read_bytes()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            found[str(path.relative_to(root))] = (
                oct(status.st_mode), status.st_ino, status.st_nlink, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
                content,
            )  # fmt: skip
    return found


def shows(path: Path, behind: Path) -> bool:
    """Whether one is as the other. What is looked at may be changing: each name of a listing is looked at by itself."""
    try:
        return view(path) == view(behind)
    except (FileNotFoundError, NotADirectoryError):
        return False


def replaced(path: Path, content: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(content)
    os.rename(new, path)


def appended(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


CHANGES: dict[str, Change] = {
    "overwritten": lambda root: (root / "a/file").write_bytes(b"of another length"),
    "overwritten in place": lambda root: os.pwrite(os.open(root / "a/file", os.O_WRONLY), b"X", 1),
    "appended to": lambda root: appended(root / "a/file", b"more"),
    "truncated": lambda root: os.truncate(root / "a/file", 1),
    "replaced": lambda root: replaced(root / "a/file", b"another"),
    "mode": lambda root: os.chmod(root / "a/file", 0o640),
    "time": lambda root: os.utime(root / "a/file", (1, 1)),
    "removed": lambda root: os.unlink(root / "a/file"),
    "renamed": lambda root: os.rename(root / "a/file", root / "a/renamed"),
    "moved": lambda root: os.rename(root / "a/file", root / "a/deep/file"),
    "made": lambda root: (root / "a/deep/made").write_bytes(b"new"),
    "a directory made": lambda root: (root / "a/made").mkdir(),
    "a tree made": lambda root: shutil.copytree(root / "a", root / "copy"),
    "a directory renamed": lambda root: os.rename(root / "a", root / "b"),
    "a directory moved": lambda root: os.rename(root / "a/deep", root / "deep"),
    "a tree removed": lambda root: shutil.rmtree(root / "a"),
    "a file for a directory": lambda root: (shutil.rmtree(root / "a"), (root / "a").write_bytes(b"a file")),
    "a link's target": lambda root: (os.unlink(root / "link"), os.symlink("a/deep", root / "link")),
    "linked": lambda root: os.link(root / "a/file", root / "a/second"),
    "exchanged": lambda root: (
        os.rename(root / "a/file", root / "x"),
        os.rename(root / "a/other", root / "a/file"),
        os.rename(root / "x", root / "a/other"),
    ),
}  # fmt: skip


def fill(root: Path) -> None:
    (root / "a/deep/deeper").mkdir(parents=True)
    for name in ("a/file", "a/other", "a/deep/one", "a/deep/deeper/two"):
        (root / name).write_bytes(name.encode())
    os.symlink("a/file", root / "link")


@pytest.fixture(scope="module")
def mounted(stage: Stage) -> Mounted:
    return stage.mount(server=stage.server(stage.tenant(cache=WATCHED)))


@pytest.fixture
def work(mounted: Mounted, request: pytest.FixtureRequest) -> Any:
    return mounted.work(f"work-{abs(hash(request.node.name))}")


def operations(server: Any) -> int:
    """How many requests the kernel has sent to the worker."""
    return sum(session["operations"] for session in control.call(str(server.runtime), "sessions"))


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_on_the_client_is_seen(work: Any, change: str) -> None:
    fill(work.behind)
    until(lambda: shows(work.path, work.behind), "all is there")
    # What is remembered now is what must not be shown then: names that were missing too.
    for name in ("b", "copy", "deep", "a/made", "a/renamed", "a/deep/made", "a/deep/file", "a/second"):
        assert not (work.path / name).exists()
    assert view(work.path) == view(work.behind)
    CHANGES[change](work.behind)
    until(lambda: shows(work.path, work.behind), f"{change} is seen")


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_on_the_server_is_seen_at_once(work: Any, change: str) -> None:
    fill(work.path)
    assert view(work.path).keys() == view(work.behind).keys()
    CHANGES[change](work.path)
    assert view(work.path) == view(work.behind)
    until(lambda: shows(work.path, work.behind), "and goes on to be")


def test_pages_that_are_mapped_and_files_that_are_open(work: Any) -> None:
    (work.behind / "f").write_bytes(b"a" * 4096)
    until(lambda: shows(work.path, work.behind), "it is seen")
    with (work.path / "f").open("rb") as file, mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ) as pages:
        assert pages[:] == b"a" * 4096
        (work.behind / "f").write_bytes(b"b" * 4096)
        until(lambda: pages[:] == b"b" * 4096, "the pages show it")
        until(lambda: os.pread(file.fileno(), 4096, 0) == b"b" * 4096, "the open file shows it")
        with (work.behind / "f").open("r+b") as there, mmap.mmap(there.fileno(), 4096) as writing:
            writing[:] = b"c" * 4096
        until(lambda: pages[:] == b"c" * 4096, "what was written through a mapping, once it is closed")
    with (work.path / "f").open("r+b") as file, mmap.mmap(file.fileno(), 4096) as pages:
        pages[:] = b"d" * 4096
        pages.flush()
        assert (work.behind / "f").read_bytes() == b"d" * 4096


def test_an_open_file_lives_on(work: Any) -> None:
    """One that is removed, or replaced, by the client, before and after the client has opened it."""
    for name in ("removed", "replaced"):
        (work.behind / name).write_bytes(b"first")
    until(lambda: shows(work.path, work.behind), "they are seen")
    files = [(work.path / name).open("rb") for name in ("removed", "replaced")]
    os.unlink(work.behind / "removed")
    replaced(work.behind / "replaced", b"second")
    until(lambda: not (work.path / "removed").exists() and (work.path / "replaced").read_bytes() == b"second", "it is seen")
    assert [os.pread(file.fileno(), 10, 0) for file in files] == [b"first", b"first"]
    for file in files:
        file.close()


def test_a_lock_shows_what_was_written_before(work: Any) -> None:
    (work.behind / "f").write_bytes(b"0")
    until(lambda: (work.path / "f").exists(), "it is seen")
    for number in range(1, 30):
        assert (work.path / "f").stat().st_size == number
        with (work.path / "f").open("rb") as here, (work.behind / "f").open("ab") as there:
            fcntl.lockf(there, fcntl.LOCK_EX)
            there.write(b"x")
            there.flush()
            fcntl.lockf(there, fcntl.LOCK_UN)
            fcntl.lockf(here, fcntl.LOCK_SH)
            assert os.fstat(here.fileno()).st_size == number + 1
            assert len(os.pread(here.fileno(), 100, 0)) == number + 1


def test_what_is_known_is_not_asked_for(mounted: Mounted, work: Any) -> None:
    """The kernel answers stat(2) by itself, and the worker lets the client rest."""
    fill(work.behind)
    until(lambda: shows(work.path, work.behind), "all is there")

    def asked() -> int:
        before = operations(mounted.server)
        for _ in range(20):
            assert [os.lstat(work.path / name).st_size for name in ("a/file", "a/deep/one")] == [6, 10]
        return operations(mounted.server) - before

    until(lambda: asked() == 0, "nothing is asked any more")


def test_a_file_that_is_known_is_opened_and_closed(mounted: Mounted, work: Any) -> None:
    """Nothing else reaches the worker: it is the kernel who reads, and close(2) has nothing to tell."""
    need_that([int(part) for part in os.uname().release.split(".")[:2]] >= [5, 16], "FOPEN_NOFLUSH is of Linux 5.16")
    fill(work.behind)
    until(lambda: shows(work.path, work.behind), "all is there")
    files = [work.path / name for name in ("a/file", "a/other", "a/deep/one")]

    def asked() -> int:
        before = operations(mounted.server)
        for _ in range(5):
            assert [file.stat().st_size for file in files] == [len(file.read_bytes()) for file in files]
        return operations(mounted.server) - before

    until(lambda: asked() == 2 * 5 * len(files), "each is opened and closed, and that is all")


# Listings that the kernel keeps by itself.


def kept(mounted: Mounted, path: Path) -> list[str]:
    """What a directory lists, once the kernel lists it by itself: all that reaches the worker is that it is opened and closed."""

    def asked() -> bool:
        before = operations(mounted.server)
        os.listdir(path)
        return operations(mounted.server) - before <= 2

    until(asked, "the kernel lists it by itself")
    return sorted(os.listdir(path))


LISTED: dict[str, Change] = {
    name: CHANGES[name] for name in ("removed", "renamed", "moved", "a directory made", "a directory moved", "exchanged")
}
LISTED["made"] = lambda root: (root / "a/made").write_bytes(b"new")


@pytest.mark.parametrize("change", LISTED)
@pytest.mark.parametrize("where", ["client", "server"])
def test_a_listing_that_is_kept_shows_a_change(mounted: Mounted, work: Any, where: str, change: str) -> None:
    """Whoever opens it anew, and whoever has it open and reads it once more."""
    fill(work.behind)
    until(lambda: shows(work.path, work.behind), "all is there")
    assert kept(mounted, work.path / "a") == sorted(os.listdir(work.behind / "a"))
    with DirectoryStream(work.path / "a") as stream:
        before = {name for name, *_ in stream} - {".", ".."}

        def again() -> set[str]:
            stream.rewind()
            return {name for name, *_ in stream} - {".", ".."}

        assert before == again() == set(os.listdir(work.behind / "a"))
        LISTED[change](work.behind if where == "client" else work.path)
        after = set(os.listdir(work.behind / "a"))
        if where == "server":
            assert set(os.listdir(work.path / "a")) == again() == after
        until(lambda: set(os.listdir(work.path / "a")) == after, "whoever opens it sees it")
        until(lambda: again() == after, "and who has it open")
    assert kept(mounted, work.path / "a") == sorted(after)


def test_changes_that_follow_one_another_at_once(mounted: Mounted, work: Any) -> None:
    """The directory's time of last change may be the same for several of them."""
    (work.behind / "d").mkdir()
    for number in range(300):
        (work.behind / "d" / f"{number}a").touch()
        os.listdir(work.path / "d")
        (work.behind / "d" / f"{number}b").touch()
        until(lambda: len(os.listdir(work.path / "d")) == len(os.listdir(work.behind / "d")), "both are seen")
    assert len(os.listdir(work.path / "d")) == 600


def test_places_in_a_listing_that_is_kept(mounted: Mounted, work: Any) -> None:
    for number in range(2000):
        (work.behind / f"{number:04}").touch()
    until(lambda: len(os.listdir(work.path)) == 2000, "all is there")
    kept(mounted, work.path)
    with DirectoryStream(work.path) as stream:
        places, names = [stream.tell()], []
        for name, *_ in stream:
            names.append(name)
            places.append(stream.tell())
        for at in (0, 1, 700, 1999, 2001, 3, 1400):
            stream.seek(places[at])
            assert [name for name, *_ in stream] == names[at:]
        stream.seek(places[900])
        (work.behind / "new").touch()
        until(lambda: (work.path / "new").exists() and "new" in os.listdir(work.path), "it is seen")
        rest = {name for name, *_ in stream}
        assert set(names[900:]) <= rest <= {*names[900:], "new"}


def test_a_directory_of_very_many(mounted: Mounted, work: Any) -> None:
    for number in range(50_000):
        os.mknod(work.behind / f"{number}")
    expected = {str(number) for number in range(50_000)}
    assert set(os.listdir(work.path)) == expected
    assert set(kept(mounted, work.path)) == expected
    os.unlink(work.behind / "49999")
    (work.behind / "new").touch()
    until(lambda: set(os.listdir(work.path)) == expected - {"49999"} | {"new"}, "a change of it is seen")
    found = os.listdir(work.path)
    assert len(found) == len(set(found)) == 50_000


def test_a_policy_that_changes_ends_what_is_kept(apart: Stage) -> None:
    mounted = apart.mount(server=apart.server(apart.tenant(cache=WATCHED)))
    fill(mounted.export)
    until(lambda: shows(mounted.path, mounted.export), "all is there")
    assert kept(mounted, mounted.path / "a") == ["deep", "file", "other"]
    rules = [{"path": "/a/other", "hide": True}, {"path": "/**", "allow": ["read", "write", "execute", "delete"]}]
    with DirectoryStream(mounted.path / "a") as stream:
        assert len(list(stream)) == 5
        mounted.server.reload(apart.tenant(cache=WATCHED, rules=rules), "policy applied")
        assert sorted(os.listdir(mounted.path / "a")) == ["deep", "file"]
        stream.rewind()
        assert {name for name, *_ in stream} == {".", "..", "deep", "file"}
    # (The kernel need not keep it again: what was taken from it while it put it together it does not begin anew.)
    assert sorted(os.listdir(mounted.path / "a")) == ["deep", "file"]
    # Who is no user any more may not open it, whatever the kernel keeps: not even with a descriptor from before.
    guest = Persona(65534, 65534)
    inside = os.open(mounted.path / "a", os.O_PATH)
    listing = functools.partial(os.open, ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=inside)
    assert guest.outcome(listing) == "ok"
    mounted.server.reload(apart.tenant(cache=WATCHED, users=["root"], groups=[]), "policy applied")
    until(lambda: guest.outcome(os.listdir, mounted.path) == guest.outcome(listing) == "EACCES", "the guest is kept out")
    os.close(inside)
    mounted.server.reload(apart.tenant(cache=WATCHED, audit="everything"), "policy applied")
    since = len(records(mounted.server, kind="operation", operation="readdir"))
    for _ in range(3):
        assert sorted(os.listdir(mounted.path / "a")) == ["deep", "file", "other"]
    assert len(records(mounted.server, kind="operation", operation="readdir")) - since >= 6, "each of them is told"


@pytest.mark.parametrize("where", ["client", "server"])
def test_a_large_file_that_was_read_shows_a_change(mounted: Mounted, work: Any, where: str) -> None:
    content = os.urandom(2**20)
    here, there = work.path / "large", work.behind / "large"
    there.write_bytes(content)
    until(lambda: shows(work.path, work.behind), "it is seen")
    for number in range(10):
        assert here.read_bytes() == content
        content = content[:-1] + b"%d" % number if number % 2 else content + b"%d" % number
        (there if where == "client" else here).write_bytes(content)
        until(lambda: here.read_bytes() == there.read_bytes(), "the change is seen")
        assert there.read_bytes() == content


@pytest.fixture
def apart() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def test_strict_asks_each_time(apart: Stage) -> None:
    mounted = apart.mount(server=apart.server(apart.tenant(cache={"mode": "strict"})))
    (mounted.export / "f").write_bytes(b"1")
    for number in range(1, 20):
        assert (mounted.path / "f").stat().st_size == number
        with (mounted.export / "f").open("ab") as file:
            file.write(b"1")


def test_strict_keeps_times_of_access(apart: Stage) -> None:
    """With relatime a read moves an atime that is not younger than mtime (mount(8))."""
    mounted = apart.mount(server=apart.server(apart.tenant(cache={"mode": "strict"})))
    (mounted.path / "f").write_bytes(b"content")
    os.utime(mounted.path / "f", ns=(10**18, 10**18 + 10))
    assert (mounted.path / "f").read_bytes() == b"content"
    if os.statvfs(mounted.export).f_flag & os.ST_NOATIME:
        pytest.skip("the client's filesystem is mounted with noatime")
    assert (mounted.path / "f").stat().st_atime_ns > 10**18
    assert (mounted.path / "f").stat().st_mtime_ns == 10**18 + 10


def test_for_a_time_only(apart: Stage) -> None:
    mounted = apart.mount(server=apart.server(apart.tenant(cache={"mode": "ttl", "ttl": "200ms"})))
    (mounted.export / "f").write_bytes(b"1")
    assert os.listdir(mounted.path) == ["f"]
    assert (mounted.path / "f").stat().st_size == 1
    (mounted.export / "f").write_bytes(b"12")
    (mounted.export / "g").write_bytes(b"12")
    until(lambda: (mounted.path / "f").stat().st_size == 2 and sorted(os.listdir(mounted.path)) == ["f", "g"], "it is over")


def test_a_client_that_does_not_watch(apart: Stage) -> None:
    server = apart.server(apart.tenant(cache=WATCHED))
    export = apart.directory / "export"
    fill(export)
    client = apart.export(server, export, options=["--no-watch"])
    mount = client.mount_path()
    assert view(mount) == view(export)
    for change in ("overwritten", "made", "removed", "a directory renamed"):
        CHANGES[change](export)
        assert view(mount) == view(export)


def test_what_changes_while_the_client_is_away_is_seen_afterwards(apart: Stage) -> None:
    server = apart.server(apart.tenant(cache=WATCHED))
    proxy = Proxy(server.port)
    export = apart.directory / "export"
    fill(export)
    options = ["--server", proxy.url, "--reconnect-delay", "0.05", "--reconnect-max", "0.05"]
    mount = apart.export(server, export, options=options).mount_path()
    assert view(mount) == view(export)
    assert not (mount / "b").exists()
    with (mount / "a/file").open("rb") as open_before:
        # What was opened this very moment may be open on the server alone; a lock is not.
        fcntl.flock(open_before, fcntl.LOCK_SH)
        proxy.refuse()
        proxy.cut()
        wait_for_record(server, kind="session-suspended")
        for change in ("overwritten", "made", "a directory renamed"):
            CHANGES[change](export)
        proxy.refuse(False)
        wait_for_record(server, kind="session-resumed")
        # That a name was missing the kernel believes for a second more.
        until(lambda: (mount / "b").exists(), "the new name")
        assert view(mount) == view(export)
        assert open_before.read() == b"of another length"
    proxy.close()


def test_the_gate_judges_what_is_remembered(apart: Stage) -> None:
    """Nothing that was fetched ahead is read without leave, or untold."""
    rules = [
        {"path": "/secret/**", "deny": ["read"]},
        {"path": "/hidden/**", "hide": True},
        {"path": "/**", "allow": ["read", "write", "delete"]},
    ]
    server = apart.server(apart.tenant(rules=rules, audit="opens", cache=WATCHED))
    export = apart.directory / "export"
    for directory in ("open", "secret", "hidden"):
        (export / directory).mkdir(parents=True)
        for number in range(5):
            (export / directory / str(number)).write_bytes(b"content")
    mount = apart.export(server, export).mount_path()
    for number in range(5):
        assert (mount / "open" / str(number)).read_bytes() == b"content"
        with pytest.raises(PermissionError):
            (mount / "secret" / str(number)).read_bytes()
        assert not (mount / "hidden" / str(number)).exists()
    assert sorted(os.listdir(mount)) == ["open", "secret"]
    opened = [record["FUSE_GATED_PATH"] for record in records(server, kind="operation", operation="open")]
    assert opened == [f"/open/{number}" for number in range(5)]
    closed = records(server, kind="file-closed")
    assert [(record["FUSE_GATED_PATH"], record["FUSE_GATED_BYTES"]) for record in closed][:4] == [
        (f"/open/{number}", "7") for number in range(4)
    ]
    assert len(records(server, kind="refused", operation="open")) == 5
