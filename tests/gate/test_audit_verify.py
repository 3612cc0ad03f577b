"""Any record that is altered, removed, doubled or moved is found, and an untouched chain is whole."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.gate.audit import Chain, Record
from fuse_gated.gate.audit_verify import Fault, verify

Entry = dict[str, bytes]


def told(count: int, session: str = "s1", *, closed: bool = True) -> list[Entry]:
    chain = Chain("acme", session, "src")
    kinds = ["session-opened", *["operation"] * (count - 2), "session-closed" if closed else "operation"]
    return [dict(chain.seal(Record(kind=kind, operation="mkdir", path=b"d%d" % n, uid=n))) for n, kind in enumerate(kinds)]


def faults(records: list[Mapping[str, bytes]], beginning: str = "") -> list[tuple[str, int, int]]:
    return [
        (fault.kind, fault.sequence, fault.last) for session in verify(records, beginning=beginning) for fault in session.faults
    ]


def chain_of(entry: Entry, chain: bytes) -> Entry:
    return entry | {"FUSE_GATED_CHAIN": chain}


def test_an_untouched_chain_is_whole() -> None:
    (session,) = verify(told(9))
    assert (session.session, session.tenant, session.export) == ("s1", "acme", "src")
    assert (session.records, session.first, session.last, session.faults, session.notes) == (9, 1, 9, (), ())


def test_no_records_no_sessions() -> None:
    assert verify([]) == []


def test_sessions_are_followed_each_by_itself() -> None:
    one, two = told(4, "s1"), told(4, "s2")
    mixed = [entry for pair in zip(one, two, strict=True) for entry in pair]
    assert [(session.session, session.records, session.faults) for session in verify(mixed)] == [("s1", 4, ()), ("s2", 4, ())]
    del mixed[3]
    assert [len(session.faults) for session in verify(mixed)] == [0, 1]


def test_fields_of_the_journal_itself_do_not_matter() -> None:
    assert faults([entry | {"_PID": b"7", "__REALTIME_TIMESTAMP": b"1"} for entry in told(3)]) == []


def test_a_successor_that_restores_the_chain_goes_on_whole() -> None:
    chain = Chain("acme", "s1", "src")
    records = [dict(chain.seal(Record(kind="session-opened")))]
    successor = Chain("acme", "s1", "src", sequence=chain.sequence, head=chain.head)
    records.append(dict(successor.seal(Record(kind="session-closed"))))
    assert faults(records) == []


@given(st.integers(2, 12), st.data())
def test_any_alteration_is_found_and_named(count: int, data: st.DataObject) -> None:
    records = told(count)
    index = data.draw(st.integers(0, count - 1))
    names = [name for name in records[index] if name not in ("FUSE_GATED_SEQUENCE", "FUSE_GATED_SESSION", "FUSE_GATED_CHAIN")]
    name = data.draw(st.sampled_from([*names, "FUSE_GATED_DETAIL", "FUSE_GATED_INVENTED"]))
    value = data.draw(st.none() | st.binary(max_size=4))
    if value is None and name in records[index]:
        del records[index][name]
    else:
        records[index][name] = records[index].get(name, b"") + b"." + (value or b"")
    assert faults(records) == [("altered", index + 1, index + 1)]


@given(st.integers(2, 12), st.data())
def test_an_altered_hash_is_found_and_only_there(count: int, data: st.DataObject) -> None:
    records = told(count)
    index = data.draw(st.integers(0, count - 1))
    digit = data.draw(st.integers(0, 63))
    chain = bytearray(records[index]["FUSE_GATED_CHAIN"])
    chain[digit] = ord("0") if chain[digit] != ord("0") else ord("f")
    records[index] = chain_of(records[index], bytes(chain))
    assert faults(records) == [("altered", index + 1, index + 1)]


@given(st.integers(2, 12), st.data())
def test_an_altered_number_or_session_is_found(count: int, data: st.DataObject) -> None:
    records = told(count)
    index = data.draw(st.integers(0, count - 1))
    name = data.draw(st.sampled_from(["FUSE_GATED_SEQUENCE", "FUSE_GATED_SESSION"]))
    value = data.draw(
        st.sampled_from([b"", b"0", b"x", b"01", b"1 ", b"-1", b"9" * 30]) | st.integers(1, 20).map(lambda n: b"%d" % n)
    )
    if records[index][name] != value:
        records[index][name] = value
        assert faults(records)


@given(st.integers(2, 12), st.data())
def test_any_removal_but_of_the_tail_is_found(count: int, data: st.DataObject) -> None:
    removed = data.draw(st.sets(st.integers(1, count - 1), min_size=1))
    left = [entry for number, entry in enumerate(told(count), 1) if number not in removed]
    missing = {number for kind, first, last in faults(left) for number in range(first, last + 1) if kind == "missing"}
    assert missing == removed


@given(st.integers(2, 12), st.data())
def test_any_swap_is_found(count: int, data: st.DataObject) -> None:
    records = told(count)
    one, other = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True).map(sorted))
    records[one], records[other] = records[other], records[one]
    found = faults(records)
    assert {kind for kind, _, _ in found} == {"reordered"}
    assert {number for _, first, last in found for number in range(first, last + 1)} == set(range(one + 1, other + 1))


@given(st.permutations(range(7)))
def test_any_other_order_is_found(order: list[int]) -> None:
    records = told(7)
    kinds = {kind for kind, _, _ in faults([records[number] for number in order])}
    assert kinds == (set() if order == sorted(order) else {"reordered"})


@given(st.integers(2, 12), st.data())
def test_any_duplicate_is_found(count: int, data: st.DataObject) -> None:
    records = told(count)
    index = data.draw(st.integers(0, count - 1))
    place = data.draw(st.integers(index + 1, count))
    records.insert(place, dict(records[index]))
    # Right behind itself it is what a successor does; the one behind the last was told by whoever closed the session.
    assert faults(records) == ([("duplicate", index + 1, index + 1)] if place > index + 1 else [])


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_a_record_that_a_successor_told_again_is_noted(index: int, times: int) -> None:
    records = told(5)
    records[index + 1 : index + 1] = [dict(records[index])] * times
    (session,) = verify(records)
    assert session.faults == ()
    assert session.notes == (f"record {index + 1} is there twice in succession, the same both times: "
                             "another worker went on from there",)  # fmt: skip
    assert (session.records, session.last) == (5 + times, 5)


def test_two_that_were_told_again_are_two_notes() -> None:
    records = told(5)
    records = [records[0], *records, records[4]]
    (session,) = verify(records)
    assert (session.faults, len(session.notes)) == ((), 2)


def test_between_other_sessions_records_it_is_in_succession_too() -> None:
    one, two = told(3, "s1"), told(3, "s2")
    (first, second) = verify([one[0], two[0], one[0], *two[1:], *one[1:]])
    assert (first.faults, len(first.notes), second.faults, second.notes) == ((), 1, (), ())


@pytest.mark.parametrize("field", ["FUSE_GATED_PATH", "MESSAGE", "FUSE_GATED_CHAIN"])
def test_another_record_of_the_same_number_is_a_fault(field: str) -> None:
    records = told(5)
    records.insert(3, records[2] | {field: b"0" * 64})
    assert ("duplicate", 3, 3) in faults(records)


def test_told_again_too_late_is_a_fault() -> None:
    records = told(5)
    records.insert(4, dict(records[2]))
    assert faults(records) == [("duplicate", 3, 3)]


def test_told_again_where_one_is_missing() -> None:
    """The doubled one does not fill the gap."""
    records = told(6)
    assert faults([*records[:2], records[3], records[3], *records[4:]]) == [("missing", 3, 3)]


@given(st.integers(1, 12), st.data())
def test_a_cut_tail_is_not_a_fault_but_noted(count: int, data: st.DataObject) -> None:
    records = told(count + 2)[: data.draw(st.integers(1, count + 1))]
    (session,) = verify(records)
    assert session.faults == ()
    assert session.notes == ("it does not end with session-closed: it is still open, or its last records were cut off",)


def test_a_record_altered_and_moved_is_found_to_be_both() -> None:
    records = told(6)
    records[2]["FUSE_GATED_UID"] = b"0"
    records[2:5] = [records[3], records[4], records[2]]
    assert faults(records) == [("altered", 3, 3), ("reordered", 3, 3)]


def test_two_altered_records_in_a_row_are_both_named() -> None:
    records = told(6)
    records[2]["FUSE_GATED_UID"] = b"0"
    records[3] = chain_of(records[3], b"0" * 64)
    assert faults(records) == [("altered", 3, 3), ("altered", 4, 4)]


def test_a_gap_that_is_filled_in_part() -> None:
    records = told(10)
    left = [records[n - 1] for n in (1, 2, 8, 4, 5, 7, 9, 10)]
    (session,) = verify(left)
    assert [fault.message for fault in session.faults] == [
        "record 3 is missing, so record 4 cannot be checked",
        "records 4 to 5 stand after record 8",
        "record 6 is missing, so record 7 cannot be checked",
        "record 7 stands after record 8",
    ]
    assert session.faults[0] == Fault(session="s1", kind="missing", sequence=3, last=3, message=session.faults[0].message)


@pytest.mark.parametrize("gone", [1, 3])
def test_a_beginning_that_was_rotated_away_is_a_note(gone: int) -> None:
    records = told(6)[gone:]
    assert faults(records) == [("missing", 1, gone)]
    (session,) = verify(records, beginning="the journal was rotated")
    assert session.faults == ()
    assert (session.first, session.last, session.records) == (gone + 1, 6, 6 - gone)
    assert "not there (the journal was rotated)" in session.notes[0]


def test_rotation_explains_no_gap_in_the_middle() -> None:
    records = told(8)
    del records[4], records[0]
    assert faults(records, "the journal was rotated") == [("missing", 5, 5)]


def test_after_an_unknown_beginning_alterations_are_found() -> None:
    records = told(6)[2:]
    records[1]["FUSE_GATED_UID"] = b"0"
    assert faults(records, "the journal was rotated") == [("altered", 4, 4)]


@pytest.mark.parametrize("chain", [b"", b"00", b"g" * 64, b"A" * 64, b"\xff" * 64, b"0" * 64 + b"\n"])
def test_a_hash_that_is_none_is_a_fault(chain: bytes) -> None:
    records = told(3)
    records[1] = chain_of(records[1], chain)
    assert faults(records) == [("altered", 0, 0), ("missing", 2, 2)]


def test_nothing_readable_at_all() -> None:
    (session,) = verify([{"FUSE_GATED_SESSION": b"\xff"}])
    assert (session.session, session.records, session.first, session.last) == ("\\xff", 1, 0, 0)
    assert len(session.faults) == 1


def test_an_absurd_number_costs_no_more_than_another() -> None:
    records = told(5)
    records[2]["FUSE_GATED_SEQUENCE"] = b"9" * 19
    assert ("missing", 3, 3) in faults(records)
