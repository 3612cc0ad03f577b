"""turnstile/owing.py: what is owed, where its data lies, and what a successor is told."""

from collections import deque
from typing import Any

import msgspec
import pytest
from harness.sansio import attributes

from fuse_gated.tree.handles import Handle, Handles
from fuse_gated.tree.inodes import Identity, Inodes
from fuse_gated.tree.journal import Owed, SettledOwed
from fuse_gated.turnstile import owing
from fuse_gated.turnstile.owing import FIRST_WINDOW, LARGEST_WINDOW, LEAST_WINDOW, MOST_FILES, PROMPT, SLOW, Change, Owing, key_of
from fuse_gated.wire import messages

A, B = (7, 21, 0o100000), (7, 22, 0o100000)
WRITE = msgspec.msgpack.encode(messages.Write(77, 0, memoryview(b"")))


def owing_of(room: int = 100, most_bytes: int = 2**30, most_requests: int = 1000) -> Owing:
    made = Owing(most_bytes, most_requests)
    made.room = room
    return made


def row(request: int = 2, file: Identity = A, at: int = 0, size: int = 10, **other: Any) -> Owed:
    return Owed(**{
        "request": request, "handle": 1, "file": file, "path": b"f", "operation": "write", "arguments": WRITE, "at": at,
        "size": size, **other,
    })  # fmt: skip


def put(debts: Owing, request: int, size: int = 10, file: Identity = A, *, keep: bool = False) -> Change:
    at = debts.place(file, size)
    assert at is not None
    change = Change(row(request, file, at, size), messages.Write(77, 0, memoryview(b"")), None, file, b"f", 0.0)
    debts.add(change)
    if keep:
        debts.keep(change)
    return change


def opened(remote: int = 77) -> tuple[Handles, Handle]:
    inodes = Inodes()
    handles = Handles(inodes)
    node = inodes.known(inodes.root, b"name", attributes(21))
    return handles, handles.add(node, b"name", remote, 2)


# The ring.


def test_places_follow_each_other_and_begin_anew_where_the_room_ends() -> None:
    debts = owing_of(100)
    first, second, third = (put(debts, number, 30) for number in (2, 4, 6))
    assert [change.row.at for change in (first, second, third)] == [0, 30, 60]
    assert debts.place(A, 30) is None, "the first is there still"
    debts.remove(first)
    assert put(debts, 8, 30).row.at == 0
    assert debts.place(A, 10) is None, "the second is there still, and 90 is not behind the last"
    debts.remove(second)
    assert put(debts, 10, 10).row.at == 30


def test_with_nothing_there_it_begins_anew() -> None:
    debts = owing_of(100)
    debts.remove(put(debts, 2, 90))
    assert put(debts, 4, 100).row.at == 0


def test_what_has_no_data_is_in_nobodys_way() -> None:
    debts = owing_of(100)
    debts.remove(put(debts, 2, 40))
    first = put(debts, 4, 40)
    nothing = put(debts, 6, 0)
    second = put(debts, 8, 60)
    assert (nothing.row.at, second.row.at) == (40, 40)
    debts.remove(first)
    debts.remove(second)
    assert put(debts, 10, 100).row.at == 0


@pytest.mark.parametrize(
    ("options", "size"),
    [({"room": 9}, 10), ({"most_bytes": 9}, 10), ({"most_requests": 0}, 1), ({"room": 2**30}, 2 * LARGEST_WINDOW + 1)],
    ids=["room", "bytes", "requests", "more than is ever owed"],
)
def test_what_is_too_much(options: dict[str, int], size: int) -> None:
    debts = owing_of(**options)
    assert debts.place(A, size) is None
    assert owing_of(2**30).place(A, size - 1) is not None


def test_so_many_files_and_no_more() -> None:
    debts = owing_of(10**6)
    changes = [put(debts, 2 * number + 2, 1, (7, number, 0)) for number in range(MOST_FILES)]
    assert debts.place((7, MOST_FILES, 0), 1) is None
    assert debts.place((7, 3, 0), 1) is not None
    debts.remove(changes[0])
    assert debts.place((7, MOST_FILES, 0), 1) is not None


# The order.


def test_each_comes_after_the_one_before_it_in_its_file() -> None:
    debts = owing_of()
    changes = [put(debts, number, file=file) for number, file in ((2, A), (4, B), (6, A), (8, A))]
    assert [change.previous for change in changes] == [0, 0, 2, 6]
    assert (debts.newest(A), debts.newest(B), debts.newest((1, 1, 1))) == ((8,), (4,), ())
    assert set(debts.newest()) == {4, 8}
    assert debts.of(A) == [changes[0], changes[2], changes[3]]
    debts.remove(changes[2])
    assert debts.newest(A) == (8,)
    debts.remove(changes[3])
    assert debts.newest(A) == (), "what was before it has been done by then"
    assert list(debts) == [changes[0], changes[1]]
    assert (debts.get(2), debts.get(6)) == (changes[0], None)


def test_what_is_finished_by_another_request_is_named_by_that() -> None:
    debts = owing_of()
    first = put(debts, 2)
    debts.renumber(first, 1001)
    assert debts.newest(A) == (1001,)
    assert put(debts, 4).previous == 1001
    assert debts.get(2) is first


def test_nothing_comes_after_what_will_not_be_done() -> None:
    debts = owing_of()
    first = put(debts, 2)
    debts.unorder(A)
    debts.unorder(A)
    assert (debts.newest(), put(debts, 4).previous) == ((), 0)
    debts.remove(first)
    assert debts.newest() == (4,)


# The window.


def test_the_window_follows_the_line() -> None:
    debts = owing_of()
    change = put(debts, 2)
    debts.adapt(0.0)
    assert debts.window == FIRST_WINDOW, "nobody waits"
    debts.waiting = deque([change])
    for _ in range(10):
        debts.adapt(PROMPT - 0.01)
    assert debts.window == LARGEST_WINDOW
    debts.adapt(PROMPT)
    debts.adapt(SLOW)
    assert debts.window == LARGEST_WINDOW
    debts.adapt(SLOW + 0.1)
    assert debts.window == LARGEST_WINDOW // 2
    for _ in range(10):
        debts.adapt(SLOW + 0.1)
    assert debts.window == LEAST_WINDOW


def test_owed_is_what_was_answered() -> None:
    debts = owing_of()
    change, other = put(debts, 2, keep=True), put(debts, 4)
    assert (bool(debts), debts.promised, change.kept, other.kept) == (True, 10, True, False)
    debts.remove(other)
    debts.remove(change)
    assert (bool(debts), debts.promised) == (False, 0)


# A successor.


def test_a_successor_is_told_of_what_is_owed_and_no_more() -> None:
    debts = owing_of()
    assert not debts.changed
    change, other = put(debts, 2, keep=True), put(debts, 4)
    assert debts.changed
    assert debts.rows() == [change.row]
    assert not debts.changed
    debts.remove(other)
    assert not debts.changed
    assert list(debts.everything()) == [change.row]
    third = put(debts, 6, keep=True)
    assert list(debts.everything()) == [change.row, third.row]
    assert not debts.changed, "it was among all"
    debts.remove(change)
    assert debts.rows() == [SettledOwed(2)]


def test_what_will_not_be_done_nobody_is_to_ask_for_again() -> None:
    debts = owing_of()
    change, other = put(debts, 2, keep=True), put(debts, 4)
    for _ in range(2):
        debts.doom(change)
        debts.doom(other)
    assert list(debts) == [change, other], "the client will say so"
    assert debts.rows() == [change.row, SettledOwed(2)]
    assert list(debts.everything()) == []
    debts.remove(change)
    debts.remove(other)
    assert (debts.changed, debts.promised) == (False, 0)


def test_it_goes_on_with_it() -> None:
    handles, handle = opened()
    debts = owing_of()
    rows = [row(2), row(4, B, 10, 5, handle=9), row(6, A, 15, 5)]
    debts.restore(rows, handles)
    first, second, third = debts
    assert (first.handle, first.key, first.path, first.kept) == (handle, key_of(handle), b"name", True)
    assert (second.handle, second.key, second.path) == (None, B, b"f"), "that has been closed"
    assert (first.previous, second.previous, third.previous) == (0, 0, 2)
    assert (debts.promised, debts.newest(A), debts.changed) == (20, (6,), False)
    assert debts.place(A, 10) == 20
    assert list(debts.everything()) == rows


def test_what_was_written_through_a_closed_handle_stays_in_order() -> None:
    handles, _handle = opened()
    debts = owing_of()
    debts.restore([row(2, handle=9), row(4, at=10)], handles)
    assert [change.previous for change in debts] == [0, 2]


def test_attributes_are_owed_too() -> None:
    handles, handle = opened()
    debts = owing_of()
    arguments = msgspec.msgpack.encode(messages.Setattr(77, mtime=5))
    debts.restore([row(operation="setattr", arguments=arguments, size=0)], handles)
    [change] = debts
    assert (change.arguments, change.handle) == (messages.Setattr(77, mtime=5), handle)


@pytest.mark.parametrize(
    "rows",
    [
        [row(at=-1)],
        [row(size=-1)],
        [row(at=95)],
        [row(at=2**70)],
        [row(size=messages.MAX_DATA + 1)],
        [row(3)],
        [row(0)],
        [row(-2)],
        [row(2**61)],
        [row(operation="unheard of")],
        [row(operation="setattr", arguments=msgspec.msgpack.encode(messages.Setattr(b"path", mtime=5)))],
        [row(operation="read", arguments=msgspec.msgpack.encode(messages.Read(77, 0, 5)))],
        [row(arguments=b"")],
        [row(arguments=b"\xc1")],
        [row(arguments=b"\x91" * 100_000)],
        [row(arguments=msgspec.msgpack.encode(["77", 0, b""]))],
        [row(arguments=msgspec.msgpack.encode(messages.Write(78, 0, memoryview(b""))))],
        [row(number, size=90) for number in (2, 4)],
        [row(2 * number + 2, (7, number, 0), size=0) for number in range(messages.MAX_AFTER + 1)],
        [row(2 * number + 2, size=0) for number in range(owing._MOST_CHANGES + 1)],
    ],
    ids=[
        "before the ring", "negative", "behind the ring", "far behind the ring", "longer than a write", "our own number",
        "no number", "a negative number", "a lasting number", "no operation", "by its path", "nothing that is owed",
        "no arguments", "garbage", "deep", "a handle that is none", "another's handle", "the same place", "very many files",
        "very many",
    ],
)  # fmt: skip
def test_rows_that_none_of_ours_would_have_left(rows: list[Owed]) -> None:
    handles, _handle = opened()
    debts = owing_of(100 if rows[0].size != messages.MAX_DATA + 1 else 2**30)
    with pytest.raises(ValueError, match=r"change|malformed|arguments"):
        debts.restore(rows, handles)


def test_read_back_is_as_long_as_it_was() -> None:
    assert owing_of().read_back(5, 3) == bytes(3), "until there is a memory"


def test_which_file_a_handle_is_open_on() -> None:
    handles, handle = opened()
    assert key_of(handle) == A
    assert key_of(None) is None
    assert key_of(handles.add(None, b"by path", 5, 0)) is None
