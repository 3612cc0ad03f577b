"""What a session does, in numbers: per operation how often, with how many errors, and how long it took and where.

The numbers are 64-bit words in a block that others read while it is written (edge/state.py), so nobody has to be asked for them,
and they go on where a successor serves the session. A word only ever grows, but for IN_FLIGHT and WAITING. Times are counted in
histograms: bucket i holds what took less than 2**(12+i) nanoseconds and is in none before (4 us, 8 us, … 17 s), the last one all
that took longer. figures.py reads them.

Where the time of an operation goes: `held`, while the limiter or the wire's own bounds keep it back; `remote`, from when it was
given to the connection until the client's reply came (of that the client's own part, where it tells it); `gate`, all the rest,
which is ours.
"""

import math
from collections.abc import Callable
from typing import Final

import msgspec

from fuse_gated.errors import errno_number
from fuse_gated.operations import Answer, Count, Data, Failed, Write
from fuse_gated.turnstile.call import Call

MAGIC: Final = 0x66672D6D65617301
"""The first word: the form of the block. Another form is not read, and begun anew by the next worker."""
WORDS: Final = 4096
SIZE: Final = 8 * WORDS
"""Of a block, in words and bytes."""
HEADER: Final = 64
"""Words before those of the operations: the session's own."""

OPERATIONS: Final = (
    "lookup", "getattr", "open", "read", "release", "flush", "opendir", "readdir", "releasedir", "write", "create", "setattr",
    "access", "unlink", "rename", "readlink", "getxattr", "mkdir", "rmdir", "statfs", "fsync", "symlink", "link", "setlk",
    "getlk", "lseek", "fallocate", "copy_file_range", "setxattr", "listxattr", "removexattr", "mknod", "fsyncdir",
)  # fmt: skip
"""In the order of their words: the frequent ones first, so that what is never asked for need not be copied. Only ever added to
at the end."""

BUCKETS: Final = 24
LAST: Final = BUCKETS - 1
SHIFT: Final = 12
BOUNDS: Final = tuple((1 << SHIFT + number) / 1e9 for number in range(LAST))
"""The buckets' upper bounds in seconds; the last bucket has none."""

# The session's words.
IN_FLIGHT: Final = 1
"""Operations that had not ended when it was last looked at."""
WAITING: Final = 2
"""Operations that are held back at this moment."""
BYTES_READ: Final = 3
BYTES_WRITTEN: Final = 4
BYTES_COPIED: Final = 5
ERRORS: Final = 6
FAULTS: Final = 7
REFUSED: Final = 8
"""By the policy, or by its limits."""
UNTOLD: Final = 9
"""Failed because no audit record could be written."""
CACHE_HITS: Final = 10
CACHE_MISSES: Final = 11
SLOW: Final = 12
"""Took longer than the settings' `slow_operation`."""
WHOLE: Final = 16
"""The histogram of all operations."""

# An operation's words, from its first.
OPERATION_WORDS: Final = 104
OWN_ERRORS: Final = 0
OWN_FAULTS: Final = 1
GATE_TIME: Final = 2
HELD_TIME: Final = 3
REMOTE_TIME: Final = 4
CLIENT_TIME: Final = 5
"""Sums, in nanoseconds."""
OWN_WHOLE: Final = 8
GATE: Final = OWN_WHOLE + BUCKETS
HELD: Final = GATE + BUCKETS
REMOTE: Final = HELD + BUCKETS

AT: Final = {name: HEADER + OPERATION_WORDS * index for index, name in enumerate(OPERATIONS)}
"""The first word of each operation."""

FAULT_ERRNOS: Final = frozenset(map(errno_number, ("EIO", "ETIMEDOUT", "ENOTCONN", "ESTALE", "EPROTO")))
"""What no program meets on a disk that works, so that it is worth somebody's look. Other errors are ordinary: a lookup of what
is not there is ENOENT."""

_MOST: Final = 2**62
_NOTHING: Final = (0.0, 0.0, 0.0)
FOLD_AT: Final = 128
"""Operations that are counted at once, where a quarter of a second has not come to an end before: so few have to wait for it that
it does not show in what 99 of 100 take at most."""
MOVED: Final = {"read": BYTES_READ, "write": BYTES_WRITTEN, "copy_file_range": BYTES_COPIED}
"""Where an operation's bytes are counted."""


class Measures:
    """One session's. `words` are the block's, zero or as an earlier worker left them; `clock` gives seconds that never go back.
    `slow_after`: seconds from which on an operation is slow."""

    __slots__ = ("_slow_after", "clock", "ends", "for_room", "hits", "kept", "misses", "words")

    def __init__(
        self, clock: Callable[[], float], words: "memoryview[int] | None" = None, *, slow_after: float | None = None
    ) -> None:
        self.clock = clock
        self.words = words if words is not None else memoryview(bytearray(SIZE)).cast("Q")
        self.for_room: dict[int, Call] = {}
        """Who was given to the connection, which has no room, by their ids."""
        self.hits = self.misses = 0
        """What the cache had counted when it was last looked at."""
        self.kept: dict[int, float] = {}
        """Since when calls are kept back, by their ids."""
        self.ends: list[tuple[Call, float, Answer | int]] = []
        """What has ended and is not counted yet (`fold`): when, and with which answer, or how many bytes."""
        self._slow_after = slow_after if slow_after is not None else math.inf
        self._begin()

    def _begin(self) -> None:
        words = self.words
        # What an earlier worker left may be anything, and must not make this one stumble.
        if words[0] != MAGIC or any(word > _MOST for word in words[1:]):
            words[:] = memoryview(bytes(SIZE)).cast("Q")
            words[0] = MAGIC
        # What it had begun is asked again.
        words[IN_FLIGHT] = words[WAITING] = 0

    # An operation's way. What happens to each of them is written where it happens, and what is done with it later, many at once:
    # a call costs as much as it does, and more where the processor has none of it in its caches. So the desk notes `asked` when
    # it gives a call to the connection, and `back` and `usec` when its reply has come. What most never have is not set in them.

    def asked_again(self, call: Call) -> None:
        """It goes to the connection once more, if it has been there: the first time is over."""
        last = call.back - call.asked
        if call.asked and last > 0.0:
            held, remote, client = call.spent or _NOTHING
            call.spent = held, remote + last, client + _own(call.usec, last)
        call.asked = call.back = 0.0

    def waits(self, call: Call) -> None:
        """It waits for something else that the client was asked, and is with the client as well."""
        self.asked_again(call)
        call.asked = self.clock()

    def waits_for_room(self, call: Call) -> None:
        """The connection has no room for what was given to it."""
        self.for_room[call.id] = call
        self.keep(call)

    def has_room(self, number: int) -> None:
        """A request goes to the client that has waited for room."""
        call = self.for_room.pop(number, None)
        if call is not None:
            self.let_through(call)
            call.asked = self.clock()

    def keep(self, call: Call) -> None:
        """It is kept back for a while."""
        if call.id not in self.kept:
            self.kept[call.id] = self.clock()
            self.words[WAITING] = len(self.kept)

    def let_through(self, call: Call) -> None:
        """And goes on. Nothing for what was not kept back."""
        since = self.kept.pop(call.id, None)
        if since is not None:
            self.words[WAITING] = len(self.kept)
            held, remote, client = call.spent or _NOTHING
            call.spent = held + max(0.0, self.clock() - since), remote, client

    def ended(self, call: Call, answer: Answer) -> bool:
        """It is answered. Whether it was slow."""
        if self.kept:
            # Its caller may have given it up, or it had no room until its deadline.
            if self.for_room.pop(call.id, None) is not None:
                call.asked = 0.0
            self.let_through(call)
        now = self.clock()
        # Without data, which would be kept for as long.
        if type(call.request) is Write:
            call.request = msgspec.structs.replace(call.request, data=b"")
        self.ends.append((call, now, len(answer.data) if type(answer) is Data else answer))
        if len(self.ends) >= FOLD_AT:
            self.fold()
        return now - call.started >= self._slow_after

    def slow(self, call: Call) -> tuple[float, float, float, float]:
        """Where the time of one went that has ended right now, and was slow: seconds gate, held, remote, and of that the
        client's own."""
        self.words[SLOW] += 1
        whole, held, remote, client = _parts(call, self.clock())
        return max(0.0, whole - held - remote), held, remote, client

    def fold(self) -> None:
        """Count what has ended since the last time."""
        words, ends = self.words, self.ends
        self.ends = []
        # Most are answered here alone. A word of the block costs ten times what one of these does.
        here: dict[int, int] = {}
        times: dict[int, int] = {}
        for call, now, answer in ends:
            at = AT[call.operation]
            whole = gate = int((now - call.started) * 1e9)
            if type(answer) is Failed:
                self._failed(at, answer.errno)
            elif call.operation in MOVED and isinstance(answer, int | Count):
                words[MOVED[call.operation]] += answer if isinstance(answer, int) else answer.count
            if call.spent is None and not call.asked:
                if whole < 0:
                    whole = 0
                bucket = (whole >> SHIFT).bit_length()
                first = at + (bucket if bucket < LAST else LAST)
                here[first] = here.get(first, 0) + 1
                times[at] = times.get(at, 0) + whole
                continue
            if call.spent is None and call.back:
                remote, held = call.back - call.asked, 0.0
                client = call.usec / 1e6
                if client > remote or client < 0.0:
                    client = _own(call.usec, remote)
            else:
                _, held, remote, client = _parts(call, now)
            if remote > 0.0:
                time = int(remote * 1e9)
                gate -= time
                bucket = (time >> SHIFT).bit_length()
                words[at + REMOTE + (bucket if bucket < LAST else LAST)] += 1
                words[at + REMOTE_TIME] += time
                if client:
                    words[at + CLIENT_TIME] += int(client * 1e9)
            if held:
                time = int(held * 1e9)
                gate -= time
                bucket = (time >> SHIFT).bit_length()
                words[at + HELD + (bucket if bucket < LAST else LAST)] += 1
                words[at + HELD_TIME] += time
            if gate < 0:
                gate = 0
                whole = max(whole, 0)
            bucket = (gate >> SHIFT).bit_length()
            words[at + GATE + (bucket if bucket < LAST else LAST)] += 1
            words[at + GATE_TIME] += gate
            bucket = (whole >> SHIFT).bit_length()
            if bucket > LAST:
                bucket = LAST
            words[at + OWN_WHOLE + bucket] += 1
            words[WHOLE + bucket] += 1
        for first, count in here.items():
            words[first + GATE] += count
            words[first + OWN_WHOLE] += count
            words[WHOLE + (first - HEADER) % OPERATION_WORDS] += count
        for at, time in times.items():
            words[at + GATE_TIME] += time

    def _failed(self, at: int, errno: int) -> None:
        words = self.words
        words[at + OWN_ERRORS] += 1
        words[ERRORS] += 1
        if errno in FAULT_ERRNOS:
            words[at + OWN_FAULTS] += 1
            words[FAULTS] += 1

    # What else is counted.

    def refused(self) -> None:
        """By the policy, or by its limits."""
        self.words[REFUSED] += 1

    def untold(self) -> None:
        """It failed because no audit record could be written."""
        self.words[UNTOLD] += 1

    def cached(self, hits: int, misses: int) -> None:
        """So many questions the cache has answered by now, and so many it could not. One that was made anew begins at 0."""
        self.words[CACHE_HITS] += hits - self.hits if hits >= self.hits else hits
        self.words[CACHE_MISSES] += misses - self.misses if misses >= self.misses else misses
        self.hits, self.misses = hits, misses


def _parts(call: Call, now: float) -> tuple[float, float, float, float]:
    """Of one that ended at `now`, the seconds: whole, held, remote, and of that the client's own."""
    held, remote, client = call.spent or _NOTHING
    if call.asked:
        # Without a reply it was there until now.
        last = (call.back or now) - call.asked
        if last > 0.0:
            remote += last
            if call.back:
                client += _own(call.usec, last)
    return now - call.started, held, remote, client


def _own(usec: int, remote: float) -> float:
    """The seconds that the client says it needed, and no more than there were."""
    own = usec / 1e6
    return 0.0 if own < 0.0 else own if own < remote else remote
