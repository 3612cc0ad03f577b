"""tree/handles.py: what is open, where it is now, and which handle stands for a node."""

from types import SimpleNamespace

import pytest

from fuse_gated.operations import Attributes
from fuse_gated.tree.handles import Handles
from fuse_gated.tree.inodes import Inodes

REGULAR, DIRECTORY = 0o100000, 0o040000


def attributes(inode, kind=REGULAR):
    return Attributes(7, inode, kind | 0o644, 1, 500, 501, 0, 5, 8, 4096, 1, 2, 3)


@pytest.fixture
def inodes():
    return Inodes()


@pytest.fixture
def handles(inodes):
    return Handles(inodes)


@pytest.fixture
def node(inodes):
    return inodes.known(inodes.root, b"a", attributes(5))


def lock(owner, pid=4321):
    return SimpleNamespace(handle=1, owner=owner, start=0, end=10, type=1, pid=pid)


def test_handles_have_numbers_that_are_never_used_again(handles, node):
    first = handles.add(node, b"a", 70, 0)
    handles.remove(first.id)
    second = handles.add(node, b"a", 71, 0)
    assert second.id != first.id
    assert (handles.get(first.id), handles.get(second.id)) == (None, second)
    assert list(handles) == [second]
    assert len(handles) == 1


def test_what_was_never_open_cannot_be_removed(handles):
    assert handles.remove(5) is None


def test_an_open_file_is_where_its_node_is(handles, inodes, node):
    handle = handles.add(node, b"a", 70, 0)
    directory = inodes.known(inodes.root, b"d", attributes(6, DIRECTORY))
    inodes.renamed(inodes.root, b"a", directory, b"b", exchange=False)
    assert (handles.path(handle), handle.path) == (b"d/b", b"a")


def test_where_the_driver_has_no_nodes_an_open_file_is_where_it_was_opened(handles):
    handle = handles.add(None, b"d/a", 70, 0)
    assert handles.path(handle) == handle.place == b"d/a"
    assert handles.remove(handle.id) is handle


@pytest.mark.parametrize("directory", [False, True])
def test_a_node_lives_as_long_as_something_is_open_on_it(handles, inodes, directory):
    node = inodes.known(inodes.root, b"a", attributes(5, DIRECTORY if directory else REGULAR))
    first, second = (handles.add(node, b"a", remote, 0, directory=directory) for remote in (70, 71))
    inodes.forget(node.id, 1)
    handles.remove(first.id)
    assert inodes.get(node.id) is node
    handles.remove(second.id)
    assert inodes.get(node.id) is None


def test_any_handle_stands_for_a_file_and_only_a_writable_one_for_writing(handles, node):
    assert handles.on(node) is None
    reading = handles.add(node, b"a", 70, 0)
    assert handles.on(node) is reading
    assert handles.on(node, writable=True) is None
    for flags in (1, 2):
        writing = handles.add(node, b"a", 71, flags)
        assert handles.on(node, writable=True) is writing
        assert handles.on(node) is reading
        handles.remove(writing.id)


def test_a_handle_stands_for_a_directory_once_its_name_is_gone(handles, inodes):
    node = inodes.known(inodes.root, b"d", attributes(6, DIRECTORY))
    handle = handles.add(node, b"d", 70, 0, directory=True)
    assert handles.on(node) is None
    inodes.removed(node)
    assert handles.on(node) is handle


def test_locks_are_a_files_until_its_last_handle_is_gone(handles, node):
    first, second = handles.add(node, b"a", 70, 2), handles.add(node, b"a", 71, 0)
    handles.locks.changed(first.place, lock(9))
    assert first.place == second.place == node.id
    handles.remove(first.id)
    assert handles.locks.has(second.place, 9)
    handles.remove(second.id)
    assert len(handles.locks) == 0


def test_what_is_only_open_here_is_opened_at_the_client_once(handles, node):
    handle = handles.add(node, b"a", None, 0)
    assert (handle.remote, handles.unopened) == (-handle.id, 1)
    handles.changed.clear()
    handles.opened(handle, 70)
    assert (handle.remote, handles.unopened, handles.changed) == (70, 0, {handle.id})


def test_what_nobody_here_wants_is_closed_under_a_number_of_its_own(handles, node):
    first = handles.add(node, b"a", 70, 0)
    number = handles.close(71, directory=True)
    assert number == first.id + 1
    assert handles.releasing == {number: (71, True, (), 0)}
    assert number in handles.changed
    assert handles.add(node, b"a", 72, 0).id == number + 1
