"""The copy on the disk: what programs do in it at any moment is theirs, and nothing leads out of it."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fuse_gated.edge import copy_tree, syscalls
from fuse_gated.edge.copy_tree import BESIDE, CopyTree
from fuse_gated.replica.ledger import Same, encode
from fuse_gated.replica.names import LONGEST, TOLD
from fuse_gated.replica.sides import Busy, Changed, Refused
from fuse_gated.replica.version import DIRECTORY, FILE, LINK, OTHER, Base, Version


class Place:
    """A copy in a directory of its own, and what lies beside it."""

    def __init__(self, directory: Path) -> None:
        self.root, self.beside = directory / "copy", directory / "beside"
        self.tmp = self.beside / BESIDE
        for made in (self.root, self.beside, self.tmp):
            made.mkdir()
        self.descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (self.root, self.beside)]
        self.tree = CopyTree(*self.descriptors)

    def put(self, path: str, content: str) -> Version:
        (self.root / path).write_text(content)
        found = self.tree.look(path.encode())
        assert found is not None
        # Until the clock by which files have their times has gone on: what is younger is not read.
        while time.clock_gettime_ns(copy_tree._CLOCK) <= found.ctime:
            time.sleep(0.001)
        return found

    def come(self, content: bytes, *, mode: int = 0o644, mtime: int = 10**18) -> str:
        return self.tree.receive(iter([content]), Version(FILE, len(content), mtime, 0, 0, 0, mode))

    def left(self) -> list[str]:
        return os.listdir(self.tmp)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.tree.close()
    for descriptor in made.descriptors:
        os.close(descriptor)


def test_what_is_there(place):
    place.put("f", "content")
    (place.root / "d" / "e").mkdir(parents=True)
    (place.root / "d" / "l").symlink_to("../f")
    os.mkfifo(place.root / "pipe")
    status = (place.root / "f").stat()
    assert place.tree.look(b"f") == Version(
        FILE, 7, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino, stat.S_IMODE(status.st_mode)
    )
    assert place.tree.look(b"d") == Version(DIRECTORY)
    assert place.tree.look(b"d/l") == Version(LINK, target=b"../f")
    assert place.tree.look(b"pipe") == Version(OTHER)
    assert place.tree.look(b"nothing") is place.tree.look(b"f/x") is place.tree.look(b"no/thing") is None
    assert sorted(place.tree.scan()) == [b"d", b"d/e", b"d/l", b"f", b"pipe"]
    found, chunks = place.tree.read(b"f")
    assert (found, b"".join(chunks)) == (place.tree.look(b"f"), b"content")
    for other in (b"d", b"pipe", b"nothing", b"d/l"):
        with pytest.raises(Changed):
            place.tree.read(other)


def test_nothing_leads_out(place, tmp_path):
    """A program puts a link in a directory's place: what lies behind it is not in the copy."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("x")
    (place.root / "d").symlink_to(outside)
    found = Version(FILE, 1)
    assert place.tree.look(b"d/f") is None
    assert place.tree.scan() == [b"d"]
    for attempt in (
        lambda: place.tree.read(b"d/f"),
        lambda: place.tree.install(place.come(b"y"), b"d/g", None),
        lambda: place.tree.install(place.come(b"y"), b"d/f", found),
        lambda: place.tree.remove(b"d/f", found),
        lambda: place.tree.move(b"d/f", b"g"),
        lambda: place.tree.make(b"d/new", Version(DIRECTORY)),
        lambda: place.tree.install(place.come(b"y"), b"../outside/g", None),
        lambda: place.tree.make(b"../new", Version(DIRECTORY)),
    ):
        with pytest.raises(Changed):
            attempt()
    assert [path.name for path in outside.iterdir()] == ["f"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "copy", "outside"]


def test_what_comes_is_whole_or_not_there(place):
    name = place.come(b"one", mode=0o755, mtime=123)
    installed = place.tree.install(name, b"f", None)
    assert installed == place.tree.look(b"f")
    assert ((place.root / "f").read_text(), installed.mtime, installed.mode) == ("one", 123, 0o770)
    with pytest.raises(Changed):
        place.tree.install(place.come(b"two"), b"f", None)
    new = place.tree.install(place.come(b"two"), b"f", installed)
    assert ((place.root / "f").read_text(), new.mode) == ("two", 0o660)
    with pytest.raises(Changed):
        place.tree.install(place.come(b"three"), b"f", installed)
    for size, chunks in ((4, [b"one"]), (2, [b"one"])):
        with pytest.raises(Changed):
            place.tree.receive(iter(chunks), Version(FILE, size))
    place.tree.make(b"l", Version(LINK, target=b"f"))
    place.tree.install(place.come(b"four"), b"l", Version(LINK, target=b"f"))
    assert (place.root / "l").read_text() == "four"
    for name in place.left():
        place.tree.discard(name)
    assert place.left() == []


def test_what_cannot_be_written_is_refused(place):
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise OSError(28, "No space left on device")

    with pytest.raises(Refused, match="No space left"):
        place.tree.receive(broken(), Version(FILE, 1))

    def gone() -> Iterator[bytes]:
        yield b"x"
        raise Changed

    with pytest.raises(Changed):
        place.tree.receive(gone(), Version(FILE, 1))
    assert place.left() == []


def test_an_open_file_is_left_alone(place):
    found = place.put("f", "one")
    with (place.root / "f").open("a"):
        for attempt in (
            lambda: place.tree.read(b"f"),
            lambda: place.tree.install(place.come(b"new"), b"f", found),
            lambda: place.tree.remove(b"f", found),
        ):
            with pytest.raises(Busy):
                attempt()
    with (place.root / "f").open("r"):
        place.tree.remove(b"f", found)
    assert place.tree.look(b"f") is None


def test_a_program_that_opens_it_in_between_keeps_it(place, monkeypatch):
    """Between the look and the exchange, at the worst moment."""
    real = syscalls.renameat2
    opened = []

    def first_opened(*arguments):
        if not opened:
            opened.append((place.root / "f").open("a"))
        real(*arguments)

    monkeypatch.setattr(syscalls, "renameat2", first_opened)
    for attempt in (
        lambda found: place.tree.install(place.come(b"new"), b"f", found),
        lambda found: place.tree.remove(b"f", found),
    ):
        found = place.put("f", "one")
        with pytest.raises(Busy):
            attempt(found)
        with opened.pop() as file:
            file.write(" more")
        assert (place.root / "f").read_text() == "one more"
        assert place.left() == []
        opened.clear()


def test_a_program_that_writes_in_between_keeps_it(place, monkeypatch):
    real = syscalls.renameat2
    for attempt in (
        lambda found: place.tree.install(place.come(b"new"), b"f", found),
        lambda found: place.tree.remove(b"f", found),
    ):
        found = place.put("f", "one")
        written = []

        def first_written(*arguments, written=written):
            if not written:
                written.append((place.root / "f").write_text("theirs"))
            real(*arguments)

        monkeypatch.setattr(syscalls, "renameat2", first_written)
        with pytest.raises(Changed):
            attempt(found)
        assert (place.root / "f").read_text() == "theirs"
        assert place.left() == []


def test_a_name_that_is_taken_in_between_gets_another(place, monkeypatch):
    """What was put aside and must go back finds another file at its name."""
    real = syscalls.renameat2
    steps = []

    def busy(directory, name, new_directory, new_name, flags):
        steps.append(1)
        if len(steps) == 1:
            (place.root / "f").write_text("theirs")
        if len(steps) == 2:
            (place.root / "f").write_text("newer")
        real(directory, name, new_directory, new_name, flags)

    found = place.put("f", "one")
    monkeypatch.setattr(syscalls, "renameat2", busy)
    with pytest.raises(Changed):
        place.tree.remove(b"f", found)
    kept = {path.name: path.read_text() for path in place.root.iterdir()}
    assert kept == {"f": "newer", "f.conflict-local-1": "theirs"}
    assert place.left() == []


def test_what_is_written_to_what_was_there_for_a_moment_is_kept(place, monkeypatch):
    real = syscalls.renameat2
    steps = []

    def busy(*arguments):
        steps.append(1)
        if len(steps) <= 2:
            (place.root / "f").write_text(f"theirs {len(steps)}")
        real(*arguments)

    found = place.put("f", "one")
    monkeypatch.setattr(syscalls, "renameat2", busy)
    with pytest.raises(Changed):
        place.tree.install(place.come(b"new"), b"f", found)
    assert sorted(path.read_text() for path in place.root.iterdir()) == ["theirs 1", "theirs 2"]
    assert place.left() == []


def test_directories_and_moves(place):
    place.tree.make(b"d", Version(DIRECTORY))
    with pytest.raises(Changed):
        place.tree.make(b"d", Version(DIRECTORY))
    place.put("d/f", "x")
    with pytest.raises(Changed):
        place.tree.remove(b"d", Version(DIRECTORY))
    place.tree.move(b"d/f", b"g")
    place.put("h", "y")
    with pytest.raises(Changed):
        place.tree.move(b"g", b"h")
    with pytest.raises(Changed):
        place.tree.move(b"nothing", b"i")
    place.tree.remove(b"d", Version(DIRECTORY))
    with pytest.raises(Changed):
        place.tree.remove(b"d", Version(DIRECTORY))
    assert sorted(place.tree.scan()) == [b"g", b"h"]
    with pytest.raises(Refused):
        place.tree.make(b"x" * 300, Version(DIRECTORY))


def test_what_a_killed_process_has_left(place):
    """What came from the client comes again; what is a program's goes back."""
    base = place.put("known", "as the client has it")
    same, theirs = place.put("same", "x"), place.put("theirs", "y")
    bases = {name: Base(version, version) for name, version in ((b"known", base), (b"same", same), (b"theirs", theirs))}
    place.come(b"half")
    os.rename(place.root / "same", place.tmp / "0-aa")
    os.rename(place.root / "theirs", place.tmp / "0-bb")
    (place.tmp / "0-bb").write_text("changed")
    (place.tmp / "7-cc").write_text("of no known file")
    mine = place.come(b"not exchanged")
    os.rename(place.tmp / mine, place.tmp / f"{(place.tmp / mine).stat().st_ino}-{mine}")
    place.tree.recover(bases)
    found = {path.name: path.read_text() for path in place.root.iterdir()}
    assert found == {"known": "as the client has it", "theirs": "changed", "recovered": "of no known file"}
    assert place.left() == []


def test_telling(place, monkeypatch):
    place.tree.tell(b"one\n")
    place.tree.tell(b"two\n")
    told = place.root / os.fsdecode(TOLD)
    assert (told.read_text(), stat.S_IMODE(told.stat().st_mode)) == ("two\n", 0o644)
    place.tree.tell(b"")
    place.tree.tell(b"")
    assert not told.exists()
    told.mkdir()
    with pytest.raises(OSError, match="directory"):
        place.tree.tell(b"three\n")
    assert place.left() == []
    monkeypatch.setattr(copy_tree, "_write", _full)
    with pytest.raises(OSError, match="No space"):
        place.tree.tell(b"four\n")
    assert place.left() == []


def _full(_fd, _data):
    raise OSError(28, "No space left on device")


def test_what_goes_while_it_is_exchanged_leaves_nothing(place, monkeypatch):
    real = syscalls.renameat2

    def gone(*arguments):
        (place.root / "f").unlink(missing_ok=True)
        real(*arguments)

    found = place.put("f", "one")
    monkeypatch.setattr(syscalls, "renameat2", gone)
    with pytest.raises(Changed):
        place.tree.install(place.come(b"new"), b"f", found)
    assert place.left() == []
    assert list(place.root.iterdir()) == []


def test_what_can_go_nowhere_stays_aside(place, monkeypatch):
    """And is seen to by whoever comes after."""
    real = syscalls.renameat2
    steps = []

    def no_way_back(*arguments):
        steps.append(1)
        if len(steps) == 1:
            (place.root / "f").write_text("theirs")
            real(*arguments)
        else:
            raise OSError(28, "No space left on device")

    found = place.put("f", "one")
    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "renameat2", no_way_back)
        with pytest.raises(Changed):
            place.tree.remove(b"f", found)
    (left,) = place.left()
    assert (place.tmp / left).read_text() == "theirs"
    place.tree.recover({b"f": Base(found, found)})
    assert (place.root / "f").read_text() == "theirs"


def test_what_nobody_may_enter(place, monkeypatch):
    """A directory that is closed to us is not the same as one that is not there."""
    (place.root / "d").mkdir()
    place.put("d/f", "x")
    real = copy_tree.open_within

    def closed(root, path, flags):
        if path == b"d":
            raise PermissionError(13, "Permission denied")
        return real(root, path, flags)

    monkeypatch.setattr(copy_tree, "open_within", closed)
    with pytest.raises(Refused, match="Permission denied"):
        place.tree.look(b"d/f")
    assert place.tree.scan() == [b"d"]


def test_a_version_with_another_ctime_is_a_change(place):
    found = place.put("f", "x")
    with pytest.raises(Changed):
        place.tree.remove(b"f", msgspec.structs.replace(found, ctime=found.ctime - 1))


@pytest.mark.parametrize("attempt", ["install", "remove"])
def test_a_file_of_another_user_may_be_open(place, monkeypatch, attempt):
    """The kernel does not tell of it. Whoever goes on writing to it has not written in vain."""
    monkeypatch.setattr(copy_tree, "_is_being_written", lambda _fd: None)
    found = place.put("f", "one")
    with (place.root / "f").open("a") as file:
        if attempt == "install":
            place.tree.install(place.come(b"new"), b"f", found)
        else:
            place.tree.remove(b"f", found)
        assert not place.tree.give_back()
        file.write(" more")
    assert place.tree.give_back()
    kept = {path.name: path.read_text() for path in place.root.iterdir()}
    assert kept.pop("f.conflict-local-1") == "one more"
    assert kept == ({"f": "new"} if attempt == "install" else {})
    assert place.left() == []


@pytest.mark.parametrize("attempt", ["install", "remove"])
def test_a_file_of_another_user_that_is_being_written_is_left_alone(place, monkeypatch, attempt):
    monkeypatch.setattr(copy_tree, "_is_being_written", lambda _fd: None)
    place.tree.is_written = lambda path: path == b"f"
    found = place.put("f", "one")
    assert place.tree.is_open(b"f")
    assert not place.tree.is_open(b"nothing/f")
    attempts = {
        "install": lambda: place.tree.install(place.come(b"new"), b"f", found),
        "remove": lambda: place.tree.remove(b"f", found),
    }
    with pytest.raises(Busy):
        attempts[attempt]()
    place.tree.remove(b"g", place.put("g", "two"))
    assert (place.root / "f").read_text() == "one"
    place.tree.end()
    assert [path.name for path in place.root.iterdir()] == ["f"]


def test_what_nobody_writes_to_goes_in_the_end(place, monkeypatch):
    monkeypatch.setattr(copy_tree, "_is_being_written", lambda _fd: None)
    place.tree.remove(b"f", place.put("f", "one"))
    place.tree.remove(b"g", place.put("g", "two"))
    assert len(place.left()) == 2
    (place.tmp / place.left()[0]).unlink()
    place.tree.give_back()
    assert len(place.left()) == 1
    # Whoever comes after us keeps it too, from then on.
    place.tree.recover({})
    assert len(place.left()) == 1
    monkeypatch.setattr(copy_tree, "KEPT_FOR", 0.0)
    place.tree.recover({})
    assert not place.tree.give_back()
    assert place.left() == []


def test_of_whose_files_the_kernel_tells(place):
    """As another user, who may read the file."""
    place.put("f", "x")
    (place.root / "f").chmod(0o644)
    fd = os.open(place.root / "f", os.O_RDONLY)
    assert copy_tree._is_being_written(fd) is False
    if os.geteuid() == 0:
        os.fchown(fd, 1, 1)
        uid_before = os.geteuid()
        os.seteuid(65534)
        try:
            assert copy_tree._is_being_written(fd) is None
        finally:
            os.seteuid(uid_before)
    os.close(fd)


def test_a_file_as_young_as_the_clock_is_read_later(place, monkeypatch):
    """Within one tick a second write of the same length leaves size and times as they are."""
    found = place.put("f", "one")
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _clock: found.ctime)
    with pytest.raises(Changed):
        place.tree.read(b"f")
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _clock: found.ctime + 1)
    assert place.tree.read(b"f")[0] == found
    # A clock that was set back.
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _clock: found.ctime - 10**9)
    assert place.tree.read(b"f")[0] == found


def test_times_of_any_year_can_be_noted(place):
    place.put("f", "x")
    os.utime(place.root / "f", ns=(0, 32503680000 * 10**9))
    found = place.tree.look(b"f")
    assert found.mtime < 2**63
    encode(Same(b"f", Base(found, found)))


def test_what_lies_too_deep_is_not_looked_for(place):
    directory = os.open(place.root, os.O_RDONLY | os.O_DIRECTORY)
    made = 0
    for _ in range(30):
        os.mkdir(b"x" * 200, dir_fd=directory)
        deeper = os.open(b"x" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
        os.close(directory)
        directory, made = deeper, made + 1
    os.close(directory)
    paths = place.tree.scan()
    assert LONGEST < max(map(len, paths)) < LONGEST + 256
    assert len(paths) < made


def test_a_directory_that_is_closed_to_us_is_told(place, monkeypatch):
    (place.root / "d").mkdir()
    real = copy_tree.open_within

    def closed(root, path, flags):
        if path == b"d":
            raise PermissionError(13, "Permission denied")
        return real(root, path, flags)

    with monkeypatch.context() as patch:
        patch.setattr(copy_tree, "open_within", closed)
        assert place.tree.scan() == [b"d"]
    assert place.tree.closed == {b"d": "it cannot be listed here: Permission denied"}
    place.tree.scan()
    assert place.tree.closed == {}
