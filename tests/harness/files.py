"""Things to put into a directory, and what is known of them."""

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final


def make_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def make_socket(path: Path) -> None:
    """A name that nobody listens at any more. By mknod: a socket's address has no room for a long path."""
    os.mknod(path, stat.S_IFSOCK | 0o755)


def make_block(path: Path) -> None:
    os.mknod(path, stat.S_IFBLK | 0o644, os.makedev(1, 2))


def make_character(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3))


def make_symlink(path: Path) -> None:
    path.symlink_to("nowhere")


MAKERS: Final[dict[str, Callable[[Path], None]]] = {
    "file": make_file,
    "directory": os.mkdir,
    "fifo": os.mkfifo,
    "socket": make_socket,
    "block": make_block,
    "character": make_character,
    "symlink": make_symlink,
}
"""How each kind of file is made."""

KINDS: Final = tuple(MAKERS)
TYPES: Final = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "block": stat.S_IFBLK,
    "character": stat.S_IFCHR,
    "symlink": stat.S_IFLNK,
}
"""The file type's bits of each kind."""


def make(kind: str, path: Path, mode: int | None = None, uid: int = -1, gid: int = -1) -> Path:
    """Make `path`, and give it an owner and a mode (which a link has not)."""
    MAKERS[kind](path)
    if (uid, gid) != (-1, -1):
        os.lchown(path, uid, gid)
    if mode is not None and kind != "symlink":
        path.chmod(mode)
    return path


def remove(path: Path) -> None:
    """rmdir a directory, unlink anything else."""
    (os.rmdir if stat.S_ISDIR(path.lstat().st_mode) else os.unlink)(path)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def owner_of(path: Path) -> tuple[int, int]:
    info = path.lstat()
    return info.st_uid, info.st_gid


def create(path: Path | str, mode: int = 0o666, flags: int = 0) -> None:
    """open(2) with O_CREAT, and close."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | flags, mode))


def open_close(path: Path | str, flags: int, mode: int = 0o666) -> None:
    os.close(os.open(path, flags, mode))


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = 0o666) -> Iterator[int]:
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def connect(path: Path) -> None:
    """Connect to a socket by a name that is as short as an address must be."""
    with opened(path.parent, os.O_PATH | os.O_DIRECTORY) as parent, socket.socket(socket.AF_UNIX) as client:
        client.connect(f"/proc/self/fd/{parent}/{path.name}")
