"""The ledger of a copy as a file: what it is true of, and what a killed process leaves."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_gated import local_ledger
from fuse_gated.local_ledger import LedgerFile, Unwritable, mark_new
from fuse_gated.replica.ledger import Begun, Book, Same
from fuse_gated.replica.version import DIRECTORY, Base, Version

BASE = Base(Version(DIRECTORY), Version(DIRECTORY))
EXPORT = (1, 2)


class Place:
    def __init__(self, directory: Path) -> None:
        self.root, self.beside = directory / "root", directory / "beside"
        self.root.mkdir()
        self.beside.mkdir()
        self.fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (self.root, self.beside)]
        self.files: list[LedgerFile] = []

    def open(self, export: tuple[int, int] = EXPORT, *, empty: bool = False) -> Book | None:
        self.files.append(LedgerFile(self.fds[1]))
        return self.files[-1].open(self.fds[0], export, empty=empty)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for file in made.files:
        file.close()
        file.close()
    for fd in made.fds:
        os.close(fd)


def test_what_was_noted_is_known_to_the_next(place):
    assert place.open() is None, "of what is there nothing is known"
    book = place.open(empty=True)
    book.note(Same(b"d", BASE))
    # Killed in the middle of a word.
    with (place.beside / "ledger").open("ab") as file:
        file.write(b"\x10\0\0")
    again = place.open()
    assert again.ledger.bases == {b"d": BASE}
    again.note(Same(b"e", BASE))
    assert set(place.open().ledger.bases) == {b"d", b"e"}
    assert sorted(os.listdir(place.beside)) == ["ledger"]


def test_what_programs_write_before_the_first_look_is_of_a_new_copy(place):
    mark_new(*place.fds)
    (place.root / "f").write_text("x")
    assert place.open().ledger.bases == {}
    assert sorted(os.listdir(place.beside)) == ["ledger"]
    assert place.open((3, 4)) is None, "it is new once"
    mark_new(*place.fds)
    assert sorted(os.listdir(place.beside)) == ["ledger"]
    (place.beside / "ledger").unlink()
    mark_new(*place.fds)
    assert os.listdir(place.beside) == [], "of what is there nothing is known"


def test_of_another_export_or_another_start_nothing_is_known(place, monkeypatch, tmp_path):
    place.open(empty=True).note(Same(b"d", BASE))
    assert place.open((3, 4)) is None
    assert place.open().ledger.bases == {b"d": BASE}
    boot = tmp_path / "boot"
    boot.write_text("another\n")
    monkeypatch.setattr(local_ledger, "_BOOT", str(boot))
    assert place.open() is None
    monkeypatch.setattr(local_ledger, "_BOOT", str(tmp_path / "nothing"))
    assert place.open(empty=True).ledger.bases == {}


def test_an_empty_copy_with_a_full_ledger_empties_no_client(place):
    """The inode's number of a copy that was removed is given to a new one: all else fits, and nothing of it holds."""
    book = place.open(empty=True)
    book.note(Same(b"d", BASE))
    book.note(Begun(b"f", b".fuse-gated-t-f", None, None))
    again = place.open(empty=True)
    assert again.ledger.bases == {}
    assert list(again.ledger.begun) == [b".fuse-gated-t-f"], "what was begun on the client is still to be put right"


def test_what_is_about_to_be_removed_has_no_ledger(place):
    place.open(empty=True).note(Same(b"d", BASE))
    place.files[-1].void()
    place.files[-1].void()
    assert os.listdir(place.beside) == []
    assert place.open() is None


def test_what_holds_no_more_is_not_kept_for_ever(place, monkeypatch):
    monkeypatch.setattr(local_ledger, "_LEAST", 1000)
    book = place.open(empty=True)
    for _ in range(200):
        book.note(Same(b"d", BASE))
        book.note(Same(b"d", None))
    book.note(Same(b"e", BASE))
    assert (place.beside / "ledger").stat().st_size < 2000
    assert sorted(os.listdir(place.beside)) == ["ledger"]
    assert set(place.open().ledger.bases) == {b"e"}


def test_a_full_disk_cuts_no_entry_in_two(place, monkeypatch):
    """What comes after it when there is room again is read by the next."""
    book = place.open(empty=True)
    book.note(Same(b"d", BASE))
    real = os.write

    def full(fd: int, data: memoryview) -> int:
        if len(data) <= 5:
            raise OSError(28, "No space left on device")
        return real(fd, data[:-5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(Unwritable, match="No space left"):
            book.note(Same(b"lost", BASE))
        with pytest.raises(Unwritable, match="No space left"):
            place.open()
    assert set(book.ledger.bases) == {b"d"}
    assert sorted(os.listdir(place.beside)) == ["ledger"]
    book.note(Same(b"e", BASE))
    assert set(place.open().ledger.bases) == {b"d", b"e"}
