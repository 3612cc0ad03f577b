"""renameat2(2): RENAME_NOREPLACE and RENAME_EXCHANGE."""

import os
from pathlib import Path

import pytest
from harness import ALICE, outcome
from harness.clock import changed
from harness.files import KINDS, make, opened
from harness.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, exchange, renameat2

pytestmark = pytest.mark.beyond_libfuse("rename flags")


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", ["file", "directory", "symlink"])
def test_noreplace_never_replaces(area: Path, old: str, new: str) -> None:
    source, target = make(old, area / "old"), make(new, area / "new")
    inodes = source.lstat().st_ino, target.lstat().st_ino
    assert outcome(renameat2, source, target, RENAME_NOREPLACE) == "EEXIST"
    assert (source.lstat().st_ino, target.lstat().st_ino) == inodes


@pytest.mark.parametrize("kind", KINDS)
def test_noreplace_moves_to_a_free_name(area: Path, kind: str) -> None:
    source = make(kind, area / "old")
    inode = source.lstat().st_ino
    renameat2(source, area / "new", RENAME_NOREPLACE)
    assert ((area / "new").lstat().st_ino, os.listdir(area)) == (inode, ["new"])


def test_noreplace_onto_itself_is_eexist(area: Path) -> None:
    path = make("file", area / "thing")
    assert outcome(renameat2, path, path, RENAME_NOREPLACE) == "EEXIST"


@pytest.mark.parametrize("two", KINDS)
@pytest.mark.parametrize("one", ["file", "directory", "symlink", "fifo"])
def test_exchange_of_any_two_kinds(area: Path, one: str, two: str) -> None:
    below = make("directory", area / "below")
    first, second = make(one, area / "first"), make(two, below / "second")
    inodes = first.lstat().st_ino, second.lstat().st_ino
    exchange(first, second)
    assert (second.lstat().st_ino, first.lstat().st_ino) == inodes


def test_exchange_of_full_directories(area: Path) -> None:
    for name in ("one", "two"):
        make("directory", area / name)
        (area / name / f"in-{name}").write_text(name)
    with opened(area / "one", os.O_RDONLY) as was_one:
        exchange(area / "one", area / "two")
        assert os.listdir(was_one) == ["in-one"]
    assert (os.listdir(area / "one"), os.listdir(area / "two")) == (["in-two"], ["in-one"])
    assert (area / "one" / "in-two").read_text() == "two"
    assert outcome(os.stat, area / "one" / "in-one") == "ENOENT"


def test_exchange_moves_link_counts_of_parents(area: Path) -> None:
    one, two = make("directory", area / "one"), make("directory", area / "two")
    directory, file = make("directory", one / "thing"), make("file", two / "thing")
    if one.stat().st_nlink != 3:
        pytest.skip("this filesystem does not count directories as links")
    exchange(directory, file)
    assert (one.stat().st_nlink, two.stat().st_nlink) == (2, 3)
    assert os.stat(f"{two}/thing/..").st_ino == two.stat().st_ino


def test_exchange_of_open_files(area: Path) -> None:
    one, two = area / "one", area / "two"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    with opened(one, os.O_RDWR) as first, opened(two, os.O_RDWR) as second:
        exchange(one, two)
        assert (os.read(first, 10), os.read(second, 10)) == (b"one", b"two")
        os.pwrite(first, b"ONE", 0)
    assert (one.read_bytes(), two.read_bytes()) == (b"two", b"ONE")
    exchange(one, two)
    assert (one.read_bytes(), two.read_bytes()) == (b"ONE", b"two")


@pytest.mark.parametrize("missing", ["first", "second"])
def test_exchange_needs_both(area: Path, missing: str) -> None:
    make("file", area / ({"first", "second"} - {missing}).pop())
    assert outcome(exchange, area / "first", area / "second") == "ENOENT"
    assert len(os.listdir(area)) == 1


def test_exchange_with_something_inside_is_einval(area: Path) -> None:
    inner = make("directory", make("directory", area / "outer") / "inner")
    assert outcome(exchange, area / "outer", inner) == "EINVAL"
    assert outcome(exchange, inner, area / "outer") == "EINVAL"


def test_exchange_with_itself_and_its_other_name(area: Path) -> None:
    path = make("file", area / "thing")
    os.link(path, area / "other")
    exchange(path, path)
    exchange(path, area / "other")
    assert sorted(os.listdir(area)) == ["other", "thing"]
    assert path.stat().st_nlink == 2


def test_exchange_in_a_directory_that_may_not_be_written_is_eacces(area: Path) -> None:
    one, two = (make("file", area / name, 0o666, ALICE.uid, ALICE.gid) for name in ("one", "two"))
    assert ALICE.outcome(exchange, one, two) == "EACCES"


def test_exchange_updates_the_times_of_both_directories(area: Path, probe: Path) -> None:
    one, two = make("directory", area / "one"), make("directory", area / "two")
    make("file", one / "thing")
    make("file", two / "thing")
    assert changed(one, probe, lambda: exchange(one / "thing", two / "thing")) == {"mtime", "ctime"}
    assert changed(two, probe, lambda: exchange(one / "thing", two / "thing")) == {"mtime", "ctime"}


@pytest.mark.parametrize("flags", [RENAME_NOREPLACE | RENAME_EXCHANGE, 1 << 20, 6])
def test_flags_that_make_no_sense_are_einval(area: Path, flags: int) -> None:
    one, two = make("file", area / "one"), make("file", area / "two")
    assert outcome(renameat2, one, two, flags) == "EINVAL"
