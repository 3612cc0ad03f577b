"""The control socket, <runtime>/control.sock: what `fuse-gatectl` asks the running daemon, and where programs attach to sessions.

It is AF_UNIX and SOCK_SEQPACKET (unix(7)). A request is one packet, a MessagePack map. The answer is another map; one that
is longer than a packet comes in several, because the kernel takes no packet larger than the sender's buffer, and an
unprivileged daemon may not enlarge its own beyond net.core.wmem_max. One connection serves one request.

Everybody may connect. To root and the daemon's own user it answers everything, to all others `exports` and `attach`: what they
may use by the policy. The descriptor of an attached socket comes with the answer (SCM_RIGHTS).
"""

import errno
import os
import socket
import time
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from fuse_gated.errors import OperatorError, PeerError, errno_number

Kind = TypeVar("Kind")

SOCKET_NAME: Final = "control.sock"
MAX_REQUEST: Final = 2**20
MAX_PACKET: Final = 2**16
MAX_ANSWER: Final = 2**26
_LOOK: Final = "look what happened to it: journalctl -u fuse-gated"
_PATH_MAX: Final = 107  # sun_path of unix(7), without its NUL


class Request(msgspec.Struct, frozen=True):
    """What is asked of the daemon."""

    command: str
    arguments: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True):
    """What the daemon answers: `error` is None and `result` counts, or `error` and `hint` are for people. `errno` is an errno's
    name, where a program that attaches is to be told one."""

    error: str | None = None
    hint: str = ""
    result: Any = None
    errno: str = ""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What `sessions` lists. `since` is in seconds since the epoch."""

    session: str
    tenant: str = ""
    export: str = ""
    state: str = ""
    driver: str = ""
    address: str = ""
    since: float = 0.0
    mount: str = ""
    operations: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    in_flight: int = 0
    open_files: int = 0
    denied: int = 0
    pid: int = 0
    user_agent: str = ""


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """What `attach` answers beside the socket: which session it is."""

    session: str
    tenant: str
    export: str


class Figured(msgspec.Struct, frozen=True, kw_only=True):
    """What `figures` tells of a session. `measures` is the beginning of a block, as its worker left it (turnstile/measures.py):
    numbers, whoever wrote them. `sealed` and `taken` are how many audit records it has made, and the journal has taken."""

    session: str
    tenant: str
    export: str
    state: str
    driver: str
    address: str
    since: float
    measures: bytes
    sealed: int
    taken: int


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A session that is over; `number` counts them. `measures` is compressed (zlib)."""

    number: int
    session: str
    tenant: str
    export: str
    measures: bytes
    sealed: int


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What `figures` answers, in a memfd whose descriptor comes with the answer. `ended` are the last sessions that ended, as far
    as they were asked for and are still known. `started` names the daemon's own run, in whose numbers they count."""

    version: str
    started: str
    uptime: float
    tenants: int
    draining: bool
    connections: int
    sessions: list[Figured]
    ended: list[Ended]
    last_ended: int


class AttachError(OperatorError):
    """The daemon gives no socket: there is no such session, or the asker may not use it. `errno` is this machine's number."""

    def __init__(self, message: str, hint: str = "", number: int = errno.EACCES) -> None:
        super().__init__(message, hint)
        self.errno = number


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What `status` answers. `uptime` is in seconds; `mountd` says whether the mount keeper answers; `held` are the sessions with
    those whose mount is just being made or taken away."""

    version: str
    pid: int = 0
    sessions: int = 0
    tenants: int = 0
    uptime: float = 0.0
    mountd: bool = False
    drivers: tuple[str, ...] = ()
    draining: bool = False
    held: int = 0


def decode_request(packet: bytes) -> Request:
    """The request in a packet. Raises msgspec.DecodeError (a ValidationError is one)."""
    return _REQUESTS.decode(packet)


def encode_answer(answer: Answer) -> list[bytes]:
    """The packets in which an answer travels."""
    data = msgspec.msgpack.encode(answer)
    return [data[start : start + MAX_PACKET] for start in range(0, len(data), MAX_PACKET)]


def call(runtime: str, command: str, timeout: float = 5.0, **arguments: Any) -> Any:
    """What the daemon that runs in `runtime` answers to a command, within `timeout` seconds.

    Raises OperatorError where no daemon runs, where we may not speak to it, and where it could not do what was asked;
    PeerError where it does not answer, or answers what makes no sense.
    """
    answer, fds = _ask(runtime, command, timeout, arguments)
    for fd in fds:
        os.close(fd)
    if answer.error is not None:
        raise OperatorError(answer.error, answer.hint)
    return answer.result


def figures(runtime: str, timeout: float = 10.0, *, session: str = "", brief: bool = False, ended_after: int = -1) -> Seen:
    """What the sessions do, or one of them, without a question to their workers; with `brief` no single operations. And those
    that ended after number `ended_after`, where it is not below zero. Raises what `call` raises."""
    arguments = {"session": session, "brief": brief, "ended_after": ended_after}
    answer, fds = _ask(runtime, "figures", timeout, arguments)
    try:
        if answer.error is not None:
            raise OperatorError(answer.error, answer.hint)
        if len(fds) != 1:
            raise _nonsense()
        data = os.pread(fds[0], os.fstat(fds[0]).st_size, 0)
    finally:
        for fd in fds:
            os.close(fd)
    try:
        return msgspec.msgpack.decode(data, type=Seen)
    except msgspec.DecodeError:
        raise _nonsense() from None


def attach(runtime: str, session: str, timeout: float = 5.0) -> tuple[socket.socket, Attachment]:
    """A socket to the worker of a session, which is named by its own name or as tenant/export; and which one it is.

    Raises AttachError where there is none that we may use, and what `call` raises.
    """
    answer, fds = _ask(runtime, "attach", timeout, {"session": session})
    if answer.error is None and len(fds) == 1:
        return socket.socket(fileno=fds[0]), _convert(answer.result, Attachment)
    for fd in fds:
        os.close(fd)
    if answer.error is None:
        raise _nonsense()
    raise AttachError(answer.error, answer.hint, errno_number(answer.errno))


def exports(runtime: str, timeout: float = 5.0) -> list[str]:
    """The sessions that we may attach to, each as tenant/export. Raises what `call` raises."""
    return _convert(call(runtime, "exports", timeout), list[str])


def _ask(runtime: str, command: str, timeout: float, arguments: dict[str, Any]) -> tuple[Answer, list[int]]:
    request = msgspec.msgpack.encode(Request(command, arguments))
    deadline = time.monotonic() + timeout
    fds: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.settimeout(timeout)
            _connect(connection, Path(runtime, SOCKET_NAME))
            connection.sendall(request)
            return _receive(connection, deadline, fds), fds
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, TimeoutError):
                raise PeerError(f"the daemon did not answer within {timeout:g} s", _LOOK) from None
            if isinstance(error, OSError):
                raise PeerError(f"the daemon broke off: {error.strerror}", _LOOK) from None
            raise


def convert_sessions(result: Any) -> list[Session]:
    """The result of `sessions`. Raises PeerError where it is none."""
    return _convert(result, list[Session])


def convert_status(result: Any) -> Status:
    """The result of `status`. Raises PeerError where it is none."""
    return _convert(result, Status)


def _convert(result: Any, kind: type[Kind]) -> Kind:
    try:
        return msgspec.convert(result, kind)
    except msgspec.ValidationError:
        raise _nonsense() from None


def _nonsense() -> PeerError:
    return PeerError("the daemon's answer makes no sense", "client and daemon may be of different versions: restart fuse-gated")


def _connect(connection: socket.socket, path: Path) -> None:
    try:
        if len(os.fsencode(path)) <= _PATH_MAX:
            connection.connect(str(path))
            return
        # A socket's address has no room for a longer path; the directory's descriptor stands for it.
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        start = "systemctl start fuse-gated" if os.geteuid() == 0 else "fuse-gated"
        hint = f"start it: {start}; or name its directory: --runtime DIR"
        raise OperatorError(f"no daemon runs in {path.parent}", hint) from None
    except PermissionError:
        raise OperatorError(f"we may not use {path}", "run this as root, or as the user that the daemon runs as") from None


def _receive(connection: socket.socket, deadline: float, descriptors: list[int]) -> Answer:
    """Appends the descriptors that come with the answer."""
    data = bytearray()
    while len(data) <= MAX_ANSWER:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        packet, fds, _, _ = socket.recv_fds(connection, MAX_REQUEST, 1, socket.MSG_CMSG_CLOEXEC)
        descriptors += fds
        data += packet
        try:
            return _ANSWERS.decode(data)
        except msgspec.DecodeError:
            # Cut off so far, or not an answer at all: the end of what is sent tells which.
            if not packet:
                break
    raise _nonsense() if data else PeerError("the daemon broke off without an answer", _LOOK)


_REQUESTS: Final = msgspec.msgpack.Decoder(Request)
_ANSWERS: Final = msgspec.msgpack.Decoder(Answer)
