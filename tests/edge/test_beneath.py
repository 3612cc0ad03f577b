import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import outcome
from harness.leftovers import descriptors

from fuse_gated.edge import syscalls
from fuse_gated.edge.beneath import PATH_LIMIT, Beneath


@pytest.fixture(params=["openat2", "walk"])
def beneath(request: pytest.FixtureRequest, root: Path) -> Iterator[Beneath]:
    beneath = Beneath(os.fsencode(root), openat2=request.param == "openat2")
    assert beneath.uses_openat2 is (request.param == "openat2")
    yield beneath
    beneath.close()


def inode(beneath: Beneath, path: bytes) -> int:
    with beneath.node(path) as fd:
        return os.fstat(fd).st_ino


def test_the_root_is_found_by_the_empty_path(beneath: Beneath, root: Path) -> None:
    assert inode(beneath, b"") == root.stat().st_ino


def test_a_path_leads_to_its_parent_and_name(beneath: Beneath, root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    with beneath.parent(b"a/b/c") as (directory, name):
        assert os.fstat(directory).st_ino == (root / "a" / "b").stat().st_ino
        assert name == b"c"
    with beneath.parent(b"c") as (directory, name):
        assert (directory, name) == (beneath.root, b"c")


@pytest.mark.parametrize(
    "path", [b"..", b".", b"a/..", b"a/../b", b"a//b", b"a/", b"/a", b"/", b"a\0b", b"a/.", b"./a", b"../../etc/passwd"]
)
def test_unsafe_names_are_not_looked_up(beneath: Beneath, root: Path, path: bytes) -> None:
    (root / "a").mkdir()
    assert outcome(beneath.parent, path) == "EINVAL"
    assert outcome(beneath.node, path) == "EINVAL"
    assert outcome(beneath.status, path) == "EINVAL"


def test_the_root_has_no_parent(beneath: Beneath) -> None:
    assert outcome(beneath.parent, b"") == "EINVAL"


def test_names_and_paths_may_be_too_long(beneath: Beneath, root: Path) -> None:
    longest = b"n" * 255
    (root / os.fsdecode(longest)).touch()
    assert inode(beneath, longest)
    assert outcome(beneath.node, longest + b"n") == "ENAMETOOLONG"
    assert outcome(beneath.status, b"n/" + longest + b"n") == "ENAMETOOLONG"
    assert outcome(beneath.node, b"/".join([b"n"] * PATH_LIMIT)) == "ENAMETOOLONG"


def test_links_on_the_way_are_no_directories(beneath: Beneath, root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "file").touch()
    targets = {"relative": "real", "absolute": str(root / "real"), "up": "../export/real", "magic": "/proc/self/root"}
    for name, target in targets.items():
        (root / name).symlink_to(target)
        assert outcome(beneath.node, name.encode() + b"/file") == "ENOTDIR"
        assert outcome(beneath.parent, name.encode() + b"/file") == "ENOTDIR"
        assert outcome(beneath.parent, name.encode() + b"/deeper/file") == "ENOTDIR"


def test_a_link_at_the_end_is_the_link_itself(beneath: Beneath, root: Path) -> None:
    (root / "link").symlink_to("/etc/passwd")
    assert inode(beneath, b"link") == (root / "link").lstat().st_ino
    with beneath.node(b"link") as fd:
        assert outcome(os.open, syscalls.proc_path(fd), os.O_RDONLY) == "ELOOP"


@pytest.mark.parametrize("path", [b"", b"a", b"a/file", b"a/.hidden", b"...", b"link", b"a/" + b"n" * 255])
def test_the_status_of_what_a_path_names(beneath: Beneath, root: Path, path: bytes) -> None:
    (root / "a").mkdir()
    (root / "link").symlink_to("a/file")
    for name in ("a/file", "a/.hidden", "...", "a/" + "n" * 255):
        (root / name).touch()
    before = descriptors()
    found, there = beneath.status(path), os.lstat(os.path.join(os.fsencode(root), path))
    assert (found.st_ino, found.st_mode) == (there.st_ino, there.st_mode)
    assert descriptors() == before


def test_no_status_of_what_is_missing_or_behind_a_link(beneath: Beneath, root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "file").touch()
    (root / "link").symlink_to("real")
    before = descriptors()
    assert outcome(beneath.status, b"missing") == "ENOENT"
    assert outcome(beneath.status, b"real/file/x") == "ENOTDIR"
    assert outcome(beneath.status, b"link/file") == "ENOTDIR"
    assert outcome(beneath.status, b"/".join([b"d" * 200] * 25)) == "ENOENT"
    assert descriptors() == before


def test_what_is_missing_and_what_is_a_file(beneath: Beneath, root: Path) -> None:
    (root / "file").touch()
    assert outcome(beneath.node, b"missing") == "ENOENT"
    assert outcome(beneath.parent, b"missing/name") == "ENOENT"
    assert outcome(beneath.parent, b"file/name") == "ENOTDIR"


def test_paths_longer_than_the_kernel_takes(beneath: Beneath, root: Path) -> None:
    names = [f"{depth:03}-" + "x" * (depth % 200) for depth in range(150)]
    directory = os.open(root, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=directory)
        deeper = os.open(name, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = deeper
    path = "/".join(names).encode()
    assert len(path) > 2 * 4096
    assert inode(beneath, path) == os.fstat(directory).st_ino
    os.close(directory)
    before = len(descriptors())
    assert outcome(beneath.node, path + b"/missing/file") == "ENOENT"
    assert outcome(beneath.node, path[:5000] + b"!/" + path) == "ENOENT"
    assert outcome(beneath.node, b"missing/" + path) == "ENOENT"
    assert len(descriptors()) == before


def test_a_chunk_may_end_at_any_byte(beneath: Beneath, root: Path) -> None:
    for length in range(4090, 4100):
        path = (b"d" * 254 + b"/") * 16 + b"f" * (length - 16 * 255)
        assert len(path) == length
        assert outcome(beneath.parent, path) == "ENOENT"
        assert outcome(beneath.node, path) == "ENOENT"


def test_no_descriptor_is_left(beneath: Beneath, root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "file").touch()
    before = descriptors()
    for path in (b"", b"a", b"a/b", b"a/b/missing", b"a/file/x", b"a/file/x/y", b"x/y/z"):
        outcome(inode, beneath, path)
        if path:
            outcome(lambda path=path: beneath.parent(path).__exit__(None, None, None))
    assert descriptors() == before


def test_a_kernel_without_openat2_is_noticed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_SYS_OPENAT2", 9999)
    with pytest.raises(OSError, match="not implemented") as raised:
        syscalls.openat2(0, b".", must_be_directory=True)
    assert raised.value.errno == errno.ENOSYS
    (root / "a").mkdir()
    beneath = Beneath(os.fsencode(root))
    assert not beneath.uses_openat2
    assert inode(beneath, b"a") == (root / "a").stat().st_ino
    beneath.close()


def test_the_root_must_be_a_directory(root: Path) -> None:
    (root / "file").touch()
    assert outcome(Beneath, os.fsencode(root / "file")) == "ENOTDIR"
    assert outcome(Beneath, os.fsencode(root / "missing")) == "ENOENT"


def test_an_interrupted_call_is_made_again(beneath: Beneath, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([errno.EINTR, errno.EACCES])
    monkeypatch.setattr(syscalls.ctypes, "get_errno", lambda: next(numbers))
    assert outcome(syscalls.openat2, beneath.root, b"missing", must_be_directory=False) == "EACCES"
