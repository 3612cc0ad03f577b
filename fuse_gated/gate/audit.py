"""What is told of each operation: the audit record, and the chain that shows when one is missing or altered.

A record is sealed into journal fields (systemd.journal-fields(7)). Each carries its number in the session and a SHA-256
over the record before it and over itself, so that whoever has the records of a session from the first on can see that
none between the first and the last was removed, altered, repeated or moved. It takes no secret to compute that hash: a tail
that was cut off, and a chain that was written anew as a whole, do not show. Against those helps what the writer of the
records cannot reach: journald's sealing (journalctl --setup-keys) or a journal that is sent to another machine.
"""

import hashlib
from typing import Final, Literal

import msgspec

from fuse_gated import paths


class Record(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One thing to tell. `kind` is a key of KINDS. `path` and `new_path` are relative to the export's root. `decision` is
    'allowed', 'denied', 'failed' or ''. `errno` is a name. `uid` and `pid` are the caller's. `request` is the unique of the
    request that waits for this record to be written, if one does (it is not part of what is told). `gate_usec` and so on say
    where the time of a slow operation went (turnstile/measures.py)."""

    kind: str
    operation: str = ""
    path: bytes | None = None
    new_path: bytes | None = None
    decision: str = ""
    rule: str = ""
    errno: str = ""
    uid: int | None = None
    pid: int | None = None
    bytes: int | None = None
    count: int | None = None
    duration_usec: int | None = None
    detail: str = ""
    gate_usec: int | None = None
    held_usec: int | None = None
    remote_usec: int | None = None
    client_usec: int | None = None
    request: int | None = None


Fields = list[tuple[str, bytes]]
"""A sealed record, in the order in which it was hashed; the last is FUSE_GATED_CHAIN."""

# Priorities of syslog(3).
ERROR: Final = 3
WARNING: Final = 4
NOTICE: Final = 5
INFO: Final = 6

KINDS: Final[dict[str, tuple[str, int, str]]] = {
    "session-opened": ("2fc745923ea84cdd9e1ec3bf0bea91fa", NOTICE, "session {session} opened{why}"),
    "session-closed": ("18c606210e214674b912fd4f70cdbccb", NOTICE, "session {session} closed{why}"),
    "login-refused": ("94ac764784714b58a9fd8545b5913231", WARNING, "login refused{why}"),
    "connection-refused": ("0d9e4ba76351471a85b298dbc41a50dd", WARNING, "connection refused{why}"),
    "operation": ("77d30ebe2b3944b294673b362f1e26a2", INFO, "{who}{what}{why}"),
    "refused": ("3a0956fbf13c48aea38544cbc028e04f", WARNING, "{who}refused {what}{why}"),
    "failed": ("1bdfdd5c09f84fecb763c354214908fc", NOTICE, "{who}failed {what}{why}"),
    "file-closed": ("81a02b24daaf4f57b098516371fab569", INFO, "{who}closed {path}{why}"),
    "limited": ("886c7cfcfdcc47b9a948ddead5083a3a", NOTICE, "{who}over the limit: {what}{why}"),
    "session-suspended": ("06d49870a1e84bfd9527543191293bbe", WARNING, "session {session} lost its client{why}"),
    "outage-over": ("2515445cbc9841b09ea5af7a4bc01cd2", NOTICE, "session {session} was without its client{why}"),
    "session-resumed": ("b63aeb375d7243bfb8ae9099d6c40a1e", NOTICE, "session {session} has its client again{why}"),
    "session-restored": ("7732e9c8e3f1483698b9de03045e97c8", WARNING, "session {session} is served by a new worker{why}"),
    "writes-lost": ("6b3f2a0e1d0c4f6f9d5a8f1c7e24b7d1", ERROR, "lost what was written to {path}{why}"),
    "slow-operation": ("802966184689495b8b81806ef62a4ed2", WARNING, "{who}slow {what}{why}"),
    "protocol-violation": ("041da637323e46bfb28609cea697c10b", WARNING, "the client broke the protocol{why}"),
    "policy-applied": ("80be6cbe9a3b48e5b1a2517e15c5a83f", NOTICE, "policy applied{why}"),
    "audit-gap": ("1923e51e4e2c4852bd23693542236598", ERROR, "operations refused: audit records could not be written{why}"),
}
"""What a record can be: its MESSAGE_ID (systemd/fuse-gated.catalog explains each), its PRIORITY and how it reads."""

SEALED: Final = (
    "MESSAGE",
    "MESSAGE_ID",
    "PRIORITY",
    "SYSLOG_IDENTIFIER",
    "FUSE_GATED_TENANT",
    "FUSE_GATED_SESSION",
    "FUSE_GATED_EXPORT",
    "FUSE_GATED_KIND",
    "FUSE_GATED_OPERATION",
    "FUSE_GATED_PATH",
    "FUSE_GATED_NEW_PATH",
    "FUSE_GATED_DECISION",
    "FUSE_GATED_RULE",
    "FUSE_GATED_ERRNO",
    "FUSE_GATED_UID",
    "FUSE_GATED_PID",
    "FUSE_GATED_BYTES",
    "FUSE_GATED_COUNT",
    "FUSE_GATED_DURATION_USEC",
    "FUSE_GATED_DETAIL",
    "FUSE_GATED_GATE_USEC",
    "FUSE_GATED_HELD_USEC",
    "FUSE_GATED_REMOTE_USEC",
    "FUSE_GATED_CLIENT_USEC",
    "FUSE_GATED_SEQUENCE",
)
"""The fields that the hash covers, in its order; a record has those that are set. FUSE_GATED_CHAIN, the hash in hex, follows."""

# In the order of Record's own fields; its `request` is beyond the last.
_FIELD_NAMES: Final = SEALED[SEALED.index("FUSE_GATED_KIND") : SEALED.index("FUSE_GATED_SEQUENCE")]

_ENCODER: Final = msgspec.msgpack.Encoder()
_PREPARED: Final = {
    kind: (message_id.encode(), b"%d" % priority, template) for kind, (message_id, priority, template) in KINDS.items()
}


Level = Literal["denials", "writes", "opens", "everything"]
RecordClass = Literal["change", "open", "other", "refusal", "session"]

_TOLD: Final[dict[str, frozenset[str]]] = {
    "denials": frozenset({"refusal", "session"}),
    "writes": frozenset({"refusal", "session", "change"}),
    "opens": frozenset({"refusal", "session", "change", "open"}),
    "everything": frozenset({"refusal", "session", "change", "open", "other"}),
}


def level_tells(level: Level, record_class: RecordClass) -> bool:
    """Whether a tenant's `audit` level tells records of a class. 'change' is what changes the export (create, unlink, rename,
    setattr, open for writing, the closing of what was written, …), 'open' an open or opendir for reading, 'other' the rest
    (lookup, getattr, readdir, …). A 'refusal' (refused, failed after it was told, limited) and a 'session' event are always
    told. Raises KeyError for a level that does not exist."""
    return record_class in _TOLD[level]


class Chain:
    """The records of one session in the making. `session` must be a name that no other session ever had. `sequence` and
    `head` are the last record's, for a successor that goes on; without them the next record is number 1. Raises ValueError
    for a sequence without its head, and for a head that is not a SHA-256."""

    def __init__(self, tenant: str, session: str, export: str, *, sequence: int = 0, head: bytes = b"") -> None:
        self._session = session
        self._mount = f"{tenant}/{export}: " if tenant and export else f"{tenant}: " if tenant else ""
        named = (("TENANT", tenant), ("SESSION", session), ("EXPORT", export))
        self._always = [
            ("SYSLOG_IDENTIFIER", b"fuse-gated"),
            *((f"FUSE_GATED_{name}", _encoded(value)) for name, value in named if value),
        ]
        self.restore(sequence, head or (b"" if sequence else first_head(session)))

    def restore(self, sequence: int, head: bytes) -> None:
        """Go on after record `sequence`, whose hash is `head` (32 bytes); raises ValueError where that cannot be one."""
        if sequence < 0 or len(head) != hashlib.sha256().digest_size:
            raise ValueError("a chain goes on from a sequence number and the SHA-256 of that record")
        self.sequence = sequence
        self.head = head
        self.encoded = b""
        """What the last record's hash covers beside the hash of the one before."""

    def seal(self, record: Record) -> Fields:
        """The record as journal fields, numbered and chained to the one before. What was sealed must be written, and in this
        order: one that is left out shows as missing. Raises KeyError for a kind that is not in KINDS."""
        message_id, priority, template = _PREPARED[record.kind]
        self.sequence += 1
        fields: Fields = [
            ("MESSAGE", self._message(record, template)),
            ("MESSAGE_ID", message_id),
            ("PRIORITY", priority),
            *self._always,
        ]
        for name, value in zip(_FIELD_NAMES, msgspec.structs.astuple(record), strict=False):
            if value is None or value == "":
                continue
            if type(value) is str:
                value = _encoded(value)
            elif type(value) is int:
                value = b"%d" % value
            else:
                value = b"/" + value
            fields.append((name, value))
        fields.append(("FUSE_GATED_SEQUENCE", b"%d" % self.sequence))
        self.encoded = _ENCODER.encode(fields)
        self.head = hashlib.sha256(self.head + self.encoded).digest()
        fields.append(("FUSE_GATED_CHAIN", self.head.hex().encode()))
        return fields

    def _message(self, record: Record, template: str) -> bytes:
        path = "" if record.path is None else paths.shown(record.path)
        if record.new_path is not None:
            path = f"{path} -> {paths.shown(record.new_path)}"
        what = f"{record.operation} {path}" if path else record.operation
        notes = []
        if record.rule:
            notes.append(f"rule {_one_line(record.rule)}")
        elif record.errno:
            notes.append(record.errno)
        if record.count is not None:
            notes.append(f"{record.count} times")
        if record.bytes is not None:
            notes.append(f"{record.bytes} bytes")
        if record.duration_usec is not None:
            notes.append(f"{record.duration_usec / 1e6:.6f} s")
        if record.detail:
            notes.append(_one_line(record.detail))
        who = f"uid {record.uid} " if record.uid is not None else ""
        why = f" ({', '.join(notes)})" if notes else ""
        return _encoded(self._mount + template.format(session=self._session, who=who, what=what, path=path, why=why))


def first_head(session: str) -> bytes:
    """What the first record of a session is chained to: the SHA-256 of the session's name."""
    return hashlib.sha256(_encoded(session)).digest()


def digest(head: bytes, fields: Fields) -> bytes:
    """A record's hash: the SHA-256 of the hash before it (32 bytes) followed by the record's fields without
    FUSE_GATED_CHAIN as MessagePack, an array of [name, value] arrays, a name as str and a value as bin, each in its
    shortest form: lengths come before contents, so no two records are the same bytes."""
    return hashlib.sha256(head + _ENCODER.encode(fields)).digest()


def _encoded(text: str) -> bytes:
    # Nothing that a peer can bring into a text may stop the record that tells of it.
    return text.encode("utf-8", "backslashreplace")


def _one_line(text: str) -> str:
    return text if text.isprintable() else paths.shown(_encoded(text))[1:]
