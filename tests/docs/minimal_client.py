"""A small client in plain Python, written from docs/api alone: it offers one directory, read-only.

It imports nothing of fuse_gated, so that it proves what the documents are worth. WebSocket is the library `websockets`,
MessagePack is msgspec's codec without any types. Usage: minimal_client.py DIRECTORY ws://HOST:PORT TOKEN_FILE NAME
"""

import contextlib
import errno
import os
import signal
import stat
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

MAX_MESSAGE = 4 * 2**20
MAX_DATA = 2**20
PAGE = 1000
ENTRY_ROOM = 500_000
OPEN_READ, OPEN_WRITE, OPEN_TRUNCATE = 1, 2, 4


class Refused(Exception):
    """The request is answered with this errno's name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Violation(Exception):
    """The server broke the protocol: (close code, reason)."""


class Tree:
    """The directory, and what the server has open in it. Every method is an operation: it takes the arguments of the request
    and returns the result."""

    def __init__(self, root: str) -> None:
        self.root = os.open(root, os.O_PATH | os.O_DIRECTORY)
        self.handles: dict[int, int] = {}
        self.listings: dict[int, list[list[Any]]] = {}
        self.last = 0

    # Paths: never as a whole, never through a symbolic link.

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """(a descriptor of the directory, which the caller closes; the last name)."""
        *directories, last = path.split(b"/")
        for name in (*directories, last):
            if not name or name in (b".", b"..") or b"\0" in name:
                raise Refused("EINVAL")
        fd = os.dup(self.root)
        for name in directories:
            try:
                deeper = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            finally:
                os.close(fd)
            fd = deeper
        return fd, last

    def node(self, target: bytes | int) -> int:
        """An O_PATH descriptor, which the caller closes, of what a path or a handle stands for."""
        if isinstance(target, int):
            return os.dup(self.handle(target))
        if not target:
            return os.dup(self.root)
        fd, name = self.parent(target)
        try:
            return os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)

    def handle(self, number: int) -> int:
        if number not in self.handles:
            raise Refused("EBADF")
        return self.handles[number]

    def opened(self, fd: int) -> list[Any]:
        self.last += 1
        self.handles[self.last] = fd
        return [self.last, attributes(os.fstat(fd))]

    # The operations.

    def getattr(self, target: bytes | int) -> list[int]:
        fd = self.node(target)
        try:
            return attributes(os.fstat(fd))
        finally:
            os.close(fd)

    def readlink(self, path: bytes) -> bytes:
        fd, name = self.parent(path)
        try:
            return os.readlink(name, dir_fd=fd)
        finally:
            os.close(fd)

    def open(self, target: bytes | int, flags: int, _clear_setid: bool = False) -> list[Any]:
        if flags & (OPEN_WRITE | OPEN_TRUNCATE):
            raise Refused("EROFS")
        node = self.node(target)
        try:
            kind = stat.S_IFMT(os.fstat(node).st_mode)
            if kind != stat.S_IFREG:
                raise Refused({stat.S_IFDIR: "EISDIR", stat.S_IFLNK: "ELOOP"}.get(kind, "ENXIO"))
            return self.opened(os.open(f"/proc/self/fd/{node}", os.O_RDONLY))
        finally:
            os.close(node)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        fd, data = self.handle(handle), b""
        if not 0 <= size <= MAX_DATA:
            raise Refused("EINVAL")
        while len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
            data += more
        return data

    def flush(self, handle: int, _owner: int) -> None:
        self.handle(handle)

    def release(self, handle: int) -> None:
        os.close(self.handle(handle))
        del self.handles[handle]

    def opendir(self, path: bytes) -> list[Any]:
        node = self.node(path)
        try:
            return self.opened(os.open(f"/proc/self/fd/{node}", os.O_RDONLY | os.O_DIRECTORY))
        finally:
            os.close(node)

    def readdir(self, handle: int, cookie: int, count: int, with_attributes: bool) -> list[Any]:
        fd = self.handle(handle)
        if cookie < 0 or count < 1:
            raise Refused("EINVAL")
        if cookie == 0:
            with os.scandir(fd) as found:
                self.listings[handle] = [[os.fsencode(one.name), one.inode(), 0] for one in found]
        entries = self.listings.get(handle, [])
        told: list[list[Any]] = []
        room = ENTRY_ROOM
        for entry in entries[cookie : cookie + min(count, PAGE)]:
            room -= len(entry[0]) + 150
            if room < 0 and told:
                break
            told.append(entry)
            # A name that is gone by now keeps its place: cookies are positions.
            with contextlib.suppress(OSError):
                status = os.stat(entry[0], dir_fd=fd, follow_symlinks=False)
                told[-1] = [entry[0], status.st_ino, stat.S_IFMT(status.st_mode)]
                if with_attributes:
                    told[-1].append(attributes(status))
        return [told, cookie + len(told) >= len(entries)]

    def releasedir(self, handle: int) -> None:
        self.release(handle)
        self.listings.pop(handle, None)

    def statfs(self) -> list[int]:
        s = os.fstatvfs(self.root)
        return [s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, s.f_namemax, s.f_frsize]

    def access(self, target: bytes | int, mask: int) -> None:
        if mask & os.W_OK:
            raise Refused("EROFS")
        node = self.node(target)
        try:
            if not os.access(f"/proc/self/fd/{node}", mask, effective_ids=True):
                raise Refused("EACCES")
        finally:
            os.close(node)


def attributes(s: os.stat_result) -> list[int]:
    major, minor = os.major(s.st_rdev), os.minor(s.st_rdev)
    rdev = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
    times = (max(-(2**63), min(moment, 2**63 - 1)) for moment in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns))
    owner = (s.st_nlink, s.st_uid, s.st_gid)
    return [s.st_dev, s.st_ino, s.st_mode, *owner, rdev, s.st_size, s.st_blocks, s.st_blksize, *times]


ARGUMENTS = {
    "getattr": 1, "readlink": 1, "open": 3, "read": 3, "flush": 2, "release": 1, "opendir": 1, "readdir": 4, "releasedir": 1,
    "statfs": 0, "access": 2,
}  # fmt: skip
"""The operations that are served, and how many arguments we know of each."""


class Client:
    """One session on an open connection. `tap` sees every message that goes ('client') or comes ('server')."""

    def __init__(self, connection: ClientConnection, root: str, name: str, tap: Callable[[str, bytes], object]) -> None:
        self.connection, self.tap = connection, tap
        self.tree = Tree(root)
        self.terms: dict[str, Any] = {}
        offer = {
            "export": name,
            "program": "minimal/1",
            "root": os.fsencode(os.path.realpath(root)),
            "capabilities": ["read-only"],
        }
        self.send([["hello", offer]])

    def send(self, frames: list[Any]) -> None:
        message = msgspec.msgpack.encode(frames)
        self.tap("client", message)
        self.connection.send(message)

    def serve(self) -> None:
        """Answers until the connection ends. One request after the other, so a cancel always comes too late, and never is more
        than one message's worth of requests held."""
        for message in self.connection:
            if isinstance(message, str):
                raise Violation(1003, "a text message")
            self.tap("server", message)
            replies: list[Any] = []
            size = 0
            for frame in self.frames(message):
                if frame[0] == "welcome" and not self.terms:
                    self.terms = frame[1]
                    print(f"mounted at {self.terms['mount']}", flush=True)
                elif frame[0] == "ask" and self.terms:
                    reply = self.reply(*frame[1:4])
                    weight = len(reply[3]) + 100 if isinstance(reply[3], bytes) else ENTRY_ROOM
                    if replies and size + weight > MAX_MESSAGE:
                        self.send(replies)
                        replies, size = [], 0
                    replies.append(reply)
                    size += weight
                elif frame[0] != "cancel":
                    raise Violation(1002, f"a {frame[0]} now")
            if replies:
                self.send(replies)

    def frames(self, message: bytes) -> list[Any]:
        try:
            frames = msgspec.msgpack.decode(message)
            if all(isinstance(frame, list) and isinstance(frame[0], str) for frame in frames):
                return list(frames)
        except (msgspec.DecodeError, TypeError, IndexError):
            pass
        raise Violation(1007, "not an array of frames")

    def reply(self, number: int, operation: str, arguments: list[Any]) -> list[Any]:
        if operation not in ARGUMENTS:
            return ["reply", number, "ENOSYS", None]
        try:
            return ["reply", number, None, getattr(self.tree, operation)(*arguments[: ARGUMENTS[operation]])]
        except TypeError:
            raise Violation(1007, f"arguments of {operation} that are none") from None
        except Refused as refused:
            return ["reply", number, refused.name, None]
        except (OverflowError, ValueError):
            return ["reply", number, "EINVAL", None]
        except OSError as error:
            return ["reply", number, errno.errorcode.get(error.errno or errno.EIO, "EIO"), None]


def main(root: str, url: str, token_file: str, name: str, tap: Callable[[str, bytes], object] = lambda *_: None) -> int:
    with open(token_file, encoding="ascii") as file:
        token = file.read().strip()
    login = {"Authorization": f"Bearer {token}"}
    with connect(
        url, subprotocols=["fuse-gate.v1"], additional_headers=login, compression=None, max_size=MAX_MESSAGE, proxy=None
    ) as connection:
        if connection.subprotocol != "fuse-gate.v1":
            raise SystemExit("no fuse-gated server")

        def leave(*_: object) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, leave)
        try:
            Client(connection, root, name, tap).serve()
        except Violation as violation:
            connection.close(*violation.args)
            print(f"the server broke the protocol: {violation.args[1]}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            connection.close(1000, "goodbye")
            return 0
        except ConnectionClosed:
            pass
        print(f"the server closed the session: {connection.close_code} {connection.close_reason}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5]))
