"""rename(2): what replaces what, and who may move what where."""

import os
from pathlib import Path

import pytest
from harness import ALICE, BOB, Persona, outcome
from harness.clock import changed
from harness.files import KINDS, make, opened

NOT_DIRECTORIES = [kind for kind in KINDS if kind != "directory"]


@pytest.mark.parametrize("kind", KINDS)
def test_moves_the_thing_itself(area: Path, kind: str) -> None:
    path = make(kind, area / "old", 0o640, 41, 42)
    below = make("directory", area / "below")
    before = path.lstat()
    os.rename(path, below / "new")
    after = (below / "new").lstat()
    assert (after.st_ino, after.st_mode, after.st_uid, after.st_gid, after.st_nlink, after.st_mtime_ns) == (
        before.st_ino,
        before.st_mode,
        41,
        42,
        before.st_nlink,
        before.st_mtime_ns,
    )
    assert outcome(os.lstat, path) == "ENOENT"
    assert (os.listdir(area), os.listdir(below)) == (["below"], ["new"])


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", KINDS)
def test_what_replaces_what(area: Path, old: str, new: str) -> None:
    source, target = make(old, area / "old"), make(new, area / "new")
    inodes = source.lstat().st_ino, target.lstat().st_ino
    if old != "directory" and new == "directory":
        expected = "EISDIR"
    elif old == "directory" and new != "directory":
        expected = "ENOTDIR"
    else:
        expected = "ok"
    assert outcome(os.rename, source, target) == expected
    if expected == "ok":
        assert target.lstat().st_ino == inodes[0]
        assert os.listdir(area) == ["new"]
    else:
        assert (source.lstat().st_ino, target.lstat().st_ino) == inodes


def test_a_directory_that_is_not_empty_is_not_replaced(area: Path) -> None:
    old, new = make("directory", area / "old"), make("directory", area / "new")
    make("file", new / "file")
    assert outcome(os.rename, old, new) in ("ENOTEMPTY", "EEXIST")
    (new / "file").unlink()
    assert outcome(os.rename, old, new) == "ok"


def test_a_directory_does_not_go_into_itself(area: Path) -> None:
    (area / "one" / "two" / "three").mkdir(parents=True)
    for target in ("one/new", "one/two/new", "one/two/three/new", "one/two"):
        assert outcome(os.rename, area / "one", area / target) == "EINVAL"
    assert outcome(os.rename, area / "one" / "two" / "three", area / "one") == "ENOTEMPTY"
    assert (area / "one" / "two" / "three").is_dir()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("directory/.", "new", "EBUSY"),
        ("directory/..", "new", "EBUSY"),
        ("directory", "other/.", "EBUSY"),
        ("directory", "other/..", "EBUSY"),
        ("directory/", "new", "ok"),
        ("directory", "new/", "ok"),
        ("directory/", "new/", "ok"),
        ("directory/", "other/", "ok"),
        ("file/", "new", "ENOTDIR"),
        ("file", "new/", "ENOTDIR"),
        ("file", "other/", "EISDIR"),
        ("link", "new", "ok"),
        ("link/", "new", "ENOTDIR"),
    ],
)
def test_dots_and_slashes(area: Path, old: str, new: str, expected: str) -> None:
    for name in ("directory", "other"):
        make("directory", area / name)
    make("file", area / "file")
    (area / "link").symlink_to("directory")
    got = outcome(os.rename, f"{area}/{old}", f"{area}/{new}")
    assert got == expected or (expected == "EISDIR" and got == "ENOTDIR")


def test_onto_itself_does_nothing(area: Path, probe: Path) -> None:
    path = make("file", area / "thing")
    assert changed(path, probe, lambda: os.rename(path, path)) == set()
    directory = make("directory", area / "directory")
    os.rename(directory, directory)
    assert sorted(os.listdir(area)) == ["directory", "thing"]


def test_onto_another_name_of_the_same_file_leaves_both(area: Path) -> None:
    """rename(2): if both are names of one file, it does nothing and succeeds."""
    one, two = make("file", area / "one"), area / "two"
    one.write_bytes(b"content")
    os.link(one, two)
    os.rename(one, two)
    assert outcome(os.lstat, one) == outcome(os.lstat, two) == "ok", "before anybody lists the directory"
    assert sorted(os.listdir(area)) == ["one", "two"]
    assert one.lstat().st_nlink == two.lstat().st_nlink == 2
    assert one.samefile(two)
    assert one.read_bytes() == two.read_bytes() == b"content"
    os.unlink(one)
    assert (outcome(os.lstat, one), two.lstat().st_nlink) == ("ENOENT", 1)


def test_the_replaced_files_other_names_and_descriptors_live_on(area: Path) -> None:
    old, new, other = make("file", area / "old"), make("file", area / "new"), area / "other"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    os.link(new, other)
    with opened(new, os.O_RDWR) as replaced, opened(old, os.O_RDONLY) as moved:
        os.rename(old, new)
        assert other.lstat().st_nlink == os.fstat(replaced).st_nlink == 1
        assert os.read(replaced, 10) == b"new"
        os.pwrite(replaced, b"NEW", 0)
        assert os.read(moved, 10) == b"old"
    assert (new.read_bytes(), other.read_bytes()) == (b"old", b"NEW")


def test_an_open_file_is_followed_by_its_descriptor(area: Path) -> None:
    path = make("file", area / "old")
    with opened(path, os.O_RDWR) as descriptor:
        for number in range(10):
            os.rename(path, area / f"{number}")
            path = area / f"{number}"
            os.write(descriptor, b"x")
            assert os.fstat(descriptor).st_size == path.stat().st_size == number + 1
        os.fchmod(descriptor, 0o600)
    assert path.stat().st_mode & 0o777 == 0o600


def test_everything_below_a_moved_directory_moves_with_it(area: Path) -> None:
    (area / "one" / "deep").mkdir(parents=True)
    make("directory", area / "two")
    (area / "one" / "deep" / "file").write_text("content")
    with opened(area / "one" / "deep", os.O_RDONLY) as deep, opened(area / "one" / "deep" / "file", os.O_RDONLY) as file:
        os.rename(area / "one", area / "two" / "moved")
        assert os.listdir(deep) == ["file"]
        assert os.stat("file", dir_fd=deep).st_size == 7
        assert os.read(file, 10) == b"content"
        os.rename("file", "renamed", src_dir_fd=deep, dst_dir_fd=deep)
        assert os.listdir(deep) == ["renamed"]
        os.mkdir("made", dir_fd=deep)
    assert (area / "two" / "moved" / "deep" / "renamed").read_text() == "content"
    assert sorted(os.listdir(area / "two" / "moved" / "deep")) == ["made", "renamed"]
    assert outcome(os.stat, area / "one") == "ENOENT"


def test_a_directory_counts_where_it_is(area: Path) -> None:
    one, two = make("directory", area / "one"), make("directory", area / "two")
    moved = make("directory", one / "moved")
    if one.stat().st_nlink != 3:
        pytest.skip("this filesystem does not count directories as links")
    os.rename(moved, two / "moved")
    assert (one.stat().st_nlink, two.stat().st_nlink, (two / "moved").stat().st_nlink) == (2, 3, 2)
    assert os.stat(f"{two}/moved/..").st_ino == two.stat().st_ino
    make("directory", two / "replaced")
    os.rename(two / "moved", two / "replaced")
    assert two.stat().st_nlink == 3


@pytest.mark.parametrize("kind", KINDS)
def test_updates_the_times_of_both_directories(area: Path, probe: Path, kind: str) -> None:
    one, two = make("directory", area / "one"), make("directory", area / "two")
    make(kind, one / "thing")
    assert changed(one, probe, lambda: os.rename(one / "thing", two / "thing")) == {"mtime", "ctime"}
    assert changed(two, probe, lambda: os.rename(two / "thing", one / "thing")) == {"mtime", "ctime"}


@pytest.mark.parametrize("kind", KINDS)
def test_failing_updates_nothing(area: Path, probe: Path, kind: str) -> None:
    below = make("directory", area / "below")
    make(kind, below / "thing")
    for path in (below, below / "thing"):
        assert changed(path, probe, lambda: outcome(os.rename, below / "thing", area / "missing" / "thing")) == set()
        assert changed(path, probe, lambda: ALICE.outcome(os.rename, below / "thing", below / "other")) == set()


def test_a_replaced_file_loses_a_link_and_its_ctime_moves(area: Path, probe: Path) -> None:
    old, new, other = make("file", area / "old"), make("file", area / "new"), area / "other"
    os.link(new, other)
    assert "ctime" in changed(other, probe, lambda: os.rename(old, new))
    assert other.stat().st_nlink == 1


@pytest.mark.parametrize(
    ("caller", "expected"), [(ALICE, "ok"), (BOB, "EACCES"), (BOB.with_groups(ALICE.gid), "ok")], ids=["owner", "other", "member"]
)
@pytest.mark.parametrize("closed", ["from", "to"])
def test_both_directories_must_be_writable(area: Path, caller: Persona, expected: str, closed: str) -> None:
    one, two = make("directory", area / "one", 0o777), make("directory", area / "two", 0o777)
    path = make("file", one / "thing", 0o666, caller.uid, caller.gid)
    guarded = one if closed == "from" else two
    os.chown(guarded, ALICE.uid, ALICE.gid)
    guarded.chmod(0o775)
    assert caller.outcome(os.rename, path, two / "thing") == expected


def test_moving_a_directory_elsewhere_needs_write_permission_in_it(area: Path) -> None:
    """Its '..' changes: rename(2), EACCES."""
    one, two = make("directory", area / "one", 0o777), make("directory", area / "two", 0o777)
    moved = make("directory", one / "moved", 0o555, ALICE.uid, ALICE.gid)
    assert ALICE.outcome(os.rename, moved, two / "moved") == "EACCES"
    assert ALICE.outcome(os.rename, moved, one / "renamed") == "ok"
    assert BOB.outcome(os.rename, one / "renamed", two / "moved") == "EACCES"


def test_saving_by_rename_a_hundred_times(area: Path) -> None:
    target = area / "target"
    for number in range(100):
        new = area / "target.new"
        new.write_text(str(number))
        os.rename(new, target)
        assert target.read_text() == str(number)
    assert os.listdir(area) == ["target"]
