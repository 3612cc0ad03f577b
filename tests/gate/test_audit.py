"""What a record says, how it is numbered and chained, and what each level of audit tells."""

import hashlib
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.gate.audit import KINDS, SEALED, Chain, Record, digest, first_head, level_tells


def sealed(record: Record, chain: Chain | None = None) -> dict[str, bytes]:
    return dict((chain or Chain("acme", "s1", "src")).seal(record))


def message(**of_record: object) -> str:
    return sealed(Record(**of_record))["MESSAGE"].decode()


@pytest.mark.parametrize(
    ("record", "reads"),
    [
        (
            Record(
                kind="refused",
                operation="write",
                path=b".git/hooks/pre-commit",
                decision="denied",
                rule="/.git/hooks/** policy.yaml:7",
                errno="EACCES",
                uid=1000,
            ),
            "acme/src: uid 1000 refused write /.git/hooks/pre-commit (rule /.git/hooks/** policy.yaml:7)",
        ),
        (Record(kind="session-opened"), "acme/src: session s1 opened"),
        (Record(kind="session-closed", detail="the client left"), "acme/src: session s1 closed (the client left)"),
        (Record(kind="operation", operation="unlink", path=b"", uid=0), "acme/src: uid 0 unlink /"),
        (Record(kind="operation", operation="statfs"), "acme/src: statfs"),
        (
            Record(kind="operation", operation="rename", path=b"a", new_path=b"b/c", uid=7),
            "acme/src: uid 7 rename /a -> /b/c",
        ),
        (Record(kind="failed", operation="mkdir", path=b"d", errno="ENOSPC"), "acme/src: failed mkdir /d (ENOSPC)"),
        (
            Record(kind="file-closed", operation="release", path=b"f", uid=7, count=3, bytes=4096, duration_usec=1500),
            "acme/src: uid 7 closed /f (3 times, 4096 bytes, 0.001500 s)",
        ),
        (Record(kind="file-closed", path=b"f"), "acme/src: closed /f"),
        (
            Record(kind="limited", operation="write", path=b"f", errno="EAGAIN", detail="500/s"),
            "acme/src: over the limit: write /f (EAGAIN, 500/s)",
        ),
        (
            Record(kind="audit-gap", count=12),
            "acme/src: operations refused: audit records could not be written (12 times)",
        ),
    ],
)
def test_a_record_reads_as_one_sentence(record: Record, reads: str) -> None:
    assert sealed(record)["MESSAGE"].decode() == reads


def test_before_the_login_neither_tenant_nor_export_is_told() -> None:
    fields = sealed(Record(kind="login-refused", detail="no such token"), Chain("", "c1", ""))
    assert fields["MESSAGE"] == b"login refused (no such token)"
    assert not {"FUSE_GATED_TENANT", "FUSE_GATED_EXPORT"} & fields.keys()
    assert sealed(Record(kind="login-refused"), Chain("acme", "c2", ""))["MESSAGE"] == b"acme: login refused"


def test_a_full_record_has_every_field_in_the_order_of_the_hash() -> None:
    record = Record(
        kind="operation",
        operation="rename",
        path=b"old\xff",
        new_path=b"new\n",
        decision="allowed",
        rule="/** p.yaml:1",
        errno="EIO",
        uid=0,
        pid=0,
        bytes=0,
        count=0,
        duration_usec=0,
        detail="d",
        gate_usec=0,
        held_usec=0,
        remote_usec=0,
        client_usec=0,
        request=99,
    )
    fields = Chain("acme", "s1", "src").seal(record)
    assert [name for name, _ in fields] == [*SEALED, "FUSE_GATED_CHAIN"]
    told = dict(fields)
    assert told["MESSAGE_ID"] == KINDS["operation"][0].encode()
    assert told["PRIORITY"] == b"6"
    assert told["SYSLOG_IDENTIFIER"] == b"fuse-gated"
    assert told["FUSE_GATED_KIND"] == b"operation"
    assert told["FUSE_GATED_PATH"] == b"/old\xff"
    assert told["FUSE_GATED_NEW_PATH"] == b"/new\n"
    assert told["FUSE_GATED_ERRNO"] == b"EIO"
    assert {told[f"FUSE_GATED_{name}"] for name in ("UID", "PID", "BYTES", "COUNT", "DURATION_USEC")} == {b"0"}
    assert told["FUSE_GATED_SEQUENCE"] == b"1"
    assert b"99" not in told.values()


def test_only_what_is_set_is_told() -> None:
    names = [name for name, _ in Chain("acme", "s1", "src").seal(Record(kind="policy-applied"))]
    assert names == [
        *("MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER"),
        *("FUSE_GATED_TENANT", "FUSE_GATED_SESSION", "FUSE_GATED_EXPORT", "FUSE_GATED_KIND"),
        *("FUSE_GATED_SEQUENCE", "FUSE_GATED_CHAIN"),
    ]


def test_record_and_fields_have_the_same_order() -> None:
    own = [name.removeprefix("FUSE_GATED_").lower() for name in SEALED[7:-1]]
    assert [*own, "request"] == [field.name for field in msgspec.structs.fields(Record)]


@given(st.binary(), st.text(st.characters()), st.text(st.characters()))
def test_whatever_a_peer_names_is_told_in_one_line(path: bytes, rule: str, detail: str) -> None:
    fields = sealed(Record(kind="refused", operation="open", path=path, rule=rule, detail=detail))
    assert fields["MESSAGE"].decode().isprintable()
    assert fields["FUSE_GATED_PATH"] == b"/" + path


def test_what_is_not_unicode_does_not_stop_a_record() -> None:
    assert sealed(Record(kind="refused", detail="\ud800"))["FUSE_GATED_DETAIL"] == b"\\ud800"


def test_the_hash_can_be_computed_by_other_means() -> None:
    """As the documentation says it, byte by byte, without the code under test."""
    chain = Chain("acme", "s1", "src")
    for number in (1, 2):
        before = hashlib.sha256(b"s1").digest() if number == 1 else chain.head
        *fields, (last, told) = chain.seal(Record(kind="operation", operation="mkdir", path=b"x" * 300, detail="d" * 70000))
        packed = b"\xdc" + len(fields).to_bytes(2, "big") if len(fields) > 15 else bytes([0x90 | len(fields)])
        for name, value in fields:
            assert len(name) < 32
            size = len(value)
            head = (
                bytes([0xC4, size])
                if size < 2**8
                else b"\xc5" + size.to_bytes(2, "big")
                if size < 2**16
                else b"\xc6" + size.to_bytes(4, "big")
            )
            packed += b"\x92" + bytes([0xA0 | len(name)]) + name.encode() + head + value
        assert last == "FUSE_GATED_CHAIN"
        assert told.decode() == hashlib.sha256(before + packed).hexdigest() == chain.head.hex()


@given(st.lists(st.tuples(st.sampled_from(SEALED), st.binary(max_size=8)), max_size=6), st.data())
def test_no_two_records_hash_the_same(fields: list[tuple[str, bytes]], data: st.DataObject) -> None:
    """Also where a value is moved from one field to its neighbour, which a mere concatenation would not show."""
    other = data.draw(st.lists(st.tuples(st.sampled_from(SEALED), st.binary(max_size=8)), max_size=6))
    assert (digest(bytes(32), fields) == digest(bytes(32), other)) == (fields == other)
    for index in range(len(fields) - 1):
        (name, value), (next_name, next_value) = fields[index : index + 2]
        if value:
            moved = [*fields[:index], (name, value[:-1]), (next_name, value[-1:] + next_value), *fields[index + 2 :]]
            assert digest(bytes(32), moved) != digest(bytes(32), fields)


def test_a_successor_goes_on_where_the_chain_was() -> None:
    record = Record(kind="operation", operation="mkdir", path=b"d", uid=1)
    whole, first = Chain("acme", "s1", "src"), Chain("acme", "s1", "src")
    expected = [whole.seal(record) for _ in range(4)]
    told = [first.seal(record)]
    second = Chain("acme", "s1", "src", sequence=first.sequence, head=first.head)
    told.append(second.seal(record))
    third = Chain("acme", "s1", "src")
    third.restore(second.sequence, second.head)
    told += [third.seal(record), third.seal(record)]
    assert told == expected


@pytest.mark.parametrize(("sequence", "head"), [(3, b""), (3, b"short"), (-1, bytes(32))])
def test_a_chain_does_not_go_on_from_nothing(sequence: int, head: bytes) -> None:
    with pytest.raises(ValueError, match="goes on from"):
        Chain("acme", "s1", "src", sequence=sequence, head=head)


def test_a_kind_that_does_not_exist_leaves_the_chain_as_it_was() -> None:
    chain = Chain("acme", "s1", "src")
    with pytest.raises(KeyError):
        chain.seal(Record(kind="gossip"))
    assert (chain.sequence, chain.head) == (0, first_head("s1"))


def test_kinds_are_told_apart() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{32}", message_id) and 0 <= priority <= 7 for message_id, priority, _ in KINDS.values())
    assert len({message_id for message_id, _, _ in KINDS.values()}) == len(KINDS)
    assert all(message(kind=kind, detail="why").endswith("(why)") for kind in KINDS)


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("denials", {"refusal", "session"}),
        ("writes", {"refusal", "session", "change"}),
        ("opens", {"refusal", "session", "change", "open"}),
        ("everything", {"refusal", "session", "change", "open", "other"}),
    ],
)
def test_levels(level: str, told: set[str]) -> None:
    assert {one for one in ("refusal", "session", "change", "open", "other") if level_tells(level, one)} == told


def test_a_level_that_does_not_exist_tells_nothing_silently() -> None:
    with pytest.raises(KeyError):
        level_tells("nothing", "refusal")
