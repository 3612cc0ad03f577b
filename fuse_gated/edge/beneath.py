"""Resolving paths beneath one directory, and nowhere else.

A path comes from the server and may be hostile, and a local program may swap a directory for a symbolic link at any
moment. So no path is ever judged as a string: the kernel resolves it beneath the root's descriptor without following a
link (openat2(2): RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS), or, where it has no openat2, we open one
component after the other with O_NOFOLLOW. What comes back is an O_PATH descriptor, which opens nothing: the caller then
works on one name in it with the *at calls, or reaches the object through /proc/self/fd. None is kept across requests.

What is mounted somewhere beneath the root may belong to a server that answers nothing, and whoever asks it waits. So a
thread that must not wait says so with `within_mount`: it then meets BeyondMount where anything else than the root's own mount
would be asked.
"""

import errno
import os
import re
import threading
from types import TracebackType
from typing import Final

from fuse_gated.edge import syscalls
from fuse_gated.paths import NAME_MAX, is_safe_name

PATH_LIMIT: Final = 2**20
"""Bytes of the longest path that is looked up; ENAMETOOLONG beyond it. PATH_MAX does not bound a path of the wire."""

_PLAIN: Final = re.compile(rb"[^/\0.][^/\0]*(?:/[^/\0.][^/\0]*)*").fullmatch
"""Most paths: no name in them begins with a dot, and they are no longer than one name may be."""
_PATH_MAX: Final = 4096  # With the NUL at its end (limits.h).
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NODE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class BeyondMount(Exception):
    """What was to be resolved lies on another mount than the root. Nothing was done."""


class WithinMount(threading.local):
    """For the length of a with block this thread must not wait (`Beneath`)."""

    on = False

    def __enter__(self) -> None:
        self.on = True

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.on = False


class Parent:
    """For the length of a with block: (descriptor of a directory, name in it)."""

    __slots__ = ("_owned", "fd", "name")

    def __init__(self, fd: int, name: bytes, *, owned: bool) -> None:
        self.fd = fd
        self.name = name
        self._owned = owned

    def close(self) -> None:
        if self._owned:
            os.close(self.fd)

    def __enter__(self) -> tuple[int, bytes]:
        return self.fd, self.name

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Node:
    """For the length of a with block: a descriptor of one object, whatever its type. It may be an O_PATH descriptor."""

    __slots__ = ("_fd", "_owned")

    def __init__(self, fd: int, *, owned: bool) -> None:
        self._fd = fd
        self._owned = owned

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._owned:
            os.close(self._fd)


class Beneath:
    """The tree beneath `root`, an absolute or relative path that is itself resolved in the ordinary way, once.

    With `openat2` False the kernel's openat2 is not used even where it exists. Raises OSError if `root` is no directory.
    """

    def __init__(self, root: bytes, *, openat2: bool = True) -> None:
        self.root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.uses_openat2 = openat2 and _has_openat2(self.root)
        self.within_mount = WithinMount()
        """For the length of a with block, `parent` and `node` raise BeyondMount in this thread for whatever is a mount point,
        or lies beneath one; without openat2, which alone can tell, for everything but the root."""

    def parent(self, path: bytes) -> Parent:
        """The directory that `path` lies in, and its last name.

        Raises OSError: EINVAL for the root and for names that are not safe, ENOTDIR where a component is no directory
        (also where it is a symbolic link), ENAMETOOLONG, and what openat2(2) and open(2) say.
        """
        _check(path)
        directory, _, name = path.rpartition(b"/")
        if not name:
            raise OSError(errno.EINVAL, "the root has no parent here")
        parent = Parent(self._directory(directory), name, owned=True) if directory else Parent(self.root, name, owned=False)
        return self._checked(parent) if self.within_mount.on else parent

    def node(self, path: bytes) -> Node:
        """The object that `path` names: a symbolic link is the link itself. Raises OSError as `parent`; never EINVAL for
        the root."""
        if not path:
            return Node(self.root, owned=False)
        if self.uses_openat2 and len(path) < _PATH_MAX:
            _check(path)
            return Node(self._openat2(path, must_be_directory=False), owned=True)
        with self.parent(path) as (directory, name):
            return Node(os.open(name, _NODE, dir_fd=directory), owned=True)

    def status(self, path: bytes) -> os.stat_result:
        """What fstat(2) tells of the object that `path` names. Raises OSError as `node`."""
        if path and self.uses_openat2 and len(path) < _PATH_MAX:
            # As with `node`, without an object for the descriptor: nothing is asked as often as this.
            _check(path)
            fd = self._openat2(path, must_be_directory=False)
            try:
                return os.fstat(fd)
            finally:
                os.close(fd)
        with self.node(path) as fd:
            return os.fstat(fd)

    def close(self) -> None:
        os.close(self.root)

    def _directory(self, path: bytes) -> int:
        if not self.uses_openat2:
            return self._walk(path)
        if len(path) < _PATH_MAX:
            return self._openat2(path, must_be_directory=True)
        if self.within_mount.on:
            raise BeyondMount
        fd = self.root
        try:
            for chunk in _chunks(path):
                deeper = syscalls.openat2(fd, chunk, must_be_directory=True)
                if fd != self.root:
                    os.close(fd)
                fd = deeper
        except OSError as error:
            if fd != self.root:
                os.close(fd)
            raise _as_without_openat2(error) from None
        return fd

    def _openat2(self, path: bytes, *, must_be_directory: bool) -> int:
        within = self.within_mount.on
        try:
            return syscalls.openat2(self.root, path, must_be_directory=must_be_directory, same_mount=within)
        except OSError as error:
            if within and error.errno == errno.EXDEV:
                raise BeyondMount from None
            raise _as_without_openat2(error) from None

    def _checked(self, parent: Parent) -> Parent:
        """The calls on a name in a directory go through what is mounted there. Raises BeyondMount, and gives the parent up."""
        if not self.uses_openat2 or syscalls.is_elsewhere(parent.fd, parent.name):
            parent.close()
            raise BeyondMount
        return parent

    def _walk(self, path: bytes) -> int:
        if self.within_mount.on:
            raise BeyondMount
        fd = self.root
        try:
            for name in path.split(b"/"):
                deeper = os.open(name, _DIRECTORY, dir_fd=fd)
                if fd != self.root:
                    os.close(fd)
                fd = deeper
        except OSError:
            if fd != self.root:
                os.close(fd)
            raise
        return fd


def _check(path: bytes) -> None:
    if len(path) <= NAME_MAX and _PLAIN(path) is not None:
        return
    if len(path) > PATH_LIMIT:
        raise OSError(errno.ENAMETOOLONG, f"a path of {len(path)} bytes")
    for name in path.split(b"/") if path else ():
        if not is_safe_name(name):
            raise OSError(errno.ENAMETOOLONG if len(name) > NAME_MAX else errno.EINVAL, "a name that is not looked up")


def _chunks(path: bytes) -> list[bytes]:
    """`path` in pieces that the kernel takes. Names are at most 255 bytes, so every window holds a slash."""
    chunks = []
    start = 0
    while len(path) - start >= _PATH_MAX:
        cut = path.rindex(b"/", start, start + _PATH_MAX)
        chunks.append(path[start:cut])
        start = cut + 1
    chunks.append(path[start:])
    return chunks


def _as_without_openat2(error: OSError) -> OSError:
    """What open(2) says with O_DIRECTORY|O_NOFOLLOW, so that both ways of resolving answer alike."""
    return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) if error.errno == errno.ELOOP else error


def _has_openat2(root: int) -> bool:
    try:
        os.close(syscalls.openat2(root, b".", must_be_directory=True))
    except OSError:
        # ENOSYS before Linux 5.6; EPERM under seccomp filters that are older than the call.
        return False
    return True
