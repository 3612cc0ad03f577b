"""Where audit records are written: journald's native protocol, or a file of JSON lines.

Neither ever waits. `write` says whether the record was taken; a caller that hears False keeps the record and tries it again,
and until it is taken answers nobody. After construction only send, sendmsg, write, memfd_create, fcntl (to seal the memfd)
and close are called, so that a worker can write from inside its cage.

Sources: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ and, for the lines of the file, journalctl(1), --output=json.
"""

import errno
import fcntl
import os
import socket
import stat
import struct
import time
from abc import ABC, abstractmethod
from typing import Final

import msgspec

from fuse_gated.config.settings import Audit
from fuse_gated.errors import OperatorError
from fuse_gated.gate.audit import SEALED, Fields

SOCKET: Final = "/run/systemd/journal/socket"
FILE: Final = "audit.jsonl"
"""The file's name where the settings name none: in the runtime directory, but for the system's own in LOG_DIRECTORY."""
LOG_DIRECTORY: Final = "/var/log/fuse-gated"
RUNTIME: Final = "/run/fuse-gated"
"""The system's own runtime directory. It is a filesystem in memory, which is small, and empty after a boot."""

LINE_START: Final = b'{"__REALTIME_TIMESTAMP":"'
"""How every line of the file begins; it occurs nowhere else in a line, because within a string its quotes are escaped."""

# The queue is full, or there is no memory for the message: it may be taken later, by the same receiver.
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE})
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Journal(ABC):
    """Takes audit records, each whole or not at all. `trouble` says for people why the last record was not taken ('' if it
    was). `broken` says that waiting will not help: whoever can must give a fresh descriptor to `reconnect`."""

    broken: bool = False
    trouble: str = ""
    pollable: bool
    """Whether the descriptor becomes writable when there is room again (a file's does not: epoll(7) refuses it; try again by
    a timer)."""

    @abstractmethod
    def write(self, fields: Fields) -> bool:
        """Whether the record was taken. Never waits, and raises nothing for what goes wrong with the journal."""

    @abstractmethod
    def fileno(self) -> int:
        """The descriptor; another one after `reconnect`."""

    @abstractmethod
    def reconnect(self, descriptor: int) -> None:
        """Go on with `descriptor`, which becomes the journal's own, in place of the old one, which is closed."""

    @abstractmethod
    def close(self) -> None:
        """Give the descriptor up; closing twice does nothing."""

    def _refused(self, error: OSError) -> bool:
        self.trouble = error.strerror or str(error)
        return False


class JournalSocket(Journal):
    """journald, through a connected datagram socket. Taken means that the kernel has the record in journald's queue."""

    pollable = True

    def __init__(self, descriptor: int) -> None:
        """Raises OSError for a descriptor that is not a socket."""
        self._socket = _datagrams(descriptor)

    @classmethod
    def connect(cls, path: str = SOCKET) -> "JournalSocket":
        """Raises OSError as connect(2) does."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            raise
        return cls(connection.detach())

    def write(self, fields: Fields) -> bool:
        message = native(fields)
        try:
            try:
                self._socket.send(message, _FLAGS)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                self._send_sealed(message)
        except OSError as error:
            self.broken = error.errno not in _FULL
            return self._refused(error)
        self.broken = False
        self.trouble = ""
        return True

    def _send_sealed(self, message: bytes) -> None:
        """What is too large for a datagram goes as a memfd that can no longer change: journald takes no other."""
        descriptor = os.memfd_create("fuse-gated-audit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            rest = memoryview(message)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))
            self._socket.sendmsg([], [rights], _FLAGS)
        finally:
            os.close(descriptor)

    def fileno(self) -> int:
        return self._socket.fileno()

    def reconnect(self, descriptor: int) -> None:
        fresh = _datagrams(descriptor)
        self._socket.close()
        self._socket = fresh
        self.broken = False

    def close(self) -> None:
        self._socket.close()


class JournalFile(Journal):
    """A file of JSON lines, one a record, to which many processes append. Taken means that write(2) took the whole record.

    One that takes no more is `broken` as well, though there may be room again: somebody may have put another in its place, and
    somebody must be told.

    A line of which only a part could be written (a full disk) counts as not written. It is ended as soon as that can be done,
    and readers skip it: taking it back would take back what another process wrote after it. What another process appends
    before it is ended is not lost either: readers know where a line begins."""

    pollable = False

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: of a file opened with O_APPEND."""
        self._descriptor = descriptor
        self._torn = False

    @classmethod
    def open(cls, path: str) -> "JournalFile":
        """Raises OSError as open(2) does, and OperatorError for a file that others could have put there or can write to."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OperatorError(f"the audit file {path} is not a regular file", "name another with audit: {file: …}")
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                raise OperatorError(
                    f"the audit file {path} belongs to or can be written by others",
                    "move it away, or make it root's with mode 0600",
                )
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def write(self, fields: Fields) -> bool:
        line = json_line(fields, time.time_ns() // 1000)
        if self._torn:
            line = b"\n" + line
        try:
            written = os.write(self._descriptor, line)
            self._torn = written != len(line)
            if written >= len(line) - 1:
                # If anything, the newline is missing: all of the record is there, and written again it would be there twice.
                self.broken = False
                self.trouble = ""
                return True
            self.broken = True
            self.trouble = "only a part of the line could be written"
            os.write(self._descriptor, b"\n")
            self._torn = False
        except OSError as error:
            self.broken = True
            return self._refused(error)
        return False

    def fileno(self) -> int:
        return self._descriptor

    def reconnect(self, descriptor: int) -> None:
        self.close()
        self._descriptor = descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def open_journal(audit: Audit, runtime: str, *, socket_path: str = SOCKET) -> Journal:
    """The journal that the settings ask for; `runtime` is the runtime directory. Raises OperatorError where there is none."""
    if audit.to not in ("auto", "journal", "file"):
        raise OperatorError(f"audit: {{to: {audit.to}}} means nothing", "it is auto, journal or file")
    if audit.to != "file":
        try:
            return JournalSocket.connect(socket_path)
        except OSError as error:
            if audit.to == "journal":
                raise OperatorError(
                    f"the audit is to go to the journal, but {socket_path} does not answer: {error.strerror}",
                    "start systemd-journald, or write audit: {to: file} into fuse-gated.yaml",
                ) from error
    path = audit_file(audit, runtime)
    try:
        return JournalFile.open(path)
    except OSError as error:
        raise OperatorError(
            f"the audit file {path} cannot be opened: {error.strerror}",
            "make its directory writable for fuse-gated, or name another with audit: {file: …} in fuse-gated.yaml",
        ) from error


def audit_file(audit: Audit, runtime: str) -> str:
    """The path of the file that records go to, where they go to one. `runtime` is the runtime directory."""
    return audit.file or os.path.join(LOG_DIRECTORY if os.path.abspath(runtime) == RUNTIME else runtime, FILE)


def native(fields: Fields) -> bytes:
    """A record in journald's native protocol: NAME=value, or, where the value has a newline, the name, its length as 64 bits
    little-endian, and the value."""
    lines = [_PREFIX[name] + value for name, value in fields]
    message = b"\n".join(lines) + b"\n"
    if message.count(b"\n") == len(fields):
        return message
    return b"".join([_binary(name, value) if b"\n" in value else _PREFIX[name] + value + b"\n" for name, value in fields])


def _binary(name: str, value: bytes) -> bytes:
    return b"%b\n%b%b\n" % (name.encode(), len(value).to_bytes(8, "little"), value)


def json_line(fields: Fields, realtime_usec: int) -> bytes:
    """A record as one line of JSON, as `journalctl --output=json` shows it: values are strings, or, where they are not UTF-8,
    arrays of numbers. `realtime_usec` is the time, in microseconds since the epoch."""
    shown: dict[str, str | list[int]] = {"__REALTIME_TIMESTAMP": str(realtime_usec)}
    for name, value in fields:
        try:
            shown[name] = value.decode()
        except UnicodeDecodeError:
            shown[name] = list(value)
    return _JSON.encode(shown) + b"\n"


def _datagrams(descriptor: int) -> socket.socket:
    connection = socket.socket(fileno=descriptor)
    connection.setblocking(False)
    return connection


_PREFIX: Final = {name: f"{name}=".encode() for name in (*SEALED, "FUSE_GATED_CHAIN")}
_JSON: Final = msgspec.json.Encoder()
