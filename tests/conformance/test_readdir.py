"""opendir(3), readdir(3), telldir(3), seekdir(3), rewinddir(3)."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Place
from harness.files import KINDS, TYPES, make, opened, remove
from harness.syscalls import DirectoryStream

MANY = 50_000


def _names(path: Path) -> list[str]:
    with DirectoryStream(path) as stream:
        return [name for name, _, _ in stream]


@pytest.fixture(scope="module")
def large(place: Place) -> Path:
    """A directory of 50,000 names, made where it really lies: making them is not what is tried."""
    behind = place.behind / "large"
    behind.mkdir()
    make("file", behind / "0")
    for number in range(1, MANY):
        # One file has room for few names on some filesystems, so a new one every thousand.
        (
            make("file", behind / str(number))
            if number % 1000 == 0
            else os.link(behind / str(number // 1000 * 1000), behind / str(number))
        )
    return place.root / "large"


def test_an_empty_directory_has_the_dots(area: Path) -> None:
    with DirectoryStream(area) as stream:
        entries = {name: (inode, type_) for name, inode, type_ in stream}
    assert set(entries) == {".", ".."}
    assert entries["."][0] == area.stat().st_ino


def test_every_kind_is_listed_with_its_type_and_number(area: Path) -> None:
    for kind in KINDS:
        make(kind, area / kind)
    with DirectoryStream(area) as stream:
        entries = {name: (inode, type_) for name, inode, type_ in stream}
    for kind in KINDS:
        info = (area / kind).lstat()
        assert entries.pop(kind) == (info.st_ino, TYPES[kind] >> 12)
        assert stat.S_IFMT(info.st_mode) == TYPES[kind]
    assert set(entries) == {".", ".."}


def test_listing_and_stat_agree(area: Path) -> None:
    for number in range(300):
        make("file", area / f"{number}", number).write_bytes(b"x" * number)
    seen = {entry.name: (entry.inode(), entry.stat().st_size, entry.stat().st_mode & 0o777) for entry in os.scandir(area)}
    assert seen == {
        str(number): ((area / str(number)).stat().st_ino, number, (area / str(number)).stat().st_mode & 0o777)
        for number in range(300)
    }


def test_every_name_of_a_large_directory_once(large: Path) -> None:
    names = _names(large)
    assert len(names) == MANY + 2
    assert set(names) == {str(number) for number in range(MANY)} | {".", ".."}


def test_stat_of_names_of_a_large_directory(large: Path) -> None:
    """Every tenth, because a mount may ask its client for each."""
    inodes = {entry.stat(follow_symlinks=False).st_ino for number, entry in enumerate(os.scandir(large)) if number % 10 == 0}
    assert len(inodes) == MANY // 1000


def test_positions_in_a_large_directory(large: Path) -> None:
    with DirectoryStream(large) as stream:
        order: list[tuple[int, str]] = []
        while True:
            position = stream.tell()
            entry = stream.read()
            if entry is None:
                break
            order.append((position, entry[0]))
        for index in (49_999, 0, 12_345, 1, 30_000, 50_001, 2):
            stream.seek(order[index][0])
            following = [stream.read() for _ in range(3)]
            assert [entry[0] for entry in following if entry] == [name for _, name in order[index : index + 3]]


def test_going_back_to_every_position(area: Path) -> None:
    for number in range(100):
        make("file", area / f"a name of some length, number {number}")
    with DirectoryStream(area) as stream:
        positions = [stream.tell()]
        names = []
        while entry := stream.read():
            names.append(entry[0])
            positions.append(stream.tell())
        for index in reversed(range(len(names))):
            stream.seek(positions[index])
            entry = stream.read()
            assert entry is not None
            assert entry[0] == names[index]
        stream.seek(positions[-1])
        assert stream.read() is None


def test_rewinding_shows_what_is_new(area: Path) -> None:
    make("file", area / "old")
    with DirectoryStream(area) as stream:
        assert {name for name, _, _ in stream} == {".", "..", "old"}
        make("file", area / "new")
        remove(area / "old")
        stream.rewind()
        assert {name for name, _, _ in stream} == {".", "..", "new"}


def test_removing_while_reading_skips_nothing(area: Path) -> None:
    """POSIX: what is removed during the listing may or may not be told; everything else is, once."""
    for number in range(2000):
        make("file", area / f"{number}")
    seen = []
    with DirectoryStream(area) as stream:
        for name, _, _ in stream:
            if name not in (".", ".."):
                seen.append(name)
                os.unlink(area / name)
    assert sorted(seen) == sorted(str(number) for number in range(2000))
    assert os.listdir(area) == []


def test_making_while_reading_tells_the_old_ones_once(area: Path) -> None:
    for number in range(500):
        make("file", area / f"old-{number}")
    seen = []
    with DirectoryStream(area) as stream:
        for number, (name, _, _) in enumerate(stream):
            seen.append(name)
            if number < 500:
                make("file", area / f"new-{number}")
    old = [name for name in seen if name.startswith("old-")]
    assert sorted(old) == sorted(f"old-{number}" for number in range(500))
    assert len(seen) == len(set(seen))


def test_two_streams_of_one_directory_keep_their_places(area: Path) -> None:
    for number in range(50):
        make("file", area / f"{number}")
    with DirectoryStream(area) as one, DirectoryStream(area) as two:
        pairs = [(one.read(), two.read()) for _ in range(52)]
        assert all(first == second for first, second in pairs)
        assert one.read() is None
        two.rewind()
        assert two.read() is not None


def test_a_descriptor_lists_its_directory_wherever_it_goes(area: Path) -> None:
    below = make("directory", area / "below")
    make("file", below / "file")
    with opened(below, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.rename(below, area / "moved")
        assert os.listdir(descriptor) == ["file"]
        os.fsync(descriptor)


def test_names_made_and_removed_are_seen_at_once(area: Path, behind: Callable[[Path], Path]) -> None:
    for number in range(20):
        make("file", area / f"{number}")
        assert len(os.listdir(area)) == 1
        assert os.listdir(behind(area)) == [f"{number}"]
        os.unlink(area / f"{number}")
        assert os.listdir(area) == []


def test_walking_a_tree(area: Path) -> None:
    for one in range(8):
        for two in range(8):
            (area / f"{one}" / f"{two}").mkdir(parents=True)
            make("file", area / f"{one}" / f"{two}" / "file")
    found = [(len(directories), len(files)) for _, directories, files in os.walk(area)]
    assert (len(found), sum(files for _, files in found)) == (73, 64)
