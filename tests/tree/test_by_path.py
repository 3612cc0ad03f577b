"""tree/by_path.py: what is remembered where nodes are paths, and files that libfuse hides."""

import pytest

from fuse_gated.operations import Attributes, Setlk
from fuse_gated.tree.by_path import LINGERS, REMEMBERED, ByPath, is_hidden_name
from fuse_gated.tree.handles import Handle, Handles
from fuse_gated.tree.inodes import Inodes

HIDDEN = b".fuse_hidden0000000200000001"


def attributes(inode: int, kind: int = 0o100000) -> Attributes:
    return Attributes(7, inode, kind | 0o644, 1, 500, 501, 0, 5, 8, 4096, 1, 2, 3)


@pytest.fixture
def handles() -> Handles:
    return Handles(Inodes())


@pytest.fixture
def names(handles: Handles) -> ByPath:
    return ByPath(handles)


def opened(handles: Handles, path: bytes, flags: int = 2, directory: bool = False) -> Handle:
    return handles.add(None, path, 77, flags, directory=directory)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        (HIDDEN, True),
        (b".fuse_hidden000000020000000", False),
        (HIDDEN + b"0", False),
        (HIDDEN.replace(b"2", b"G"), False),
        (b"x" + HIDDEN, False),
        (b"", False),
    ],
)
def test_what_libfuse_keeps_for_itself(name: bytes, hidden: bool) -> None:
    assert is_hidden_name(name) is hidden


def test_what_was_seen_last_is_remembered(names: ByPath) -> None:
    names.saw(b"d", attributes(4, 0o040000))
    names.saw(b"f", attributes(5))
    names.saw(b"f", attributes(6))
    assert names.identity(b"f") == (7, 6, 0o100000)
    assert names.identity(b"d") == (7, 4, 0o040000)
    assert names.identity(b"g") is None


def test_the_longest_unseen_is_forgotten(names: ByPath) -> None:
    for number in range(REMEMBERED):
        names.saw(b"%d" % number, attributes(number))
    names.saw(b"0", attributes(0))
    names.saw(b"new", attributes(1))
    assert names.identity(b"0") is not None
    assert names.identity(b"1") is None
    assert names.identity(b"2") is not None


def test_a_name_that_is_gone_is_not_known(names: ByPath) -> None:
    names.saw(b"f", attributes(5))
    names.removed(b"f", None)
    names.removed(b"never", None)
    assert names.identity(b"f") is None


def test_a_rename_moves_what_is_open_beneath(names: ByPath, handles: Handles) -> None:
    inside, beside, itself = opened(handles, b"d/a/f"), opened(handles, b"dd/f"), opened(handles, b"d", directory=True)
    handles.locks.changed(b"d/a/f", Setlk(b"", inside.id, 9, 0, 10, 1, 4321, False, False))
    names.saw(b"d/a", attributes(3))
    names.saw(b"e/b", attributes(4))
    names.saw(b"dd", attributes(5))
    names.renamed(b"d", b"e")
    assert [handle.path for handle in (inside, beside, itself)] == [b"e/a/f", b"dd/f", b"e"]
    assert (handles.locks.has(b"e/a/f", 9), handles.locks.has(b"d/a/f", 9)) == (True, False)
    assert names.identity(b"d/a") is None
    assert names.identity(b"e/b") is None, "it was replaced, or lay beneath what was"
    assert names.identity(b"dd") is not None


def test_a_handle_with_a_node_follows_its_node(names: ByPath) -> None:
    inodes = Inodes()
    handles = Handles(inodes)
    names = ByPath(handles)
    handle = handles.add(inodes.known(inodes.root, b"f", attributes(5)), b"f", 77, 2)
    names.renamed(b"f", b"g")
    assert handle.path == b"f"
    assert not names.may_be_hidden(b"f", 0.0)


def test_a_hidden_file_lives_on_by_its_alias(names: ByPath, handles: Handles) -> None:
    reader, writer = opened(handles, b"d/f", 0), opened(handles, b"d/f", 1)
    directory = opened(handles, b"d/f", 0, directory=True)
    assert names.may_be_hidden(b"d/f", 100.0)
    alias = b"d/" + HIDDEN
    names.removed(b"d/f", alias)
    assert not names.may_be_hidden(b"d/f", 100.0), "whoever has the name now is another"
    assert names.open_on(alias) is reader
    assert names.open_on(alias, writable=True) is writer
    names.renamed(b"d", b"e")
    assert (reader.path, writer.path, directory.path) == (b"d/f", b"d/f", b"e/f"), "a file without a name is moved by nobody"
    handles.remove(reader.id)
    assert names.open_on(alias) is writer
    handles.remove(writer.id)
    assert names.open_on(alias) is None


def test_a_nameless_file_can_be_opened_anew(names: ByPath, handles: Handles) -> None:
    first = opened(handles, b"f", 0)
    names.removed(b"f", HIDDEN)
    second = opened(handles, b"f", 2)
    names.opened_again(HIDDEN, second)
    handles.remove(first.id)
    assert names.open_on(HIDDEN) is second
    assert not names.may_be_hidden(b"f", 100.0)
    third = opened(handles, b"f", 2)
    names.opened_again(b"f", third)
    assert names.may_be_hidden(b"f", 100.0), "that one has a name"


def test_an_alias_is_forgotten_once(names: ByPath, handles: Handles) -> None:
    opened(handles, b"f")
    names.removed(b"f", HIDDEN)
    assert names.forget(HIDDEN)
    assert names.open_on(HIDDEN) is None
    assert not names.forget(HIDDEN)
    assert not names.forget(b"f")


def test_a_file_that_was_closed_a_moment_ago_may_be_hidden(names: ByPath) -> None:
    """libfuse learns of a close(2) a moment after us. There is nothing then that could live on."""
    names.released(b"f", 100.0)
    assert names.may_be_hidden(b"f", 100.0)
    assert names.may_be_hidden(b"f", 100.0 + LINGERS - 0.1)
    assert not names.may_be_hidden(b"f", 100.0 + LINGERS)
    assert not names.may_be_hidden(b"g", 100.0)
    names.removed(b"f", HIDDEN)
    assert not names.forget(HIDDEN)


def test_only_so_many_closed_files_are_remembered(names: ByPath) -> None:
    for number in range(REMEMBERED + 1):
        names.released(b"%d" % number, 100.0)
    names.released(b"1", 100.0)
    names.released(b"new", 100.0)
    assert [names.may_be_hidden(name, 100.0) for name in (b"0", b"1", b"2", b"new")] == [False, True, False, True]


def test_an_alias_that_libfuse_forgets_does_not_stay_for_ever(names: ByPath, handles: Handles) -> None:
    kept = opened(handles, b"kept")
    names.removed(b"kept", b"alias of kept")
    for number in range(2000):
        handle = opened(handles, b"f")
        names.removed(b"f", b"%d" % number)
        handles.remove(handle.id)
    assert sum(names.forget(b"%d" % number) for number in range(2000)) < 600
    assert names.open_on(b"alias of kept") is kept
