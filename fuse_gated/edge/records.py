"""Reads audit records back, from the journal or from files of JSON lines, as fields of bytes.

Anyone on the machine can send journald a record that carries our fields. What tells ours apart is the unit, which journald
itself notes (systemd.journal-fields(7), _SYSTEMD_UNIT): where systemd runs, only records of our unit count.
"""

import contextlib
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from fuse_gated import paths
from fuse_gated.edge.journal import LINE_START
from fuse_gated.errors import OperatorError
from fuse_gated.gate.audit import KINDS, SEALED

UNIT: Final = "fuse-gated.service"

_MESSAGE_IDS: Final = frozenset(message_id.encode() for message_id, _, _ in KINDS.values())


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """Which records; what is None does not matter. `path` is relative to the export's root and takes what lies beneath it, old
    name or new. `since` and `until` are microseconds since the epoch, both inclusive."""

    tenant: str | None = None
    session: str | None = None
    path: bytes | None = None
    uid: int | None = None
    operation: str | None = None
    decision: str | None = None
    since: int | None = None
    until: int | None = None

    def fields(self) -> dict[str, bytes]:
        """The fields that must be exactly so."""
        wanted = {
            "FUSE_GATED_TENANT": self.tenant,
            "FUSE_GATED_SESSION": self.session,
            "FUSE_GATED_UID": self.uid,
            "FUSE_GATED_OPERATION": self.operation,
            "FUSE_GATED_DECISION": self.decision,
        }
        return {name: str(value).encode() for name, value in wanted.items() if value is not None}

    def take(self, record: dict[str, bytes]) -> bool:
        return (
            all(record.get(name) == value for name, value in self.fields().items())
            and (self.path is None or self._takes_path(record, self.path))
            and (self.since is None or realtime(record) >= self.since)
            and (self.until is None or realtime(record) <= self.until)
        )

    def _takes_path(self, record: dict[str, bytes], directory: bytes) -> bool:
        told = (record.get("FUSE_GATED_PATH"), record.get("FUSE_GATED_NEW_PATH"))
        return any(path is not None and paths.is_beneath(path[1:], directory) for path in told)


class Source(ABC):
    """Where records are read from. After reading, `notes` says for people what was left out."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @abstractmethod
    def beginning(self) -> str:
        """Why the oldest records may rightly be gone; '' if nothing explains it. Raises OperatorError as `read` does."""

    @abstractmethod
    def read(self, filters: Filters) -> Iterator[dict[str, bytes]]:
        """The records that the filters take, oldest first, each with __REALTIME_TIMESTAMP (microseconds since the epoch).
        Raises OperatorError where they cannot be read."""


def read(source: Source, filters: Filters | None = None) -> Iterator[dict[str, bytes]]:
    """See `Source.read`; without filters, every record."""
    return source.read(filters or Filters())


def realtime(record: dict[str, bytes]) -> int:
    """When the record was taken, in microseconds since the epoch; 0 if it does not say."""
    told = record.get("__REALTIME_TIMESTAMP", b"")
    return int(told) if told.isdigit() else 0


class JournalSource(Source):
    """The journal of this machine, or the journal files in `directory`. Records count if they came from `unit`; with None
    they count whoever sent them."""

    def __init__(self, directory: str | None = None, unit: str | None = UNIT) -> None:
        super().__init__()
        self._directory = directory
        self._unit = unit

    def beginning(self) -> str:
        # journald numbers its entries from 1 on, across its files: if its first one is not there, it went with its file. That
        # number, in hex, is the 'i=' of a cursor (systemd.journal-fields(7), __CURSOR).
        with _readable(), _reader(self._directory) as reader:
            reader.seek_head()
            numbers = [part[2:] for part in reader.get_next().get("__CURSOR", "").split(";") if part.startswith("i=")]
        return "the journal was rotated" if any(int(number, 16) > 1 for number in numbers) else ""

    def read(self, filters: Filters) -> Iterator[dict[str, bytes]]:
        with _readable(), _reader(self._directory) as reader:
            for message_id in _MESSAGE_IDS:
                reader.add_match(b"MESSAGE_ID=" + message_id)
            for name, value in filters.fields().items():
                reader.add_match(name.encode() + b"=" + value)
            if self._unit is None:
                self.notes.append("records are shown whoever sent them: anyone on this machine can send such records")
            else:
                reader.add_match(f"_SYSTEMD_UNIT={self._unit}")
            if filters.since is None:
                reader.seek_head()
            else:
                # In seconds, a float that may be rounded up: a little earlier, and the filter does the rest.
                reader.seek_realtime((filters.since - 1) / 1e6)
            found = False
            while entry := reader.get_next():
                record = _record(entry)
                if filters.until is not None and realtime(record) > filters.until:
                    break
                found = True
                if filters.take(record):
                    yield record
            if not found and os.geteuid() != 0:
                self.notes.append("perhaps you may not read the journal: be root, or in the group systemd-journal")


class FileSource(Source):
    """Files of JSON lines, oldest first: what fuse-gated writes outside systemd, or `journalctl --output=json --all` gives."""

    def __init__(self, *files: str) -> None:
        super().__init__()
        self._files = files

    def beginning(self) -> str:
        # Whether something beside the oldest file looks like an older part of it, as logrotate(8) names them.
        directory, name = os.path.split(self._files[0])
        given = {os.path.realpath(path) for path in self._files}
        try:
            beside = sorted(os.listdir(directory or "."))
        except OSError:
            # Then the file cannot be read either, and reading it says why.
            return ""
        for other in beside:
            if other.startswith((f"{name}.", f"{name}-")) and os.path.realpath(os.path.join(directory, other)) not in given:
                return f"the file was rotated, see {other}"
        return ""

    def read(self, filters: Filters) -> Iterator[dict[str, bytes]]:
        for path in self._files:
            torn: list[int] = []
            try:
                with open(path, "rb") as lines:
                    for number, line in enumerate(lines, 1):
                        for piece in _pieces(line):
                            record = _parsed(piece)
                            if record is None:
                                torn.append(number)
                            elif record.get("MESSAGE_ID") in _MESSAGE_IDS and filters.take(record):
                                yield record
            except OSError as error:
                raise OperatorError(
                    f"the audit file {path} cannot be read: {error.strerror}", "name the right one with --file, and read as root"
                ) from error
            if torn:
                where = ", ".join(map(str, torn[:10])) + (f", and {len(torn) - 10} more" if len(torn) > 10 else "")
                self.notes.append(f"{path}: what is torn or foreign was skipped, and counts as no record: line {where}")


def _reader(directory: str | None) -> Any:
    try:
        journal = importlib.import_module("systemd.journal")
    except ImportError as error:
        raise OperatorError(
            "the journal is read with python-systemd, which is not installed",
            "install python3-systemd (on PyPI: systemd-python), or name a file with --file",
        ) from error
    ours = (*SEALED, "FUSE_GATED_CHAIN")
    converters: dict[str, Any] = dict.fromkeys(ours, bytes)
    converters["__REALTIME_TIMESTAMP"] = lambda usec: b"%d" % usec
    reader = journal.Reader(path=directory, converters=converters)
    # Else values over 64 KiB would be cut off, and their records look altered.
    reader.data_threshold = 0
    return reader


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperatorError(
            f"the journal cannot be read: {error.strerror or error}", "try `journalctl --verify`, and read as root"
        ) from error


def _record(entry: dict[str, Any]) -> dict[str, bytes]:
    return {
        name: _bytes(value)
        for name, value in entry.items()
        if name in SEALED or name.startswith("FUSE_GATED_") or name == "__REALTIME_TIMESTAMP"
    }


def _pieces(line: bytes) -> list[bytes]:
    """A line, or the torn one and those that other processes appended to it before it was ended."""
    first, *others = line.rstrip(b"\n").split(LINE_START)
    return [piece for piece in (first, *(LINE_START + other for other in others)) if piece]


def _parsed(piece: bytes) -> dict[str, bytes] | None:
    try:
        entry = msgspec.json.decode(piece, type=dict[str, Any])
        return _record({name: value for name, value in entry.items() if value is not None})
    except (msgspec.MsgspecError, ValueError, TypeError):
        return None


def _bytes(value: Any) -> bytes:
    """A field's value as python-systemd or JSON gives it. A field that an entry has several times is none of ours: it becomes
    one value that no hash fits. Raises TypeError or ValueError for what is no value."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, list):
        raise TypeError("neither a text nor a list")
    return bytes(value) if all(isinstance(item, int) for item in value) else b"\n".join(map(_bytes, value))
