"""tree/draft.py: what was written is what is read, and nothing else."""

import msgspec
import pytest
from harness.sansio import attributes
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.tree.draft import LARGEST, Draft

EMPTY = attributes(21, size=0, blocks=0)


def test_one_that_was_just_made_is_empty_and_is_what_the_client_said() -> None:
    draft = Draft(EMPTY)
    assert draft.attributes == EMPTY
    assert draft.read(0, 100) == b""


def test_what_is_written_is_read() -> None:
    draft = Draft(EMPTY)
    assert draft.write(272, b"second")
    assert draft.write(0, b"first")
    assert draft.read(0, 5) == b"first"
    assert draft.read(270, 100) == b"\0\0second"
    assert draft.read(278, 10) == b""
    assert draft.attributes == msgspec.structs.replace(EMPTY, size=278, blocks=8)


def test_an_append_goes_to_the_end() -> None:
    draft = Draft(EMPTY)
    assert not draft.write(4097, b"abc"), "a hole"
    assert draft.write(4, b"abc")
    assert draft.write(None, memoryview(b"de"))
    assert draft.read(0, 9) == b"\0\0\0\0abcde"


def test_a_large_one_is_none() -> None:
    draft = Draft(EMPTY)
    assert draft.write(0, bytes(LARGEST))
    assert draft.attributes.size == LARGEST
    assert draft.attributes.blocks * 512 >= LARGEST
    assert not draft.write(LARGEST, b"y")
    assert not draft.write(None, b"y")


@pytest.mark.parametrize(
    ("change", "expected"), [({}, True), ({"atime": 9}, True), ({"size": 1}, False), ({"mtime": 9}, False), ({"ctime": 9}, False)]
)
def test_whether_a_notice_tells_only_of_its_making(change: dict[str, int], expected: bool) -> None:
    draft = Draft(EMPTY)
    assert draft.write(0, b"what the client has not seen")
    assert draft.is_as_made(msgspec.structs.replace(EMPTY, **change)) is expected


@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 50)), st.binary(min_size=1, max_size=20)), max_size=20))
def test_as_any_file(writes: list[tuple[int | None, bytes]]) -> None:
    draft, content = Draft(EMPTY), b""
    for offset, data in writes:
        start = len(content) if offset is None else offset
        content = content[:start].ljust(start, b"\0") + data + content[start + len(data) :]
        assert draft.write(offset, data)
    assert draft.read(0, 10**6) == content
    assert draft.attributes.size == len(content)
