"""edge/state.py: what a session's worker leaves, whatever the moment at which it ends."""

import contextlib
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from harness import need_cage
from harness.log import DEADLINE

from fuse_gated.edge import process
from fuse_gated.edge import state as module
from fuse_gated.edge.keeping import STATE_SIZE
from fuse_gated.edge.memory import make_state
from fuse_gated.edge.state import RING_SIZE, Full, Sealed, State, look
from fuse_gated.errors import OperatorError
from fuse_gated.gate.audit import Chain, Record
from fuse_gated.tree.journal import Asked, Locked, LookedUp, NodeGone, NodeRow, Numbers, Row
from fuse_gated.turnstile.measures import SIZE

RING = 2**18 + 2 * 2**20
"""Where it lies."""
ROOM = 2**17
PAGE = mmap.PAGESIZE
SMALL_RING = next(ring for ring in range(PAGE, 2**20, PAGE) if (RING + ring + 2 * ROOM) // 8 // PAGE * PAGE == ring)
LOGS = RING + SMALL_RING
SMALL = LOGS + 2 * ROOM
"""Bytes: two logs of 128 KiB, and a ring of an eighth of the whole."""

Make = Callable[..., State]


def nothing() -> Iterable[Row]:
    return ()


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = make_state()
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def make(memory: int) -> Iterator[Make]:
    """A worker's view of the memory; each call is another worker's."""
    made = []

    def make(size: int = SMALL, everything: Callable[[], Iterable[Row]] = nothing) -> State:
        made.append(State(memory, size, everything))
        return made[-1]

    yield make
    for state in made:
        state.close()


def put(memory: int, at: int, data: bytes) -> None:
    """What a hostile worker writes."""
    os.pwrite(memory, data, at)


def row(number: int, name: bytes = b"f") -> NodeRow:
    return NodeRow(number, 1, name, (7, number, 0o100000), 1, "", 0, False)


def ids(state: State) -> list[int]:
    return [found.id for found in state.rows() if isinstance(found, NodeRow | NodeGone)]


# What is agreed.


def test_a_fresh_one_says_nothing(make: Make) -> None:
    state = make()
    assert (state.about, list(state.rows()), state.lost_at) == (b"", [], 0.0)
    assert state.last_sealed() == Sealed(0, bytes(32), None)


def test_it_is_there_for_the_next(make: Make) -> None:
    state = make()
    for about in (b"first", b"second and longer", b"3"):
        state.about = about
        assert make().about == about
    state.lost_at = 12.5
    assert make().lost_at == 12.5
    assert [make().next_epoch() for _ in range(3)] == [1, 2, 3]


def test_a_description_counts_once_it_is_whole(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make()
    state.about = b"first"
    with monkeypatch.context() as patch:
        patch.setattr(State, "_store", lambda *_: None)  # It ends right before the last step.
        state.about = b"the second, which nobody ever agreed to"
    assert make().about == b"first"


def test_the_longest_hello_has_room(make: Make) -> None:
    state = make()
    state.about = bytes(65536 + 1024)
    with pytest.raises(Full, match="too long"):
        state.about = bytes(2**17)
    assert make().about == bytes(65536 + 1024)


def test_another_version_is_not_read(make: Make, memory: int) -> None:
    put(memory, 0, b"fgstate9")
    with pytest.raises(OperatorError, match="another version"):
        make()


# The log.


def test_rows_come_back_in_their_order(make: Make) -> None:
    state = make()
    committed: list[Row] = []
    for rows in ([row(2), row(3)], [NodeGone(2)], [LookedUp((3, 3))], []):
        state.commit(rows)
        committed += rows
        assert list(make().rows()) == committed
    make().commit([Numbers(9, 9)])
    assert list(make().rows()) == [*committed, Numbers(9, 9)]


def test_more_rows_than_are_read_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them or none, still."""
    monkeypatch.setattr(module, "_MOST_ROWS", 10)
    monkeypatch.setattr(module, "_LONG", 1000)
    state = make()
    state.commit([row(2)])
    many = [row(number) for number in range(3, 103)]
    with monkeypatch.context() as patch:
        patch.setattr(State, "_store", lambda *_: None)
        make().commit(many)
    assert ids(make()) == [2]
    state.commit(many)
    state.commit([row(number, b"n" * 255) for number in range(103, 113)])
    state.commit([row(113, b"n" * 5000)])
    assert ids(make()) == list(range(2, 114))


def test_no_room(make: Make) -> None:
    state = make()
    state.commit([row(2)])
    with pytest.raises(Full, match="memory is full"):
        state.commit([row(3, bytes(ROOM))])
    committed = [2]
    with contextlib.suppress(Full):
        while committed[-1] < 10**6:
            state.commit([row(committed[-1] + 1, b"n" * 255)])
            committed.append(committed[-1] + 1)
    assert ids(state) == ids(make()) == committed
    assert 400 < len(committed) < 500


def test_compaction(make: Make) -> None:
    counts: list[Row] = []
    state = make(everything=lambda: counts)
    for number in range(2, 100):
        state.commit([row(number)])
    counts = [row(number) for number in range(50, 2000)]
    state.compact()
    assert ids(state) == ids(make()) == list(range(50, 2000))
    state.commit([row(5000)])
    counts = [row(3)]
    state.compact()
    state.commit([row(4)])
    assert ids(state) == ids(make()) == [3, 4]
    assert not state.bloated


def test_a_compaction_that_has_no_room_changes_nothing(make: Make) -> None:
    state = make(everything=lambda: (row(number, b"n" * 255) for number in range(1000)))
    state.commit([row(2)])
    with pytest.raises(Full):
        state.compact()
    state.commit([row(3)])
    assert ids(state) == ids(make()) == [2, 3]


def test_a_compaction_that_is_cut_short_changes_nothing(make: Make) -> None:
    class Killed(BaseException):
        pass

    def everything() -> Iterator[Row]:
        yield from (row(number) for number in range(1500))
        raise Killed

    state = make(everything=everything)
    state.commit([row(2)])
    with pytest.raises(Killed):
        state.compact()
    assert ids(make()) == [2]


def test_a_log_is_written_anew_before_its_room_ends(make: Make) -> None:
    """Also where most of it counts."""
    live: dict[int, Row] = {}
    state = make(everything=lambda: live.values())
    for number in range(20_000):
        live[number % 300] = row(number, b"n" * 200)
        state.commit([live[number % 300]])
        if state.bloated:
            state.compact()
    assert set(ids(make())) >= {found.id for found in live.values() if isinstance(found, NodeRow)}


def test_a_log_that_says_much_more_than_counts_is_bloated(memory: int, make: Make) -> None:
    state = make(STATE_SIZE)
    while not state.bloated:
        state.commit([row(2, b"n" * 255)] * 64)
    assert 2**20 < _length(memory) < 2**20 + 2**16
    assert not make(STATE_SIZE).bloated, "who goes on gives it another mebibyte"


def test_the_other_half_takes_no_memory(memory: int, make: Make) -> None:
    state = make(STATE_SIZE)
    state.commit([row(2, bytes(2**20))] * 8)
    before = os.fstat(memory).st_blocks
    state.compact()
    assert os.fstat(memory).st_blocks < before / 4


def test_where_it_cannot_be_given_back_it_stays(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_REMOVE")
    state = make(everything=lambda: [row(3)])
    state.commit([row(2)])
    state.compact()
    assert ids(make()) == [3]


# Cut anywhere.


def _length(memory: int) -> int:
    numbers = struct.unpack("=8Q", os.pread(memory, 64, 0))
    length: int = numbers[2 + numbers[1]]
    return length


def test_a_copy_at_any_moment_is_a_prefix_of_whole_commits(memory: int, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before every store into the memory somebody looks: what the kernel shows when a process is killed there."""
    seen: list[list[int]] = []
    state = make(everything=lambda: [row(number) for number in committed])
    committed: list[int] = []
    put_, store = State._put, State._store

    def look() -> None:
        seen.append(ids(make()))
        assert seen[-1] == committed, "what was committed before, and no part of what comes"

    def watched_put(self: State, half: int, position: int, rows: Sequence[Row]) -> int:
        look()
        end = put_(self, half, position, rows)
        look()
        return end

    def watched_store(self: State, at: int, number: int) -> None:
        look()
        store(self, at, number)

    with monkeypatch.context() as patch:
        patch.setattr(State, "_put", watched_put)
        patch.setattr(State, "_store", watched_store)
        for number in range(0, 60, 3):
            state.commit([row(number), row(number + 1), row(number + 2)])
            committed += [number, number + 1, number + 2]
            if number % 15 == 0:
                state.compact()
    assert len(seen) > 60


WRITER = """
import sys
import msgspec
from fuse_gated.edge.state import State
from fuse_gated.tree.journal import NodeGone
live = []
state = State(int(sys.argv[1]), int(sys.argv[2]), lambda: [NodeGone(number) for number in live])
number = 0
while True:
    rows = [NodeGone(number * 100 + part) for part in range(1 + number % 7)]
    state.about = b"%d" % number * (1 + number % 50)
    state.sealed(number + 1, bytes([number % 256]) * 32, msgspec.msgpack.encode([("X", b"r" * (number % 999))]))
    state.commit(rows)
    live = [row.id for row in rows]
    if number % 40 == 39:
        state.compact()
    number += 1
    if number == 2:
        print("running", flush=True)
"""


@pytest.mark.parametrize("seed", range(12))
def test_a_writer_that_is_killed(memory: int, make: Make, seed: int) -> None:
    """kill -9, wherever it is: whole commits, a whole description, a whole record."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(memory), str(SMALL)], stdout=subprocess.PIPE, pass_fds=[memory],
        cwd=Path(__file__).parents[2],
    ) as writer:  # fmt: skip
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"running\n"
        # A number of looks, not a time: the moment is any.
        for _ in range(random.Random(seed).randrange(2000)):
            os.pread(memory, 8, 0)
        writer.send_signal(signal.SIGKILL)
    state = make()
    found = ids(state)
    last = found[-1] // 100
    assert found[-(1 + last % 7) :] == [last * 100 + part for part in range(1 + last % 7)], "the last one is whole"
    numbers = [number // 100 for number in found if number % 100 == 0]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "and none before it is missing"
    about = state.about
    described = next(number for number in (last, last + 1) if about == b"%d" % number * (1 + number % 50))
    sealed = state.last_sealed()
    assert sealed.sequence - 1 in (last, last + 1, described)
    assert sealed.head == bytes([(sealed.sequence - 1) % 256]) * 32


# What is no state of ours.


def log(memory: int, data: bytes, size: int = SMALL) -> None:
    """A log with these bytes."""
    put(memory, LOGS, data)
    put(memory, 0, module.MAGIC + struct.pack("=QQQ", 0, len(data), 0))
    assert size


def chunk(data: bytes) -> bytes:
    return struct.pack("=I", len(data)) + data


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"\0\0\0",
        struct.pack("=I", 2**31),
        struct.pack("=I", 5) + b"\x90",
        chunk(b""),
        chunk(b"\xc1"),
        chunk(b"\x80"),
        chunk(b"\x91\x92\x63\x01"),
        chunk(b"\x91\x92\x02\xa1x"),
        chunk(b"\xdc\xff"),
        chunk(b"\xdd\xff\xff\xff\xff"),
        chunk(msgspec.msgpack.encode([row(2)]) + b"\0"),
        chunk(b"\x91" * 100_000 + b"\xc0"),
        chunk(b"\x91\x9b\x01" + b"\x91" * 100_000 + b"\xc0"),
        chunk(msgspec.msgpack.encode([NodeRow(2, 1, b"f", None, 1, "", 0, False)]).replace(b"\xa0", b"\xa1\xff")),
    ],
    ids=lambda data: data[:12].hex(),
)
def test_garbage(memory: int, make: Make, data: bytes) -> None:
    log(memory, data)
    with pytest.raises((ValueError, msgspec.DecodeError, RecursionError)):
        list(make().rows())


def test_a_log_longer_than_its_room(memory: int, make: Make) -> None:
    put(memory, 0, module.MAGIC + struct.pack("=QQQ", 0, ROOM + 1, 0))
    with pytest.raises(ValueError, match="longer than its room"):
        make()


def test_a_log_to_the_very_end_of_the_memory(memory: int, make: Make) -> None:
    put(memory, 0, module.MAGIC + struct.pack("=QQQ", 2**63 + 1, 0, ROOM))
    for at in range(ROOM - 8, ROOM):
        put(memory, LOGS + ROOM, chunk(b"\x90" + bytes(at - 5)))
        with pytest.raises((ValueError, msgspec.DecodeError), match=r"longer than|malformed"):
            list(make().rows())


def test_rows_that_would_fill_the_memory(memory: int, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of three bytes becomes an object of a hundred: so many are not even begun with."""
    few = msgspec.msgpack.encode([NodeGone(2)])[1:]
    log(memory, chunk(b"\xdd" + struct.pack(">I", 2**16 + 1) + few))
    with pytest.raises(ValueError, match="65537 rows at once"):
        list(make().rows())
    monkeypatch.setattr(module, "_LONG", 100)
    log(memory, chunk(msgspec.msgpack.encode([row(2, bytes(60)), row(3, bytes(60))])))
    with pytest.raises(ValueError, match="2 rows at once"):
        list(make().rows())
    log(memory, chunk(msgspec.msgpack.encode([row(2, bytes(600))])))
    assert ids(make()) == [2], "one alone may be long"


def test_the_largest_garbage_takes_bounded_memory(memory: int) -> None:
    """All 512 MiB of it: read by a process that may have no more than a gibibyte beside what it maps."""
    state = State(memory, STATE_SIZE, nothing)
    state.commit([Locked(2, ((1, 0, 9, 1, 9, 1),) * 2**20)])
    long_log = state._half
    state.close()
    put(memory, 16, struct.pack("=Q", long_log))
    array = b"\xdd" + struct.pack(">I", long_log // 3) + b"\x92\x02\x05" * 1000
    put(memory, RING + RING_SIZE, struct.pack("=I", long_log - 4) + array)
    reader = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
from fuse_gated.edge.state import State
state = State({memory}, {STATE_SIZE}, list)
try:
    for row in state.rows():
        pass
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", reader], pass_fds=[memory], capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "rows at once" in done.stdout, done.stderr


@pytest.mark.parametrize("epoch", [2**31, 2**64 - 1])
def test_more_workers_than_there_can_have_been(memory: int, make: Make, epoch: int) -> None:
    put(memory, 32, struct.pack("=Q", epoch))
    with pytest.raises(ValueError, match="of one session"):
        make().next_epoch()


def test_a_description_longer_than_its_room(memory: int, make: Make) -> None:
    state = make()
    state.about = b"x"
    put(memory, 2**17, struct.pack("=I", 2**32 - 1))
    assert len(make().about) < 2**17


# What was written, and is not at the client yet.


def test_what_is_put_there_is_there_for_the_next(make: Make) -> None:
    state = make()
    state.put(0, b"first")
    state.put(5, memoryview(b"second"))
    state.put(state.ring - 4, b"last")
    other = make()
    assert (other.get(0, 11), other.get(other.ring - 4, 4), other.get(20, 0)) == (b"firstsecond", b"last", b"")
    other.put(5, b"SEC")
    assert state.get(0, 11) == b"firstSECond"


def test_it_lies_in_nobodys_way(make: Make) -> None:
    """Neither the records before it nor the log behind it, of either half."""
    counts = [row(number, b"n" * 255) for number in range(2, 300)]
    state, chain = make(everything=lambda: counts), Chain("acme", "0123456789abcdef", "work")
    for _ in range(2):
        sealed(state, chain, "x" * (2**19 - 2000))
    state.put(0, b"\xff" * state.ring)
    for _ in range(2):
        state.compact()
        assert ids(make()) == list(range(2, 300))
        assert state.get(0, state.ring) == b"\xff" * state.ring
    assert make().last_sealed().fields is not None
    state.clear_ring()
    assert ids(make()) == list(range(2, 300))
    assert make().last_sealed().fields is not None


@pytest.mark.parametrize(("size", "ring"), [(SMALL, SMALL_RING), (STATE_SIZE, RING_SIZE)])
def test_a_small_memory_keeps_an_eighth_for_it(make: Make, size: int, ring: int) -> None:
    assert make(size).ring == ring


def test_its_memory_goes_back_when_nothing_of_it_counts(memory: int, make: Make) -> None:
    state = make(STATE_SIZE)
    before = os.fstat(memory).st_blocks
    state.put(0, bytes(state.ring))
    assert (os.fstat(memory).st_blocks - before) * 512 >= state.ring
    state.clear_ring()
    assert os.fstat(memory).st_blocks == before
    assert state.get(0, 5) == bytes(5)
    state.clear_ring()
    state.put(0, b"again")
    assert state.get(0, 5) == b"again"


def test_what_an_earlier_worker_put_there_goes_back_as_well(memory: int, make: Make) -> None:
    state = make(STATE_SIZE)
    before = os.fstat(memory).st_blocks
    state.put(0, bytes(2**20))
    make(STATE_SIZE).clear_ring()
    assert os.fstat(memory).st_blocks == before


def test_it_is_asked_for_back_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make()
    state.clear_ring()
    state.put(0, b"data")
    monkeypatch.delattr(mmap, "MADV_REMOVE")
    state.clear_ring()
    assert state.get(0, 4) == b"data", "where it cannot be given back it stays"
    monkeypatch.undo()
    state.clear_ring()
    assert state.get(0, 4) == b"data"


# The audit.


def sealed(state: State, chain: Chain, detail: str = "") -> None:
    chain.seal(Record(kind="session-opened", detail=detail))
    state.sealed(chain.sequence, chain.head, chain.encoded)


def test_the_last_record(make: Make) -> None:
    state, chain = make(), Chain("acme", "0123456789abcdef", "work")
    for _ in range(5):
        sealed(state, chain)
        last = make().last_sealed()
        assert (last.sequence, last.head) == (chain.sequence, chain.head)
        assert last.fields is not None
        assert dict(last.fields)["FUSE_GATED_SEQUENCE"] == b"%d" % chain.sequence
        state.taken(chain.sequence)
        assert make().last_sealed() == Sealed(chain.sequence, chain.head, None)


def test_a_record_counts_once_it_is_whole(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    state, chain = make(), Chain("acme", "0123456789abcdef", "work")
    sealed(state, chain)
    sealed(state, chain)
    before = make().last_sealed()
    monkeypatch.setattr(State, "_store", lambda *_: None)
    sealed(state, chain)
    assert make().last_sealed() == before


def test_a_record_that_is_too_long_to_be_kept(make: Make) -> None:
    """Its number and its hash are: the chain goes on, and it may be missing."""
    state, chain = make(), Chain("acme", "0123456789abcdef", "work")
    sealed(state, chain, "x" * 2**20)
    assert make().last_sealed() == Sealed(1, chain.head, None)
    sealed(state, chain, "x" * (2**19 - 2000))
    assert make().last_sealed().fields is not None


def test_a_record_of_an_impossible_number(memory: int, make: Make) -> None:
    put(memory, 64, struct.pack("=Q", 2**63))
    with pytest.raises(ValueError, match=f"record number {2**63}"):
        make().last_sealed()


def test_a_record_that_is_none(memory: int, make: Make) -> None:
    make().sealed(1, bytes(32), b"\xc1")
    with pytest.raises(msgspec.DecodeError, match="malformed"):
        make().last_sealed()


# In a cage.


def _use_it(memory: int) -> int:
    process.cage({memory}, seccomp=True)
    state = State(memory, STATE_SIZE, lambda: [row(3)])
    state.about = b"caged"
    state.commit([row(2, bytes(2**20))])
    state.compact()
    refused = 0
    for attempt in (lambda: os.ftruncate(memory, 0), lambda: os.posix_fallocate(memory, 0, 4096),
                    lambda: mmap.mmap(memory, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)):  # fmt: skip
        try:
            attempt()
        except PermissionError:
            refused += 1
    return refused


def test_a_caged_worker_can_use_it_and_do_nothing_else_to_it(memory: int, make: Make) -> None:
    need_cage()
    assert process.spawn(lambda: _use_it(memory)).wait(DEADLINE) == 3
    state = make(STATE_SIZE)
    assert (state.about, ids(state)) == (b"caged", [3])
    assert os.fstat(memory).st_blocks * 512 < 2**20, "the pages of the old half were given back"


# The rest of what a log may have to hold.


def test_requests_are_kept_as_they_were_read(make: Make) -> None:
    state = make()
    state.commit([Asked(8, b"raw" * 10_000)])
    assert list(make().rows()) == [Asked(8, b"raw" * 10_000)]
    with contextlib.suppress(Full):
        state.commit([Asked(10, bytes(ROOM))])
    assert list(make().rows()) == [Asked(8, b"raw" * 10_000)]


# What is counted there.


def test_measures_are_each_worker_s_and_anybody_s_to_look_at(memory: int, make: Make) -> None:
    words = make().measures
    words[0], words[5], words[4000] = 1, 7, 2**64 - 1
    successor = make().measures
    assert (successor[5], len(successor)) == (7, SIZE // 8)
    seen = look(memory)
    assert struct.unpack_from("=Q", seen.measures, 40) == (7,)
    assert len(seen.measures) == 8 * 4001, "zeros at the end are left out"
    brief = len(look(memory, brief=True).measures)
    words.release()
    successor.release()
    assert brief == 8 * 5 + 1


def test_they_are_in_nobodys_way(memory: int, make: Make) -> None:
    """The longest description leaves them alone, and they leave the description alone."""
    state = make()
    longest = b"x" * (2**17 - SIZE - 256 - 4)
    for _ in range(2):
        state.about = longest
    assert look(memory).measures == b""
    words = state.measures
    words[:] = memoryview(b"\xff" * SIZE).cast("Q")
    words.release()
    assert make().about == longest
    for _ in range(2):
        with pytest.raises(Full):
            state.about = longest + b"x"


def test_how_far_the_audit_is(memory: int, make: Make) -> None:
    state = make()
    for number in (1, 2, 3):
        state.sealed(number, bytes(32), b"record")
    state.taken(2)
    assert (look(memory).sealed, look(memory).taken) == (3, 2)
