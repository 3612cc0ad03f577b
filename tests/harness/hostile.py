"""A client made by hand, which can break every rule: blocking sockets, websockets' sans-I/O protocol, and msgspec.

It answers what the mount asks by a function that each test chooses. System calls on its mount are made in a forked child,
while the client answers here: threads and fork do not mix.
"""

import contextlib
import fcntl
import itertools
import os
import pickle
import posix
import select
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from websockets.client import ClientProtocol
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from fuse_gated.operations import Attributes, Filesystem
from fuse_gated.wire import codec
from fuse_gated.wire.messages import (
    MAX_MESSAGE,
    SUBPROTOCOL,
    Ask,
    Asked,
    Cancel,
    Hello,
    Listed,
    ListedEntry,
    LockState,
    Offer,
    OpenedFile,
    Reply,
    Terms,
    Welcome,
)
from harness.log import DEADLINE
from harness.persona import outcome
from harness.server import Server, token

SILENCE: Final = object()
"""As an answer: none is ever sent."""

Answer = Callable[[str, Any, Ask], Any]
"""From (operation, arguments, the request): a result, the name of an errno, SILENCE, bytes to send as a whole message, or a
list of such bytes."""


def file(inode: int = 2, size: int = 5, **changes: Any) -> Attributes:
    """The attributes of a regular file; `changes` may be such as no file has."""
    return attributes(0o100644, inode, size=size, **changes)


def directory(inode: int = 1, **changes: Any) -> Attributes:
    return attributes(0o040755, inode, **changes)


def attributes(mode: int, inode: int, **changes: Any) -> Attributes:
    made = Attributes(1, inode, mode, 1, 1000, 1000, 0, 0, 0, 4096, 10**18, 10**18, 10**18)
    return msgspec.structs.replace(made, **changes)


def reply(number: int, result: Any = None, errno: str | None = None) -> bytes:
    """A message with one reply."""
    return codec.encode(Reply(number, errno, result))


def honest(operation: str, arguments: Any, _request: Ask) -> Any:
    """A small tree: the file `f` with five bytes, the directory `d`, the symbolic link `l` to `f`."""
    target = getattr(arguments, "target", getattr(arguments, "path", None))
    if operation in _SIMPLE:
        return _SIMPLE[operation]
    if operation == "getattr":
        return _TREE.get(target, "ENOENT") if isinstance(target, bytes) else file()
    if operation == "readdir":
        names = [(b"f", 2, 0o100000), (b"d", 3, 0o040000), (b"l", 4, 0o120000)][arguments.cookie :]
        return Listed(tuple(ListedEntry(*entry) for entry in names), end=True)
    if operation == "read":
        return b"hello"[arguments.offset : arguments.offset + arguments.size]
    if operation == "write":
        return len(arguments.data)
    return "EOPNOTSUPP"


_NUMBERS: Final = itertools.count(1)
_TREE: Final = {b"": directory(), b"f": file(), b"d": directory(3), b"l": attributes(0o120777, 4, size=1)}
_SIMPLE: Final[dict[str, Any]] = {
    "open": OpenedFile(7, file()),
    "create": OpenedFile(8, file(9)),
    "opendir": OpenedFile(9, directory()),
    "readlink": b"f",
    "statfs": Filesystem(1, 1, 1, 1, 1, 4096, 255, 4096),
    "getlk": LockState(2),
    **dict.fromkeys(("release", "releasedir", "flush", "fsync", "fsyncdir", "setlk", "access", "unlink", "rmdir", "rename")),
}


class HostileClient:
    """One connection to `server`. Nothing is sent before it is asked for."""

    def __init__(self, server: Server, export: str = "", tenant: str = "eve", tls: ssl.SSLContext | None = None) -> None:
        self.answer: Answer = honest
        self.export = export or f"hostile-{next(_NUMBERS)}"
        self.terms: Terms | None = None
        self.response: Response | None = None
        self.requests: list[tuple[str, Any]] = []
        """Operations and arguments so far, as they came."""
        self.cancelled: list[int] = []
        self.ended = False
        """The server has said all that it will."""
        self.token = token(tenant)
        plain = socket.create_connection(("127.0.0.1", server.port), DEADLINE)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")
        uri, subprotocols = parse_uri("ws://localhost/"), [Subprotocol(SUBPROTOCOL)]
        self.protocol = ClientProtocol(uri, subprotocols=subprotocols, max_size=MAX_MESSAGE)

    # Steps.

    def upgrade(self, *, authorization: str | None = "", headers: tuple[tuple[str, str], ...] = ()) -> int:
        """Ask for the WebSocket; the HTTP status. `authorization` is the header's value: '' the right one, None none."""
        request = self.protocol.connect()
        if authorization is not None:
            request.headers["Authorization"] = authorization or f"Bearer {self.token}"
        for name, value in headers:
            request.headers[name] = value
        self.protocol.send_request(request)
        self.flush()
        self.pump(lambda: self.response is not None)
        assert self.response is not None
        return self.response.status_code

    def hello(self, **changes: Any) -> None:
        self.send(codec.encode(Hello(Offer(export=self.export, program="hostile/1", **changes))))

    def open(self, answer: Answer | None = None) -> Path:
        """Upgrade, hello and welcome; where it is mounted."""
        if self.upgrade() != 101:
            raise AssertionError(f"not let in: {self.response}")
        if answer is not None:
            self.answer = answer
        self.hello()
        self.pump(lambda: self.terms is not None)
        assert self.terms is not None
        return Path(self.terms.mount)

    # What goes out.

    def send(self, message: bytes, opcode: Opcode = Opcode.BINARY, *, fin: bool = True) -> None:
        """A WebSocket frame with these bytes. What the server no longer takes is lost."""
        self.raw(WebSocketFrame(opcode, message, fin).serialize(mask=True))

    def raw(self, data: bytes) -> None:
        """Bytes into the connection."""
        self.socket.settimeout(DEADLINE)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            self.socket.sendall(data)

    def flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self.raw(data)

    def leave(self, code: int = 1000) -> None:
        """An orderly goodbye, and wait for its end."""
        if self.protocol.state is State.OPEN:
            self.protocol.send_close(code)
            self.flush()
        self.pump(lambda: self.ended)

    # What comes in.

    def pump(self, until: Callable[[], bool], beside: int | None = None, deadline: float = DEADLINE) -> None:
        """Receive and answer until a condition holds, the connection ends, or the descriptor `beside` becomes readable.

        Raises AssertionError when nothing of that happens within `deadline` seconds."""
        end = time.monotonic() + deadline
        while not (until() or (self.ended and beside is None)):
            left = end - time.monotonic()
            if left <= 0:
                raise AssertionError(f"nothing more within {deadline:g} s; closed: {self.closed}; asked: {self.requests[-5:]}")
            sources = [] if self.ended else [self.socket.fileno()]
            pending = isinstance(self.socket, ssl.SSLSocket) and bool(self.socket.pending())
            ready = select.select([*sources, *([beside] if beside is not None else [])], [], [], 0 if pending else left)[0]
            if sources and (pending or sources[0] in ready):
                self._receive()
            if beside is not None and beside in ready:
                return

    def _receive(self) -> None:
        try:
            data = self.socket.recv(2**20)
        except OSError:
            data = b""
        if data:
            self.protocol.receive_data(data)
        else:
            self.ended = True
            with contextlib.suppress(EOFError):
                self.protocol.receive_eof()
        for event in self.protocol.events_received():
            if isinstance(event, Response):
                self.response = event
            elif isinstance(event, WebSocketFrame) and event.opcode is Opcode.BINARY:
                self.on_message(bytes(event.data))
        self.flush()

    def on_message(self, data: bytes) -> None:
        """A message from the server."""
        for frame in codec.decode_from_server(data):
            self._frame(frame)

    def _frame(self, frame: Welcome | Asked | Cancel) -> None:
        if isinstance(frame, Welcome):
            self.terms = frame.terms
        elif isinstance(frame, Cancel):
            self.cancelled.append(frame.id)
        else:
            arguments = codec.decode_arguments(frame)
            self.requests.append((frame.operation, arguments))
            self._reply(frame.id, self.answer(frame.operation, arguments, Ask(frame.id, frame.operation, arguments)))

    def _reply(self, number: int, answer: Any) -> None:
        if answer is SILENCE:
            return
        if isinstance(answer, list):
            for message in answer:
                self.send(message)
        elif isinstance(answer, Message):
            self.send(answer)
        else:
            self.send(reply(number, errno=answer) if isinstance(answer, str) else reply(number, answer))

    @property
    def closed(self) -> tuple[int, str] | None:
        """The server's close code and reason; None while it has not closed."""
        told = self.protocol.close_rcvd
        return None if told is None else (told.code, told.reason)

    def wait_closed(self, deadline: float = DEADLINE) -> tuple[int, str]:
        """The close code and reason, once the connection is over: (1006, '') if there was none."""
        self.pump(lambda: self.ended, deadline=deadline)
        return self.closed or (1006, "")

    def during(self, function: Callable[..., Any], *arguments: Any, deadline: float = DEADLINE) -> Any:
        """What `function` returns in a child, while this client answers. Raises what it raises."""
        with Child(function, *arguments) as child:
            self.pump(lambda: False, child.fileno(), deadline)
            return child.result()

    def outcome(self, function: Callable[..., Any], *arguments: Any, deadline: float = DEADLINE) -> str:
        """'ok' or the name of the errno with which `function` ended in a child."""
        return str(self.during(outcome, function, *arguments, deadline=deadline))

    def close(self) -> None:
        """Vanish, without a word."""
        with contextlib.suppress(OSError):
            # A child that was forked has the socket too.
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Message(bytes):
    """As an answer: to be sent as it stands, in place of a reply."""


class Child:
    """A forked process that calls one function. `fileno` becomes readable when it has ended."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 2**20)
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.close(self._reader)
            _tell(writer, function, arguments)
        os.close(writer)
        # Not the pipe, whose end comes before that of other files of the child's, which its death closes on the mount.
        self._pidfd = os.pidfd_open(self.pid)
        self.status: int | None = None

    def fileno(self) -> int:
        return self._pidfd

    def wait(self, deadline: float) -> bool:
        """Whether it ends within so many seconds."""
        return bool(select.select([self._pidfd], [], [], deadline)[0])

    def result(self) -> Any:
        """Waits for its end. Raises what it raised, and AssertionError when it said nothing or never ends."""
        if not self.wait(DEADLINE):
            raise AssertionError(f"the child never ended: {self.state()}")
        with os.fdopen(os.dup(self._reader), "rb") as pipe:
            answer = pipe.read()
        self.reap()
        if not answer:
            raise AssertionError(f"the child ended with {self.status} and said nothing")
        value, error = pickle.loads(answer)
        if error is not None:
            raise error
        return value

    def state(self) -> str:
        """Its state as proc(5) shows it, such as 'S' or 'D'."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def waits_in_fuse(self) -> bool:
        """Whether it is asleep in a request to a mount."""
        return any(name in Path(f"/proc/{self.pid}/stack").read_text() for name in ("fuse_", "request_wait_answer"))

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def reap(self) -> int:
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.reap()
        os.close(self._reader)
        os.close(self._pidfd)


def _tell(writer: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = pickle.dumps((function(*arguments), None))
    except BaseException as error:
        answer = pickle.dumps((None, error))
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(answer)
    posix._exit(0)


def memory(pid: int) -> dict[str, int]:
    """A process's peak (VmHWM), what it has now (RSS), and its share of that (PSS), in bytes. Raises ProcessLookupError when it
    has ended, reaped or not."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return {"VmHWM": _kilobytes(status, "VmHWM"), "RSS": _kilobytes(status, "VmRSS"), "PSS": _kilobytes(rollup, "Pss")}
    except (FileNotFoundError, StopIteration):
        raise ProcessLookupError(pid) from None


def _kilobytes(text: str, name: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{name}:"))
