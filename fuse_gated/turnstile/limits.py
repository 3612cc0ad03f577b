"""What bounds a session, and what it has done."""

import math

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds a session. Seconds, bytes, counts; `refusals` a second."""

    deadline: float = 30.0
    max_in_flight: int = 256
    max_bytes_in_flight: int = 64 * 2**20
    inodes: int = 1_000_000
    refusals: float = math.inf


class Statistics(msgspec.Struct):
    """What `fuse-gatectl` shows of a session."""

    operations: int = 0
    denied: int = 0
    failed: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
