"""What people are told of a copy."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_gated import local_telling
from fuse_gated.edge.copy_tree import BESIDE, CopyTree
from fuse_gated.local_telling import Telling
from fuse_gated.replica.names import TOLD


class Place:
    def __init__(self, directory: Path) -> None:
        self.root, self.beside = directory / "root", directory / "beside"
        (self.beside / BESIDE).mkdir(parents=True)
        self.root.mkdir()
        self.fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (self.root, self.beside)]
        self.tree = CopyTree(*self.fds)
        self.said: list[str] = []
        self.telling = Telling(self.tree, "acme/work", self.said.append)

    def lines(self) -> list[str]:
        told = self.root / os.fsdecode(TOLD)
        return told.read_text().splitlines()[1:] if told.exists() else []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(local_telling, "_SHARE", 0)
    made = Place(tmp_path)
    yield made
    made.tree.close()
    for fd in made.fds:
        os.close(fd)


def test_what_is_told(place):
    place.telling.tell({b"b": "too large"}, {b"a": "refused"})
    assert place.lines() == ["not here\t/b\ttoo large", "not sent\t/a\trefused"]
    assert place.said == ["1 names of the client are not in the copy, the first: /b: too large"]
    place.telling.tell({b"c": "too large"}, {})
    assert place.lines() == ["not here\t/c\ttoo large"]
    assert len(place.said) == 1, "the client could have a line written each second"
    place.telling.tell({}, {})
    assert place.lines() == []
    place.telling.tell_left({b"f": "why", b"e": "why"})
    assert place.lines() == ["not sent\t/e\twhy", "not sent\t/f\twhy"]
    assert place.said[-1] == "2 names are not on the client and stay here, the first: /e"


def test_what_the_last_process_told_is_not_true_for_ever(place):
    (place.root / os.fsdecode(TOLD)).write_text("# old\nnot here\t/b\ttoo large\n")
    place.telling.tell({}, {})
    assert place.lines() == []


def test_a_client_with_long_names_fills_no_disk(place, monkeypatch):
    monkeypatch.setattr(local_telling, "_MOST_BYTES", 10_000)
    monkeypatch.setattr(local_telling, "_MOST_LINES", 5)
    place.telling.tell({b"x" * 4000 + b"%d" % number: "too large" for number in range(10)}, {b"%d" % n: "no" for n in range(9)})
    lines = place.lines()
    assert [line.split("\t")[1:] for line in lines if "more" in line] == [["...", "8 more"], ["...", "4 more"]]
    assert sum(map(len, lines)) < 12_000


def test_a_full_disk_is_told_once_and_tried_again(place, monkeypatch):
    def full(_text: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place.tree, "tell", full)
        place.telling.tell({b"f": "no room"}, {})
        place.telling.tell({b"f": "no room"}, {})
    assert place.said == ["what is not on both sides cannot be told in a file: No space left on device"]
    monkeypatch.setattr(place.telling, "_due", 0.0)
    place.telling.tell({b"f": "no room"}, {})
    assert place.lines() == ["not here\t/f\tno room"]
