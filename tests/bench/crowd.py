"""One process that holds many clients: what a thousand machines would send, from a small part of this one.

Each client has a small tree in memory and answers whatever the mount asks about it. Frames are read and written by hand: a mask
of zeros is a mask (RFC 6455, 5.3), and costs neither side a byte's work. A client says nothing but its answers, and pings when
fuse-gate would; unless it is told to be `busy`: then it tells of changes that never were, as fast as the server takes it.
"""

import base64
import contextlib
import heapq
import os
import select
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final, Self

import msgspec

FILES: Final = 20
SIZE: Final = 1000
"""Files of a client's tree, and bytes of each."""
_PATIENCE: Final = 20.0
"""Seconds until a connection that came to nothing is tried again, and then given up."""
_ASK_AFTER: Final = 10.0
_LOOK_AFTER: Final = 11.0
"""Seconds of silence after which fuse-gate asks whether the server is there, and until it looks again (fuse_gated/connection.py):
an idle session's only work is the server's part of that."""


class Crowd:
    """A forked process with clients of the server at `port`, each of which logs in with `token`. It stands for other machines:
    with `first` it has its turn before everybody else on this one (root), and with `cpus` none but those processors."""

    def __init__(self, port: int, token: str, *, first: bool = True, cpus: Collection[int] = ()) -> None:
        self._ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._ours.close()
                # Counted by itself by the scheduler: it takes nothing that would be the bench's.
                os.setsid()
                if cpus:
                    os.sched_setaffinity(0, cpus)
                if first:
                    _go_first()
                # A child of the bench's would handle Ctrl-C as the bench does.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                _Held(theirs, port, token).run()
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    def open(self, names: Iterable[str], at_once: int) -> dict[str, Any]:
        """Connect with these exports, so many at a time. `mounts` by name, `seconds` from each connect(2) to its welcome, `tries`
        of all, and why those that are not open were `refused`."""
        return self._ask("open", list(names), at_once)

    def close(self) -> int:
        """All clients say goodbye at once. The number of those whose connection the server ended in order."""
        return int(self._ask("close"))

    def busy(self, name: str, *, busy: bool) -> None:
        """Whether one of the clients sends as fast as it can. When it no longer does, the server has heard it all on return."""
        self._ask("busy", name, busy)

    def leave(self, names: Iterable[str]) -> int:
        """Some of them say goodbye; as `close`."""
        return int(self._ask("leave", list(names)))

    def vanish(self, names: Iterable[str]) -> None:
        """Some of them are gone without a word."""
        self._ask("vanish", list(names))

    def _ask(self, *words: Any) -> Any:
        question = msgspec.msgpack.encode(words)
        self._ours.sendall(len(question).to_bytes(4, "big") + question)
        return _receive(self._ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        os.waitpid(self.pid, 0)


def _go_first() -> None:
    """In place of other machines, whose processors this one has not got: never wait for one."""
    with contextlib.suppress(OSError):
        os.nice(-20)
        # Where the scheduler counts by terminal sessions, that is what counts (sched(7)).
        Path("/proc/self/autogroup").write_text("-20")


def _receive(sock: socket.socket) -> Any:
    header = sock.recv(4, socket.MSG_WAITALL)
    if len(header) < 4:
        raise EOFError
    return msgspec.msgpack.decode(sock.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL))


class _Held:
    """All the clients, in the process that has them."""

    def __init__(self, control: socket.socket, port: int, token: str) -> None:
        self.port, self.token = port, token
        self.poll = select.epoll()
        self._control = control
        self._clients: dict[int, _Client] = {}
        self.by_name: dict[str, _Client] = {}
        self._busy: set[_Client] = set()
        self._looks: list[tuple[float, int, _Client]] = []
        """When a client looks whether it has heard anything, the next first."""
        self.poll.register(control, select.EPOLLIN)

    def run(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                self.turn(0.0 if self._busy else 60.0)

    def turn(self, wait: float) -> None:
        next_look = self._looks[0][0] - time.monotonic() if self._looks else wait
        for fd, events in self.poll.poll(max(0.0, min(wait, next_look))):
            if fd == self._control.fileno():
                words = _receive(self._control)
                answer = msgspec.msgpack.encode(getattr(self, f"do_{words[0]}")(*words[1:]))
                self._control.sendall(len(answer).to_bytes(4, "big") + answer)
            elif fd in self._clients:
                self._clients[fd].ready(events)
        for client in self._busy:
            client.be_busy()
        now = time.monotonic()
        while self._looks and self._looks[0][0] <= now:
            client = heapq.heappop(self._looks)[2]
            if not client.ended:
                self.look_again(client, client.ask(now))

    def look_again(self, client: "_Client", when: float) -> None:
        heapq.heappush(self._looks, (when, id(client), client))

    def do_open(self, names: list[str], at_once: int) -> dict[str, Any]:
        to_do, opening = deque(names), set[_Client]()
        mounts, seconds, refused, tries = {}, [], {}, 0
        since: dict[str, float] = {}
        while to_do or opening:
            while to_do and len(opening) < at_once:
                name = to_do.popleft()
                client = _Client(self, name)
                self._clients[client.socket.fileno()] = self.by_name[name] = client
                since.setdefault(name, client.began)
                opening.add(client)
                tries += 1
            self.turn(0.05)
            now = time.monotonic()
            for client in [one for one in opening if one.mount or one.ended or now - one.began > _PATIENCE]:
                opening.discard(client)
                if client.mount:
                    mounts[client.name] = client.mount
                    seconds.append(client.welcomed - since[client.name])
                elif now - since[client.name] < _PATIENCE and client.ended.startswith(("429", "503")):
                    to_do.append(client.name)
                else:
                    refused[client.name] = client.ended or "no welcome"
        return {"mounts": mounts, "seconds": seconds, "refused": refused, "tries": tries}

    def do_leave(self, names: list[str]) -> int:
        clients = [self.by_name.pop(name) for name in names if name in self.by_name]
        for client in clients:
            self._busy.discard(client)
            client.leave()
        end = time.monotonic() + 60
        while any(not client.ended for client in clients) and time.monotonic() < end:
            self.turn(0.2)
        return sum(client.ended == "closed" for client in clients)

    def do_vanish(self, names: list[str]) -> None:
        for name in names:
            if (client := self.by_name.pop(name, None)) is not None:
                client.vanish()

    def do_close(self) -> int:
        return self.do_leave(list(self.by_name))

    def do_busy(self, name: str, busy: bool) -> None:
        client = self.by_name[name]
        if busy:
            self._busy.add(client)
            return
        self._busy.discard(client)
        # What has been sent is a second's work of the server's, and more.
        heard, end = client.pongs, time.monotonic() + _PATIENCE
        client.ping()
        while client.pongs == heard and not client.ended and time.monotonic() < end:
            self.turn(0.2)

    def forget(self, client: "_Client") -> None:
        self._clients.pop(client.socket.fileno(), None)
        self._busy.discard(client)


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_DECODE: Final = msgspec.msgpack.Decoder().decode
_PING: Final = b"\x89\x80" + bytes(4)
_GOODBYE: Final = b"\x88\x82" + bytes(4) + (1000).to_bytes(2, "big")
_DIRECTORY: Final = (1, 1, 0o040755, 2, 1000, 1000, 0, 0, 0, 4096, 10**18, 10**18, 10**18)
_FILESYSTEM: Final = (1, 1, 1, 1, 1, 4096, 255, 4096)
_NAMES: Final = [b"file%d" % number for number in range(FILES)]
_NOTHING: Final = ("release", "releasedir", "flush", "fsync", "fsyncdir", "setlk", "access")


class _Client:
    """One connection, and the tree behind it."""

    def __init__(self, held: _Held, name: str) -> None:
        self.name, self.mount, self.ended = name, "", ""
        self.began, self.welcomed = time.monotonic(), 0.0
        self._held = held
        self._upgraded = False
        self._in, self._out = bytearray(), bytearray()
        self._files = {name: bytearray(name.ljust(SIZE, b".")) for name in _NAMES}
        self._open: dict[int, bytes] = {}
        self._handle = 0
        self._heard = self.began
        self.pongs = 0
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(("127.0.0.1", held.port))
        self.socket.setblocking(False)
        held.poll.register(self.socket, select.EPOLLIN)
        key = base64.b64encode(os.urandom(16)).decode()
        self._out += (
            f"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: fuse-gate.v1\r\n"
            f"Authorization: Bearer {held.token}\r\n\r\n"
        ).encode()
        hello = {"export": name, "program": "crowd", "root": b"/nonexistent", "capabilities": []}
        self._flush()
        self._hello = hello

    def ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if not events & ~select.EPOLLOUT:
            return
        try:
            data = self.socket.recv(2**18)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(str(error))
            return
        if not data:
            self._end(self.ended or "end of file")
            return
        self._in += data
        self._heard = time.monotonic()
        if not self._upgraded:
            head, end, _ = bytes(self._in).partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._end(head.partition(b"\r\n")[0].decode("latin-1").partition(" ")[2])
                return
            del self._in[: len(head) + 4]
            self._upgraded = True
            self._send([["hello", self._hello]])
            self._held.look_again(self, self._heard + _ASK_AFTER)
        self._frames()
        if not self.ended:
            self._flush()

    def ask(self, now: float) -> float:
        """Ping, if nothing was heard for long enough; when to look again."""
        silent = now - self._heard
        if silent < _ASK_AFTER:
            return now + _LOOK_AFTER - silent
        self.ping()
        return now + _LOOK_AFTER

    def ping(self) -> None:
        self._out += _PING
        self._flush()

    def leave(self) -> None:
        if not self.ended:
            self._out += _GOODBYE
            self._flush()

    def vanish(self) -> None:
        self._end("vanished")

    def be_busy(self) -> None:
        """Fill what the connection holds."""
        if len(self._out) < 2**16 and not self.ended:
            for _ in range(20):
                self._send([["notice", [b"file%d" % number for number in range(FILES)]]])
            self._flush()

    def _frames(self) -> None:
        while len(self._in) >= 2:
            opcode, length, start = self._in[0] & 15, self._in[1], 2
            if length > 125:
                start = 4 if length == 126 else 10
                length = int.from_bytes(self._in[2:start], "big")
            if len(self._in) < start + length:
                return
            payload = bytes(self._in[start : start + length])
            del self._in[: start + length]
            if opcode == 2:
                for frame in _DECODE(payload):
                    self._frame(frame)
            elif opcode == 10:
                self.pongs += 1
            elif opcode == 9:
                self._out += bytes((0x8A, 0x80 | len(payload))) + bytes(4) + payload
            elif opcode == 8:
                if not self.mount:
                    self._end(payload[2:].decode("utf-8", "replace") or "closed")
                    return
                self.ended = "closed" if payload[:2] == b"\x03\xe8" else payload[2:].decode("utf-8", "replace")

    def _frame(self, frame: list[Any]) -> None:
        if frame[0] == "welcome":
            self.mount, self.welcomed = frame[1]["mount"], time.monotonic()
        elif frame[0] == "ask":
            _, number, operation, arguments = frame
            try:
                result = self._answer(operation, arguments)
            except KeyError:
                self._send([["reply", number, "ENOENT", None]])
            else:
                self._send([["reply", number, None if result is not NotImplemented else "ENOSYS",
                             result if result is not NotImplemented else None]])

    def _answer(self, operation: str, arguments: list[Any]) -> Any:
        target = self._open.get(arguments[0], arguments[0]) if arguments and not isinstance(arguments[0], list) else b""
        match operation:
            case "getattr":
                return self._attributes(target)
            case "setattr":
                size = arguments[4]
                if size is not None:
                    del self._files[target][size:]
                return self._attributes(target)
            case "open" | "opendir" | "create":
                if operation == "create":
                    self._files[target] = bytearray()
                attributes = self._attributes(target)
                if operation == "open" and arguments[1] & 4:
                    self._files[target].clear()
                self._handle += 1
                self._open[self._handle] = target
                return self._handle, attributes
            case "read":
                return bytes(self._files[target][arguments[1] : arguments[1] + arguments[2]])
            case "write":
                self._files[target][arguments[1] : arguments[1] + len(arguments[2])] = arguments[2]
                return len(arguments[2])
            case "readdir":
                names = sorted(self._files)[arguments[1] :][: arguments[2]]
                listed = [(name, self._inode(name), 0o100000, self._attributes(name) if arguments[3] else None) for name in names]
                return listed, arguments[1] + len(listed) == len(self._files)
            case "unlink":
                del self._files[target]
                return None
            case "statfs":
                return _FILESYSTEM
        if operation in ("release", "releasedir"):
            self._open.pop(arguments[0], None)
        return None if operation in _NOTHING else NotImplemented

    def _attributes(self, path: bytes) -> tuple[int, ...]:
        if not path:
            return _DIRECTORY
        size = len(self._files[path])
        return (1, self._inode(path), 0o100644, 1, 1000, 1000, 0, size, 8, 4096, 10**18, 10**18, 10**18)

    @staticmethod
    def _inode(name: bytes) -> int:
        return 2 + int.from_bytes(name[-6:], "big")

    def _send(self, frames: list[Any]) -> None:
        message = _ENCODE(frames)
        length = len(message)
        if length < 126:
            self._out += bytes((0x82, 0x80 | length))
        elif length < 2**16:
            self._out += struct.pack(">BBH", 0x82, 0xFE, length)
        else:
            self._out += struct.pack(">BBQ", 0x82, 0xFF, length)
        self._out += bytes(4)
        self._out += message

    def _flush(self) -> None:
        full = False
        while self._out and not full:
            try:
                del self._out[: self.socket.send(self._out)]
            except BlockingIOError:
                full = True
            except OSError:
                self._out.clear()
        self._held.poll.modify(self.socket, select.EPOLLIN | (select.EPOLLOUT if full else 0))

    def _end(self, why: str) -> None:
        self.ended = self.ended or why
        self._held.forget(self)
        with contextlib.suppress(OSError):
            self._held.poll.unregister(self.socket)
        self.socket.close()


__all__ = ["FILES", "SIZE", "Crowd"]
