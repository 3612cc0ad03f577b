"""An export without a mount: file operations by path, over a socket to the worker that serves the session.

It is what fsspec's filesystem (fsspec.py) and `fuse-gatectl files` stand on. Here, where no kernel does it, symbolic links are
followed, one component after the other, and a file is opened only after it was looked up: the gate sees what it would see of a
mount. An error is the OSError that the system call would have raised.

One `Attached` may be used by several threads at once. A process that was forked gets nothing of its parent's: the socket is
closed there, and whoever uses it hears ENOTCONN.
"""

import contextlib
import os
import socket
import stat
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from errno import EACCES, EEXIST, EINVAL, EIO, EISDIR, ELOOP, ENAMETOOLONG, ENOTCONN, ENOTDIR, EOPNOTSUPP, EPROTO
from typing import Any, Final, NamedTuple

from fuse_gated import control
from fuse_gated import operations as op
from fuse_gated.edge import hosting
from fuse_gated.edge.asking import Asking, Waiting
from fuse_gated.edge.network_requests import MOST_LISTING
from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Attributes, Caller, Request
from fuse_gated.paths import NAME_MAX, is_safe_name, join, split

MOST_LINKS: Final = 40
"""Symbolic links that are followed on the way to one file (path_resolution(7))."""
RENAME_NOREPLACE: Final = 1  # renameat2(2)

_MOST_EMPTY: Final = 4
"""Answers to a listing, one after the other, in which no name is: the client says that it goes on, and says nothing."""
_GREETING_PATIENCE: Final = 10.0
# The daemon knows who we are; what a request says of it is not looked at.
_OURSELVES: Final = Caller(0, 0, 0)
_alive: "weakref.WeakSet[Attached]" = weakref.WeakSet()


class Listed(NamedTuple):
    """A name in a directory, with its file type's bits of a mode; `attributes` are there where they came with it."""

    name: bytes
    kind: int
    attributes: Attributes | None


class Attached:
    """One session. `sock` is the socket that `control.attach` gave, and `shown` what stands before a path in an error, such as
    'acme/src'. Raises OSError where the worker does not take us."""

    def __init__(self, sock: socket.socket, shown: str) -> None:
        self._socket = sock
        self.shown = shown
        sock.settimeout(_GREETING_PATIENCE)
        try:
            number, reason = hosting.decode_greeting(sock.recv(hosting.MAX_PACKET))
        except (OSError, ProtocolError):
            sock.close()
            raise self.error(ENOTCONN, b"") from None
        if number:
            sock.close()
            raise OSError(number, reason, shown)
        sock.settimeout(None)
        self._umask = _umask()
        self._asking = Asking(sock)
        # Nobody waits for the thread: it ends with the socket.
        threading.Thread(target=self._asking.receive, daemon=True, name=f"fuse-gated {shown}").start()
        _alive.add(self)

    @classmethod
    def to(cls, runtime: str, session: str) -> "Attached":
        """Attach to a session of the daemon that runs in `runtime`. Raises OSError, and what `control.attach` raises."""
        sock, found = control.attach(runtime, session)
        return cls(sock, f"{found.tenant}/{found.export}")

    @property
    def closed(self) -> bool:
        return self._asking.closed

    def close(self) -> None:
        """What is open is closed with it."""
        self._asking.close()
        self._socket.close()

    def abandon(self) -> None:
        """In a process that was forked: its parent's socket is not to be used, nor kept open."""
        self._asking.abandon()
        self._socket.close()

    # Names.

    def find(self, path: bytes, *, follow: bool = True) -> tuple[bytes, Attributes]:
        """Where a path leads, without a link in it, and what is there. With `follow` the last component is followed too."""
        names = _names(path)
        if b".." not in names:
            node = b"/".join(names)
            try:
                attributes = self._look(node)
            except OSError as error:
                if error.errno != ENOTDIR:
                    raise
            else:
                if not (follow and stat.S_ISLNK(attributes.mode)):
                    return node, attributes
        return self._walk(path, names, follow)

    def listing(self, path: bytes) -> Iterator[Listed]:
        """The names in a directory, but '.' and '..'."""
        node, found = self.find(path)
        if not stat.S_ISDIR(found.mode):
            raise self.error(ENOTDIR, path)
        handle = self.ask(op.Opendir(node, os.O_RDONLY), path)
        try:
            offset = empty = 0
            entries: tuple[hosting.ListedEntry, ...]
            while entries := self.ask(op.Readdir(node, handle, offset, MOST_LISTING, True), path):
                empty += 1
                for name, _inode, _offset, kind, attributes in entries:
                    if name not in (b".", b".."):
                        empty = 0
                        yield Listed(name, kind, attributes)
                if empty >= _MOST_EMPTY:
                    raise self.error(EPROTO, path)
                offset = entries[-1][2]
        finally:
            self.tell(op.Releasedir(node, handle))

    def readlink(self, path: bytes) -> bytes:
        target: bytes = self.ask(op.Readlink(self.find(path, follow=False)[0]), path)
        return target

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        self.ask(op.Mkdir(*self._free(path), mode & ~self._umask, 0), path)

    def rmdir(self, path: bytes) -> None:
        self.ask(op.Rmdir(*self._taken(path)), path)

    def unlink(self, path: bytes) -> None:
        self.ask(op.Unlink(*self._taken(path)), path)

    def symlink(self, target: bytes, path: bytes) -> None:
        self.ask(op.Symlink(*self._free(path), target), path)

    def link(self, old: bytes, new: bytes) -> None:
        self.ask(op.Link(self.find(old, follow=False)[0], *self._free(new)), new)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        """`flags` are renameat2(2)'s."""
        # The gate judges what was not looked up as a directory, the stricter case.
        place = self._taken(old)
        if flags & RENAME_NOREPLACE:
            new_place = self._free(new)
        else:
            new_place = self._place(new)
            with contextlib.suppress(FileNotFoundError):
                self._look(join(*new_place), new)
        self.ask(op.Rename(*place, *new_place, flags), old)

    def remove_tree(self, path: bytes) -> None:
        """A directory with all that is in it; of the export's root only what is in it."""
        for listed in list(self.listing(path)):
            beneath = join(path, listed.name)
            if stat.S_ISDIR(listed.kind):
                self.remove_tree(beneath)
            else:
                self.unlink(beneath)
        if path:
            self.rmdir(path)

    def touch(self, path: bytes) -> None:
        """Its times are now."""
        self.ask(op.Setattr(self.find(path)[0], atime=op.NOW, mtime=op.NOW), path)

    def statfs(self) -> op.Filesystem:
        found: op.Filesystem = self.ask(op.Statfs(b""), b"")
        return found

    def open(self, path: bytes, flags: int, mode: int = 0o666) -> tuple[int, Attributes | None]:
        """As open(2), of a regular file: a handle (attached_file.py), and what was found there (None for what was made)."""
        opening = flags & ~(os.O_CREAT | os.O_EXCL)
        if not flags & os.O_CREAT:
            return self._open(path, opening)
        if not flags & os.O_EXCL:
            try:
                return self._open(path, opening)
            except FileNotFoundError:
                pass
        place = self._free(path) if flags & os.O_EXCL else self._place(path)
        handle: int = self.ask(op.Create(*place, flags, mode & ~self._umask, 0), path)
        return handle, None

    # One request at a time.

    def ask(self, request: Request, path: bytes) -> Any:
        """The answer (hosting.RESULTS). Raises OSError, which names `path`."""
        return self.finish(self.start(request, path), path)

    def start(self, request: Request, path: bytes) -> Waiting:
        """Send a request whose answer `finish` waits for. Raises OSError."""
        try:
            return self._asking.start(_OURSELVES, request)
        except OSError as error:
            raise self.error(error.errno or EIO, path) from None

    def finish(self, waiting: Waiting, path: bytes) -> Any:
        """What `ask` returns and raises."""
        try:
            return self._asking.finish(waiting)
        except OSError as error:
            raise self.error(error.errno or EIO, path) from None

    def tell(self, request: Request) -> None:
        """Send a request that nobody waits for."""
        with contextlib.suppress(OSError):
            self._asking.tell(_OURSELVES, request)

    def error(self, number: int, path: bytes) -> OSError:
        """The error of an errno, by its class, that names the path."""
        return OSError(number, os.strerror(number), self.named(path))

    def named(self, path: bytes) -> str:
        """A path for people: tenant/export/path."""
        return f"{self.shown}/{os.fsdecode(path)}" if path else self.shown

    # Details.

    def _open(self, path: bytes, flags: int) -> tuple[int, Attributes]:
        node, found = self.find(path)
        if not stat.S_ISREG(found.mode):
            # What is no file has its data on the server (a pipe), or is a device of another machine.
            raise self.error(EISDIR if stat.S_ISDIR(found.mode) else EOPNOTSUPP, path)
        handle: int = self.ask(op.Open(node, flags), path)
        return handle, found

    def _place(self, path: bytes) -> tuple[bytes, bytes]:
        """The directory that a name is or will be in, and the name, which is not followed."""
        directory, name = split(path.rstrip(b"/"))
        if name in (b"", b".", b".."):
            raise self.error(EINVAL, path)
        self._check(name, path)
        names = _names(directory)
        if not names:
            return b"", name
        node, found = self.find(directory)
        if not stat.S_ISDIR(found.mode):
            raise self.error(ENOTDIR, path)
        return node, name

    def _taken(self, path: bytes) -> tuple[bytes, bytes]:
        """The place of a name that is there: looked up before anything is done to it, as the kernel does."""
        place = self._place(path)
        self._look(join(*place), path)
        return place

    def _free(self, path: bytes) -> tuple[bytes, bytes]:
        """The place of a name that is to be made."""
        place = self._place(path)
        try:
            self._look(join(*place), path)
        except FileNotFoundError:
            return place
        raise self.error(EEXIST, path)

    def _walk(self, path: bytes, names: list[bytes], follow: bool) -> tuple[bytes, Attributes]:
        done: list[bytes] = []
        todo = deque(names)
        links = 0
        found: Attributes | None = None
        while todo:
            name = todo.popleft()
            if name == b"..":
                done, found = done[:-1], None
                continue
            done.append(name)
            node = b"/".join(done)
            found = self._look(node, path)
            if stat.S_ISLNK(found.mode) and (todo or follow):
                links += 1
                if links > MOST_LINKS:
                    raise self.error(ELOOP, path)
                target: bytes = self.ask(op.Readlink(node), path)
                if target.startswith(b"/"):
                    # symlinks: as-is. It leads to somewhere on whatever machine it is followed on.
                    raise self.error(EACCES, path)
                todo.extendleft(reversed(_names(target)))
                done, found = done[:-1], None
            elif todo and not stat.S_ISDIR(found.mode):
                raise self.error(ENOTDIR, path)
        node = b"/".join(done)
        return node, found if found is not None else self._look(node, path)

    def _look(self, node: bytes, path: bytes | None = None) -> Attributes:
        for name in node.split(b"/") if node else ():
            self._check(name, node)
        request = op.Lookup(*split(node)) if node else op.Getattr(b"")
        found: Attributes = self.ask(request, node if path is None else path)
        return found

    def _check(self, name: bytes, path: bytes) -> None:
        if not is_safe_name(name):
            raise self.error(ENAMETOOLONG if len(name) > NAME_MAX else EINVAL, path)


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _umask() -> int:
    """This process's. Not by umask(2), which sets it for a moment, and for all threads."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _in_child() -> None:
    for attached in list(_alive):
        attached.abandon()
    _alive.clear()


os.register_at_fork(after_in_child=_in_child)
