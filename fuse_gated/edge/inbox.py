"""Where requests are read into that nobody sends again: memory that a successor sees too (edge/state.py).

The kernel hands out a request once (before Linux 6.9, or where resending is not used). A worker keeps it for a successor before
it does anything about it (turnstile/ledger.py); but it may be killed when it has read it, and not kept it. So the kernel itself
writes it to where a successor looks, and one number says which request is taken over: kept, or of a kind that is not kept.
"""

from typing import Final

from fuse_gated.edge.fuse_requests import IN_HEADER

SIZE: Final = 2**20 + 2**16
"""Bytes: for the largest request, in whole pages, of which a machine may have such of 64 KiB."""


class Inbox:
    """`room` is what requests are read into, one at a time; `taken` holds the number of the last that was taken over."""

    def __init__(self, room: memoryview, taken: "memoryview[int]") -> None:
        self.room = room
        self._taken = taken

    def take(self, unique: int) -> None:
        """This request is taken over: no successor needs to find it here."""
        self._taken[0] = unique

    def left(self) -> int:
        """How many bytes at the beginning of the room are a request that nobody has taken over; 0: there is none.

        Raises ValueError for what is no request: the memory may be of anyone's making.
        """
        length, _, unique, *_ = IN_HEADER.unpack_from(self.room)
        if unique == self._taken[0]:
            return 0
        if not IN_HEADER.size <= length <= len(self.room):
            raise ValueError(f"a request of {length} bytes was left")
        return int(length)

    def release(self) -> None:
        """Let go of the memory."""
        self.room.release()
        self._taken.release()
