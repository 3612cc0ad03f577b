"""The sticky bit of a directory: who may remove, move and replace what lies in it (inode(7))."""

import os
from pathlib import Path

import pytest
from harness import ALICE, BOB, CAROL, ROOT, Persona
from harness.files import make, remove
from harness.syscalls import exchange

KINDS = ["file", "directory", "fifo", "symlink"]
WHO = {"root": ROOT, "alice": ALICE, "bob": BOB, "carol": CAROL}
CASES = [
    # directory's owner, the thing's owner, caller, may
    ("alice", "alice", "alice", True),
    ("alice", "bob", "alice", True),
    ("bob", "alice", "alice", True),
    ("bob", "bob", "alice", False),
    ("bob", "carol", "alice", False),
    ("root", "root", "alice", False),
    ("bob", "carol", "root", True),
]


def _sticky(area: Path, name: str, owner: Persona, kind: str, owner_of_thing: Persona) -> Path:
    """A thing in a sticky directory that everybody may write to."""
    directory = make("directory", area / name, 0o1777, owner.uid, owner.gid)
    return make(kind, directory / "thing", 0o777, owner_of_thing.uid, owner_of_thing.gid)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("directory", "owner", "caller", "may"), CASES)
def test_remove(area: Path, kind: str, directory: str, owner: str, caller: str, may: bool) -> None:
    path = _sticky(area, "sticky", WHO[directory], kind, WHO[owner])
    assert WHO[caller].outcome(remove, path) == ("ok" if may else "EPERM")
    assert os.listdir(path.parent) == ([] if may else ["thing"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("directory", "owner", "caller", "may"), CASES)
def test_move_out(area: Path, kind: str, directory: str, owner: str, caller: str, may: bool) -> None:
    path = _sticky(area, "sticky", WHO[directory], kind, WHO[owner])
    target = make("directory", area / "target", 0o777) / "thing"
    expected = "ok" if may else "EPERM"
    assert WHO[caller].outcome(os.rename, path, target) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("directory", "owner", "caller", "may"), CASES)
def test_replace(area: Path, kind: str, directory: str, owner: str, caller: str, may: bool) -> None:
    path = _sticky(area, "sticky", WHO[directory], kind, WHO[owner])
    source = make("directory", area / "source", 0o777)
    new = make(kind, source / "new", 0o777, WHO[caller].uid, WHO[caller].gid)
    inode = path.lstat().st_ino
    assert WHO[caller].outcome(os.rename, new, path) == ("ok" if may else "EPERM")
    assert (path.lstat().st_ino == inode) == (not may)


@pytest.mark.parametrize(("directory", "owner", "caller", "may"), CASES)
@pytest.mark.beyond_libfuse("rename flags")
def test_exchange(area: Path, directory: str, owner: str, caller: str, may: bool) -> None:
    path = _sticky(area, "sticky", WHO[directory], "file", WHO[owner])
    other = make("file", make("directory", area / "source", 0o777) / "new", 0o777, WHO[caller].uid, WHO[caller].gid)
    assert WHO[caller].outcome(exchange, other, path) == ("ok" if may else "EPERM")
    assert WHO[caller].outcome(exchange, path, other) == ("ok" if may else "EPERM")


def test_making_names_is_for_everybody(area: Path) -> None:
    directory = make("directory", area / "sticky", 0o1777)
    ALICE.call(make, "file", directory / "alices")
    assert BOB.outcome(make, "file", directory / "bobs") == "ok"
    assert BOB.outcome(os.rename, directory / "bobs", directory / "renamed") == "ok"
    assert BOB.outcome(os.rename, directory / "renamed", directory / "alices") == "EPERM"
    assert sorted(os.listdir(directory)) == ["alices", "renamed"]
