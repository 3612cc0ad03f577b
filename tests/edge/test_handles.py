import os
from pathlib import Path

from harness import outcome

from fuse_gated.edge.handles import Handles, OpenDirectory, OpenFile


def opened(path: Path) -> OpenFile:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    return OpenFile(fd, (1, os.fstat(fd).st_ino), readable=True, writable=True, synchronous=False, local=True)


def test_a_number_is_never_given_twice(tmp_path: Path) -> None:
    handles = Handles()
    first = handles.add(opened(tmp_path / "a"))
    os.close(handles.remove_file(first).fd)
    second = handles.add(opened(tmp_path / "b"))
    assert second > first
    assert outcome(handles.file, first) == "EBADF"
    handles.close()


def test_files_and_directories_are_told_apart(tmp_path: Path) -> None:
    handles = Handles()
    file = handles.add(opened(tmp_path / "a"))
    directory = handles.add(OpenDirectory(os.open(tmp_path, os.O_RDONLY)))
    assert outcome(handles.file, directory) == "EBADF"
    assert outcome(handles.directory, file) == "EBADF"
    assert outcome(handles.remove_file, directory) == "EBADF"
    assert outcome(handles.remove_directory, file) == "EBADF"
    assert handles.either(file) is handles.file(file)
    assert handles.either(directory) is handles.directory(directory)
    for number in (0, -1, 99, 2**64 - 1):
        assert outcome(handles.either, number) == "EBADF"
    assert len(handles) == 2
    os.close(handles.remove_directory(directory).fd)
    handles.close()
    assert len(handles) == 0


def test_the_limit_holds(tmp_path: Path) -> None:
    handles = Handles(1)
    assert outcome(handles.require_room) == "ok"
    number = handles.add(opened(tmp_path / "a"))
    assert outcome(handles.require_room) == "EMFILE"
    os.close(handles.remove_file(number).fd)
    assert outcome(handles.require_room) == "ok"


def test_the_limit_leaves_descriptors_for_the_rest() -> None:
    assert Handles().limit == os.sysconf("SC_OPEN_MAX") - 64


def test_a_file_is_open_as_long_as_one_handle_is(tmp_path: Path) -> None:
    handles = Handles()
    first, second = handles.add(opened(tmp_path / "a")), handles.add(opened(tmp_path / "a"))
    key = handles.file(first).key
    os.close(handles.remove_file(first).fd)
    assert handles.is_open(key)
    os.close(handles.remove_file(second).fd)
    assert not handles.is_open(key)
