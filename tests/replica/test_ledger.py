"""What a copy remembers, and what is left of it when the process is killed while it writes."""

import struct
import zlib

import msgspec
import pytest

from fuse_gated.replica.ledger import Begun, Header, Kept, Ledger, Over, Same, encode, read
from fuse_gated.replica.version import FILE, Base, Version

HEADER = Header("boot", (1, 2), (3, 4))
HERE, THERE = Version(FILE, 1, 2, 3, 4, 5, 0o600), Version(FILE, 6, 7, 8, 9, 10, 0o644)
ENTRIES = [
    HEADER,
    Same(b"f", Base(HERE, THERE)),
    Same(b"gone", Base(HERE, THERE)),
    Begun(b"f", b"t", None, THERE),
    Begun(b"f", b"u", HERE, None),
    Kept(b"k", HERE),
    Kept(b"l", HERE),
    Same(b"gone", None),
    Over(b"t"),
    Over(b"never"),
    Kept(b"l", None),
    Same(b"never", None),
]


def known(ledger: Ledger) -> tuple[object, ...]:
    return ledger.header, ledger.bases, ledger.begun, ledger.kept


def test_the_last_word_counts():
    ledger = read(b"".join(map(encode, ENTRIES)))
    assert ledger is not None
    assert known(ledger) == (HEADER, {b"f": Base(HERE, THERE)}, {b"u": Begun(b"f", b"u", HERE, None)}, {b"k": HERE})
    again = read(b"".join(map(encode, ledger.entries())))
    assert again is not None
    assert known(again) == known(ledger)


def test_whatever_is_cut_off_is_the_end():
    log = b"".join(map(encode, ENTRIES))
    ends, end = {0}, 0
    for entry in ENTRIES:
        end += len(encode(entry))
        ends.add(end)
    for length in range(len(log)):
        ledger = read(log[:length])
        whole = max(end for end in ends if end <= length)
        expected = read(log[:whole])
        assert (ledger is None) == (expected is None) == (length < len(encode(HEADER)))
        if ledger is not None and expected is not None:
            assert known(ledger) == known(expected)


def frame(body: bytes) -> bytes:
    return struct.pack("<II", len(body), zlib.crc32(body)) + body


@pytest.mark.parametrize(
    "bad",
    [
        b"\0" * 64,
        frame(b"nonsense"),
        frame(msgspec.msgpack.encode({"type": "same", "path": 5})),
        struct.pack("<II", 2**31, 0) + b"x" * 100,
        encode(ENTRIES[1])[:-1] + b"\xff",
    ],
)
def test_what_is_no_entry_is_the_end(bad):
    ledger = read(encode(HEADER) + bad + encode(ENTRIES[1]))
    assert ledger is not None
    assert ledger.bases == {}


def test_without_a_header_nothing_is_known():
    assert read(b"") is None
    assert read(encode(ENTRIES[1]) + encode(HEADER)) is None


def test_a_later_header_counts():
    ledger = read(encode(HEADER) + encode(Header("later", (0, 0), (0, 0))))
    assert ledger is not None
    assert ledger.header.boot == "later"
