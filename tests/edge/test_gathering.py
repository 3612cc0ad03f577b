import errno
import fcntl
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import ALICE, need, outcome

from fuse_gated.edge import gathering, listing, syscalls
from fuse_gated.edge.attributes import attributes
from fuse_gated.edge.files import LATER, Export
from fuse_gated.edge.gathering import MOST_BYTES, Budget, Collected
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire
from fuse_gated.wire.messages import Gathered


def gather(
    export: Export, *paths: bytes, content: int = 65536, entries: int = 1000, most: int = 2**20, watch: bool = True
) -> tuple[Gathered, ...]:
    collected = export.perform(wire.Gather(paths, content, entries, most, watch))
    assert isinstance(collected, Collected)
    assert len(codec.encode(wire.Reply(2, None, collected.answer()))) <= wire.MAX_MESSAGE
    return answer(collected)


def answer(collected: Collected) -> tuple[Gathered, ...]:
    return tuple(
        msgspec.structs.replace(
            found,
            attributes=untouched(found.attributes),
            entries=tuple(
                msgspec.structs.replace(entry, attributes=untouched(entry.attributes)) for entry in found.entries
            ),
        )
        for found in collected.answer()
    )


@pytest.fixture
def tree(root: Path) -> Path:
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "file").write_bytes(b"content")
    (root / "d" / "empty").touch()
    (root / "d" / "link").symlink_to("file")
    return root


@pytest.fixture
def watched(tree: Path, no_umask: None) -> Iterator[Export]:
    export = Export(tree)
    assert export.watches is not None
    yield export
    export.close()


def now(path: Path) -> Any:
    return untouched(attributes(path.lstat()))


def untouched(found: Any) -> Any:
    """Attributes without the time of access, which looking at them changes."""
    return found and msgspec.structs.replace(found, atime=0)


# What is gathered.


def test_each_kind_of_file(export: Export, tree: Path) -> None:
    directory, file, empty, link, missing = gather(export, b"d", b"d/file", b"d/empty", b"d/link", b"d/missing")
    assert (directory.errno, directory.attributes, directory.complete) == (None, now(tree / "d"), True)
    assert {entry.name: (entry.inode, entry.type, entry.attributes) for entry in directory.entries} == {
        os.fsencode(path.name): (path.lstat().st_ino, stat.S_IFMT(path.lstat().st_mode), now(path))
        for path in (tree / "d").iterdir()
    }
    assert (file.attributes, file.content, file.entries, file.complete) == (now(tree / "d" / "file"), b"content", (), False)
    assert (empty.attributes, empty.content) == (now(tree / "d" / "empty"), b"")
    assert (link.attributes, link.content) == (now(tree / "d" / "link"), b"file")
    assert (missing.errno, missing.attributes, missing.content) == ("ENOENT", None, None)
    can_watch = export.watches is not None
    assert [one.watched for one in (directory, file, empty, link, missing)] == [can_watch] * 5


def test_the_root(export: Export, tree: Path) -> None:
    [found] = gather(export, b"")
    assert found.attributes == now(tree)
    assert [entry.name for entry in found.entries] == [b"d"]


def test_nothing_is_gathered_of_nothing(export: Export) -> None:
    assert gather(export) == ()


def test_only_what_is_wanted(export: Export, tree: Path) -> None:
    directory, file, empty, link = gather(export, b"d", b"d/file", b"d/empty", b"d/link", content=0, entries=0)
    assert (directory.entries, directory.complete) == ((), False)
    assert (file.content, empty.content, link.content) == (None, None, b"file")
    [file] = gather(export, b"d/file", content=6)
    assert file.content is None
    [file] = gather(export, b"d/file", content=7)
    assert file.content == b"content"


def test_a_directory_of_more_entries_than_are_wanted(export: Export, tree: Path) -> None:
    for entries, complete in ((3, False), (4, True), (5, True)):
        [found] = gather(export, b"d", entries=entries)
        assert (len(found.entries), found.complete) == (min(entries, 4), complete)


def test_no_time_of_access_changes(export: Export, tree: Path) -> None:
    for path in (tree / "d", tree / "d" / "file"):
        os.utime(path, (0, 0))
    before = [(tree / path).stat().st_atime_ns for path in ("d", "d/file")]
    assert gather(export, b"d", b"d/file")[1].content == b"content"
    assert [(tree / path).stat().st_atime_ns for path in ("d", "d/file")] == before


def test_special_files_are_never_opened(export: Export, tree: Path) -> None:
    os.mkfifo(tree / "d" / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.fsencode(tree / "d" / "socket"))
        for found in gather(export, b"d/fifo", b"d/socket"):
            assert (found.errno, found.content) == (None, None)
    if os.geteuid() == 0:
        os.mknod(tree / "d" / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        assert gather(export, b"d/null")[0].content is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"..", "EINVAL"),
        (b"../outside", "EINVAL"),
        (b"d/../../outside", "EINVAL"),
        (b"/etc/passwd", "EINVAL"),
        (b"d//file", "EINVAL"),
        (b".", "EINVAL"),
        (b"d/\0", "EINVAL"),
        (b"x" * 256, "ENAMETOOLONG"),
        (b"x/" * 600000 + b"x", "ENAMETOOLONG"),
        (b"escape", None),
        (b"escape/secret", "ENOTDIR"),
        (b"d/file/x", "ENOTDIR"),
        (b"missing/x", "ENOENT"),
    ],
)
def test_nothing_outside_is_reached(export: Export, tree: Path, tmp_path: Path, path: bytes, name: str | None) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (tree / "escape").symlink_to(tmp_path / "outside")
    first, found = gather(export, b"d/file", path)
    assert first.content == b"content"
    assert found.errno == name
    assert found.watched is (name is None and export.watches is not None)
    assert not found.entries
    assert found.content in (None, os.fsencode(tmp_path / "outside"))


@pytest.mark.parametrize("numbers", [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_numbers_below_nothing(export: Export, numbers: tuple[int, int, int]) -> None:
    for ask in (export.perform, export.attempt):
        assert outcome(ask, wire.Gather((b"",), *numbers, True)) == "EINVAL"


def test_numbers_beyond_all_bounds(export: Export, tree: Path) -> None:
    directory, file = gather(export, b"d", b"d/file", content=2**64 - 1, entries=2**64 - 1, most=2**64 - 1)
    assert directory.complete
    assert file.content == b"content"


def test_too_many_paths(export: Export) -> None:
    assert len(gather(export, *[b"missing"] * wire.MAX_GATHERED)) == wire.MAX_GATHERED
    many = (b"",) * (wire.MAX_GATHERED + 1)
    assert outcome(export.perform, wire.Gather(many, 0, 0, 0, False)) == "EINVAL"
    assert outcome(export.perform, wire.Unwatch(many)) == "EINVAL"


def test_what_may_not_be_read(public_root: Path) -> None:
    need("root")
    public_root.chmod(0o777)
    (public_root / "closed").mkdir(mode=0o711)
    (public_root / "closed" / "within").write_text("x")
    (public_root / "file").write_text("secret")
    (public_root / "file").chmod(0o600)
    (public_root / "shut").mkdir(mode=0o700)
    os.chmod(public_root / "closed", 0o711)

    def answers() -> tuple[Gathered, ...]:
        export = Export(public_root)
        try:
            return gather(export, b"closed", b"closed/within", b"file", b"shut/x")
        finally:
            export.close()

    closed, within, file, shut = ALICE.call(answers)
    assert (closed.errno, closed.entries, closed.complete, closed.watched) == (None, (), False, False)
    assert (within.errno, within.watched) == (None, False)
    assert (file.errno, file.content, file.watched) == (None, None, True)
    assert (shut.errno, shut.watched) == ("EACCES", False)


def test_anothers_files_are_read_too(public_root: Path) -> None:
    """Where the time of access cannot be left alone (open(2), O_NOATIME is for owners)."""
    need("root")
    (public_root / "file").write_text("open to all")
    (public_root / "file").chmod(0o644)

    def answers() -> tuple[Gathered, ...]:
        export = Export(public_root)
        try:
            return gather(export, b"", b"file")
        finally:
            export.close()

    directory, file = ALICE.call(answers)
    assert [entry.name for entry in directory.entries] == [b"file"]
    assert file.content == b"open to all"


# How much is gathered.


def test_what_does_not_fit_is_left_out_at_the_end(export: Export, tree: Path) -> None:
    for number in range(10):
        (tree / f"f{number}").write_bytes(bytes(1000))
    paths = [b"f%d" % number for number in range(10)]
    for most, count in ((0, 1), (1099, 1), (2200, 2), (3299, 2), (11000, 10)):
        found = gather(export, *paths, most=most)
        assert [one.content for one in found] == [bytes(1000)] * count
    assert len(gather(export, b"d", b"d", most=0)) == 1
    assert len(gather(export, b"missing", b"missing", most=0)) == 1
    assert len(gather(export, b"f1", b"d", b"f1", most=1200, entries=0)) == 2
    assert len(gather(export, b"f1", b"d", b"f1", most=1100)) == 1


def test_the_first_path_has_room_in_any_case(export: Export, tree: Path) -> None:
    (tree / "large").write_bytes(bytes(wire.MAX_DATA))
    (tree / "larger").write_bytes(bytes(wire.MAX_DATA + 1))
    assert gather(export, b"large", content=2**40, most=0)[0].content == bytes(wire.MAX_DATA)
    assert gather(export, b"larger", content=2**40, most=2**40)[0].content is None
    assert len(gather(export, *[b"large"] * 9, content=2**40, most=2**40)) == 2


def test_a_large_directory_is_cut_to_fit_a_message(export: Export, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "MOST_BYTES", 10_000)
    for number in range(100):
        (root / (f"{number:03}" * 80)).touch()
    [found] = gather(export, b"", most=2**40)
    assert 0 < len(found.entries) < 30
    assert not found.complete
    assert len(gather(export, b"missing", b"", most=2**40)) == 1


def test_the_largest_directory_that_is_gathered_fits(export: Export, root: Path) -> None:
    """Longest names, and the widest numbers that there are."""
    for number in range(10_001):
        (root / f"{number:0255}").touch()
    [found] = gather(export, b"", entries=2**40, most=2**40)
    assert not found.complete
    assert sum(gathering._ENTRY_SIZE + len(entry.name) for entry in found.entries) <= MOST_BYTES
    assert len(found.entries) >= 5000


def test_a_budget() -> None:
    budget = Budget(100)
    assert not budget.take(MOST_BYTES + 1)
    assert budget.take(200)
    assert not budget.take(1)
    budget = Budget(2**64)
    assert budget.take(1)
    assert not budget.take(MOST_BYTES)


# What is changed meanwhile.


@pytest.mark.parametrize("change", [b"longer than it was", b"short", b"CONTENT"])
def test_a_file_that_changes_while_it_is_read_has_no_content(
    export: Export, tree: Path, monkeypatch: pytest.MonkeyPatch, change: bytes
) -> None:
    really = os.pread

    def changed(fd: int, size: int, offset: int) -> bytes:
        (tree / "d" / "file").write_bytes(change)
        os.utime(tree / "d" / "file", (5, 5))
        return really(fd, size, offset)

    monkeypatch.setattr(os, "pread", changed)
    [found] = gather(export, b"d/file")
    assert found.content is None
    assert found.attributes == now(tree / "d" / "file")


def test_what_cannot_be_read_to_its_end_has_no_content(export: Export, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.pread

    def piecemeal(fd: int, size: int, offset: int) -> bytes:
        return really(fd, min(size, 3), offset)

    monkeypatch.setattr(os, "pread", piecemeal)
    assert gather(export, b"d/file")[0].content == b"content"

    def broken(*_: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    [found] = gather(export, b"d/file")
    assert (found.errno, found.content) == (None, None)


def test_a_lease_is_not_waited_for(export: Export, tree: Path) -> None:
    """SIGIO tells its holder that another wants the file, and ends a process by default."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(tree / "d" / "file", os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        assert gather(export, b"d/file")[0].content is None
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)
    assert gather(export, b"d/file")[0].content == b"content"


def test_an_entry_that_vanishes_keeps_its_name(export: Export, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = listing.scan

    def vanishing(*arguments: Any) -> Any:
        found = really(*arguments)
        (tree / "d" / "file").unlink()
        return found

    monkeypatch.setattr(listing, "scan", vanishing)
    [found] = gather(export, b"d")
    assert {entry.name: entry.attributes is None for entry in found.entries}[b"file"] is True


# What is watched.


def test_what_is_watched_depends_on_where_it_lies(watched: Export, tree: Path) -> None:
    assert not any(found.watched for found in gather(watched, b"", b"d", b"d/file", b"d/missing", watch=False))
    assert watched.watches is not None
    assert len(watched.watches) == 0
    assert gather(watched, b"d/file")[0].watched
    assert len(watched.watches) == 2
    found = gather(watched, b"", b"d", b"d/file", b"d/missing", b"d/e", watch=False)
    assert [one.watched for one in found] == [False, True, True, True, False]
    watched.perform(wire.Unwatch((b"d", b"..", b"missing")))
    assert not gather(watched, b"d/file", watch=False)[0].watched
    assert len(watched.watches) == 0


def test_what_lies_above_a_directory_is_watched_for_its_sake_alone(watched: Export) -> None:
    assert gather(watched, b"d/e")[0].watched
    assert watched.watches is not None
    assert len(watched.watches) == 3
    assert not gather(watched, b"d/file", watch=False)[0].watched
    watched.perform(wire.Unwatch((b"d/e",)))
    assert len(watched.watches) == 0


def test_a_file_with_several_names_is_not_watched(watched: Export, tree: Path) -> None:
    (tree / "other").hardlink_to(tree / "d" / "file")
    directory, file = gather(watched, b"d", b"d/file")
    assert directory.watched
    assert (file.watched, file.content) == (False, b"content")


def test_it_is_watched_before_it_is_looked_at(watched: Export, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what happens while it is gathered is told."""
    watches = watched.watches
    assert watches is not None
    really = listing.scan

    def busy(*arguments: Any) -> Any:
        (tree / "d" / "new").touch()
        return really(*arguments)

    monkeypatch.setattr(listing, "scan", busy)
    assert gather(watched, b"d")[0].watched
    assert b"d/new" in (watches.happened(os.read(watches.fileno(), 65536)) or {})


def test_what_was_lost_before_it_is_answered_is_not_watched(watched: Export, tree: Path) -> None:
    watches = watched.watches
    assert watches is not None
    collected = watched.perform(wire.Gather((b"", b"d", b"d/file"), 0, 10, 2**20, True))
    assert [found.watched for found in collected.answer()] == [True, True, True]
    (tree / "d").rename(tree / "x")
    assert watches.is_lost(b"d", watches.look(b"d"))
    assert [found.watched for found in collected.answer()] == [True, False, False]
    watches.renew()
    assert not any(found.watched for found in collected.answer())


def test_another_directory_than_the_watched_one_is_not_watched(
    watched: Export, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watches = watched.watches
    assert watches is not None
    before = watches.watch(b"d")
    (tree / "d").rename(tree / "x")
    (tree / "d").mkdir()
    [found] = gather(watched, b"d")
    assert before is not None
    assert before.alive
    assert (found.watched, found.attributes) == (False, now(tree / "d"))


def test_where_nothing_is_watched_everything_else_is_the_same(tree: Path) -> None:
    export = Export(tree, watch=False)
    assert export.watches is None
    assert wire.WATCHES not in export.capabilities
    found = gather(export, b"d", b"d/file")
    assert not any(one.watched for one in found)
    assert found[1].content == b"content"
    export.perform(wire.Unwatch((b"d",)))
    export.close()


def test_without_inotify_an_export_says_why(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(syscalls, "inotify_init", refused)
    export = Export(tree)
    assert export.watches is None
    assert export.unwatched == "Too many open files"
    export.close()


def test_another_mount_is_left_alone(watched: Export, tree: Path) -> None:
    need("root")
    place = os.fsencode(tree / "d" / "e")
    assert syscalls._libc.mount(b"none", place, b"tmpfs", 0, None) == 0
    try:
        (tree / "d" / "e" / "file").write_text("elsewhere")
        directory, mounted, beneath = gather(watched, b"d", b"d/e", b"d/e/file")
        assert {entry.name: (entry.type, entry.attributes) for entry in directory.entries}[b"e"] == (0, None)
        assert (mounted, beneath) == (Gathered("EXDEV"), Gathered("EXDEV"))
        assert watched.watches is not None
        assert watched.watches.watch(b"d/e") is None
        quickly = watched.attempt(wire.Gather((b"d/e",), 0, 10, 100, True))
        assert quickly.answer() == (Gathered("EXDEV"),)
    finally:
        assert syscalls._libc.umount2(place, 2) == 0


# What is gathered at once.


def test_one_small_thing_is_gathered_at_once(watched: Export, tree: Path) -> None:
    for path in (b"", b"d", b"d/file", b"d/empty", b"d/link", b"d/missing", b".."):
        asked = wire.Gather((path,), 65536, 1000, 2**20, True)
        assert answer(watched.attempt(asked)) == answer(watched.perform(asked))


def test_what_may_take_its_time_is_not_done_at_once(watched: Export, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def later(*paths: bytes) -> bool:
        return watched.attempt(wire.Gather(paths, 65536, 1000, 2**20, True)) is LATER

    assert later(b"d", b"d/file")
    assert later()
    for number in range(listing.QUICK_COUNT):
        (tree / "d" / "e" / f"{number}").touch()
    assert not later(b"d/e")
    (tree / "d" / "e" / "more").touch()
    assert later(b"d/e")
    monkeypatch.setattr(listing, "QUICK_SIZE", 0)
    assert later(b"d")
    assert watched.watches is not None
    with watched.watches._adding:
        assert later(b"d/file")
    assert not later(b"d/file")


@pytest.mark.parametrize("problem", [errno.EAGAIN, errno.EOPNOTSUPP, None, errno.EIO])
def test_content_that_is_not_in_memory_is_not_read_at_once(
    watched: Export, monkeypatch: pytest.MonkeyPatch, problem: int | None
) -> None:
    def read(*_: Any) -> int:
        if problem is not None:
            raise OSError(problem, os.strerror(problem))
        return 3  # The rest has to be fetched.

    monkeypatch.setattr(os, "preadv", read)
    found = watched.attempt(wire.Gather((b"d/file",), 65536, 1000, 2**20, True))
    if problem == errno.EIO:
        assert found.answer()[0].content is None
    else:
        assert found is LATER


def test_without_openat2_nothing_is_gathered_at_once(tree: Path) -> None:
    export = Export(tree, openat2=False)
    assert export.attempt(wire.Gather((b"",), 0, 0, 0, True)) is LATER
    export.close()


def test_no_descriptor_is_left(export: Export, tree: Path) -> None:
    def everything() -> None:
        gather(export, b"", b"d", b"d/file", b"d/link", b"d/missing", b"..", b"d/file/x", entries=1)

    everything()
    before = len(os.listdir("/proc/self/fd"))
    everything()
    assert len(os.listdir("/proc/self/fd")) == before


