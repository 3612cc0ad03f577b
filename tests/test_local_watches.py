"""What programs do in a copy is told soon."""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_gated.edge import inotify, syscalls
from fuse_gated.local_watches import LocalWatches


@pytest.fixture
def watches(tmp_path: Path) -> Iterator[LocalWatches]:
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    (tmp_path / "d").mkdir()
    made = LocalWatches(root)
    made.watch([b"", b"d", b"nothing"])
    yield made
    made.close()
    made.close()
    os.close(root)


def test_files_by_their_paths(watches, tmp_path):
    assert watches.read() == (set(), False)
    (tmp_path / "f").write_text("x")
    (tmp_path / "d" / "g").write_text("x")
    assert select.select([watches], [], [], 10)[0]
    assert watches.read() == ({b"f", b"d/g"}, False)
    os.rename(tmp_path / "d" / "g", tmp_path / "h")
    (tmp_path / "f").unlink()
    assert watches.read() == ({b"f", b"d/g", b"h"}, False)
    assert watches.closed() == {b"f", b"d/g"}
    watches.is_read(b"f")
    watches.is_read(b"d/g")
    with (tmp_path / "f").open("w"):
        pass
    assert watches.read() == ({b"f"}, False)
    watches.is_read(b"f")
    assert watches.closed() == set()
    (tmp_path / "d").chmod(0o700)
    assert watches.read() == (set(), False)


def test_who_writes_and_has_not_closed(watches, tmp_path):
    with (tmp_path / "f").open("w") as file:
        assert watches.read() == ({b"f"}, False)
        assert not watches.is_written(b"f")
        file.write("x")
        file.flush()
        assert watches.read() == (set(), False)
        assert watches.is_written(b"f")
        (tmp_path / "f").chmod(0o600)
        watches.read()
        assert watches.is_written(b"f")
    assert watches.read() == ({b"f"}, False)
    assert not watches.is_written(b"f")
    with (tmp_path / "d" / "f").open("w") as file:
        file.write("x")
        file.flush()
        os.rename(tmp_path / "d", tmp_path / "e")
        watches.read()
        assert not watches.is_written(b"d/f"), "that is another name by now"


def test_a_directory_that_comes_goes_or_moves_is_everything(watches, tmp_path):
    (tmp_path / "e").mkdir()
    assert watches.read()[1]
    os.rename(tmp_path / "d", tmp_path / "moved")
    assert watches.read()[1]
    watches.watch([b"moved"])
    (tmp_path / "moved" / "f").write_text("x")
    assert watches.read() == ({b"moved/f"}, False), "it is known by its path of now"
    (tmp_path / "moved" / "f").unlink()
    (tmp_path / "moved").rmdir()
    assert watches.read()[1]


def test_without_watches_nothing_is_told(tmp_path, monkeypatch):
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    monkeypatch.setattr(inotify, "fair_share", lambda: 0)
    none = LocalWatches(root)
    none.watch([b""])
    (tmp_path / "f").write_text("x")
    assert none.read() == (set(), False)
    none.close()

    def refuses():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(syscalls, "inotify_init", refuses)
    none = LocalWatches(root)
    none.watch([b""])
    assert none.fileno() == -1
    assert none.read() == (set(), False)
    none.close()
    os.close(root)
