"""What cannot cross from one filesystem to another: EXDEV; and what may not be changed: EROFS."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from harness import Place, Stage, need, outcome, syscalls
from harness.files import create, make, open_close
from harness.mounting import bind_read_only, tmpfs


@pytest.fixture
def elsewhere(place: Place) -> Iterator[Path]:
    """A directory on another filesystem."""
    with tempfile.TemporaryDirectory(prefix="fuse-gated-test-") as name, tmpfs(Path(name), "size=1m"):
        yield Path(name)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_rename_across_is_exdev(area: Path, elsewhere: Path, kind: str) -> None:
    here, there = make(kind, area / "here"), make(kind, elsewhere / "there")
    assert outcome(os.rename, here, elsewhere / "new") == "EXDEV"
    assert outcome(os.rename, there, area / "new") == "EXDEV"
    assert outcome(syscalls.exchange, here, there) == "EXDEV"
    assert (os.listdir(area), os.listdir(elsewhere)) == (["here"], ["there"])


def test_link_across_is_exdev(area: Path, elsewhere: Path) -> None:
    here, there = make("file", area / "here"), make("file", elsewhere / "there")
    assert outcome(os.link, here, elsewhere / "new") == "EXDEV"
    assert outcome(os.link, there, area / "new") == "EXDEV"


CHANGES: Final[dict[str, Callable[[Path], object]]] = {
    "chmod": lambda root: os.chmod(root / "file", 0o600),
    "chown": lambda root: os.chown(root / "file", 1, 1),
    "creat": lambda root: create(root / "new"),
    "link": lambda root: os.link(root / "file", root / "new"),
    "mkdir": lambda root: os.mkdir(root / "new"),
    "mkfifo": lambda root: os.mkfifo(root / "new"),
    "open to write": lambda root: open_close(root / "file", os.O_WRONLY),
    "open to truncate": lambda root: open_close(root / "file", os.O_RDONLY | os.O_TRUNC),
    "removexattr": lambda root: os.removexattr(root / "file", "user.name"),
    "rename": lambda root: os.rename(root / "file", root / "new"),
    "rmdir": lambda root: os.rmdir(root / "directory"),
    "setxattr": lambda root: os.setxattr(root / "file", "user.name", b""),
    "symlink": lambda root: os.symlink("target", root / "new"),
    "truncate": lambda root: os.truncate(root / "file", 0),
    "unlink": lambda root: os.unlink(root / "file"),
    "utimensat": lambda root: syscalls.utimensat(root / "file", 1, 1),
    "access": lambda root: syscalls.faccessat(root / "file", os.W_OK),
}


@pytest.fixture(scope="module")
def unchangeable(place: Place) -> Iterator[Path]:
    """A directory with something in it that is read-only: a bind mount, or a client with --read-only."""
    need("root")
    with tempfile.TemporaryDirectory(prefix="fuse-gated-test-") as name:
        root = Path(name)
        root.chmod(0o755)
        make("file", root / "file", 0o666)
        make("directory", root / "directory", 0o777)
        if place.local:
            with bind_read_only(root):
                yield root
        else:
            with Stage(place.driver, shared=True) as stage:
                # Not with ownership passed through: a client that changes nothing cannot chown, and is refused.
                yield stage.mount(directory=root, options=["--trust-server", "--read-only"]).path
        assert (sorted(os.listdir(root)), (root / "file").stat().st_mode & 0o777) == (["directory", "file"], 0o666)


@pytest.mark.parametrize("name", CHANGES)
def test_a_read_only_filesystem_is_erofs(unchangeable: Path, name: str) -> None:
    assert outcome(CHANGES[name], unchangeable) == "EROFS"


def test_a_read_only_filesystem_is_read(unchangeable: Path) -> None:
    assert sorted(os.listdir(unchangeable)) == ["directory", "file"]
    assert (unchangeable / "file").read_bytes() == b""
    assert outcome(open_close, unchangeable / "file", os.O_RDONLY | os.O_CREAT) == "ok"
    assert outcome(os.mkdir, unchangeable / "directory") == "EEXIST"
