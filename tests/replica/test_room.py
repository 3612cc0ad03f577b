"""The bound of a copy."""

from fuse_gated.replica.room import Room
from fuse_gated.replica.version import DIRECTORY, FILE, LINK, Version


def test_bytes_and_names_are_counted():
    room = Room(100, 3)
    room.has(b"d", Version(DIRECTORY))
    room.has(b"f", Version(FILE, 60))
    assert (room.used, len(room)) == (60, 2)
    assert room.why_not(b"g", Version(FILE, 40)) == ""
    assert "100 bytes" in room.why_not(b"g", Version(FILE, 41))
    assert room.why_not(b"f", Version(FILE, 100)) == "", "what it replaces makes room"
    room.has(b"l", Version(LINK, 50, target=b"x"))
    assert room.used == 60, "a link is not data"
    assert "3 names" in room.why_not(b"g", Version(FILE, 0))
    assert room.why_not(b"l", Version(FILE, 0)) == ""
    room.has(b"f", None)
    room.has(b"f", None)
    assert (room.used, len(room)) == (0, 2)
