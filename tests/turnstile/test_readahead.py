"""turnstile/readahead.py: what is read ahead of whom, how far, and for how long it holds."""

import contextlib
import math
from unittest import mock

import pytest
from harness.sansio import EVERYTHING, O_RDONLY, O_RDWR, O_TRUNC, ROOT, Errno, Mount, attributes
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError, errno_name
from fuse_gated.gate.tenant import Cache as CachePolicy
from fuse_gated.tree.cache import Name
from fuse_gated.turnstile import bounds, effects, readahead, readers
from fuse_gated.turnstile.limits import Limits
from fuse_gated.turnstile.turnstile import INTERRUPT_GRACE
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire

O_DIRECT = 0o40000
PAGE, CHUNK = 256, 1024
SIZE = 40 * CHUNK


@pytest.fixture(autouse=True)
def _small():
    with small():
        yield


@contextlib.contextmanager
def small():
    """A chunk of 1 KiB and everything else in proportion."""
    first = {"CHUNK": CHUNK, "FIRST_WINDOW": CHUNK}
    others = {"LARGEST_WINDOW": 8 * CHUNK, "ENOUGH": PAGE, "MOST_ENOUGH": 8 * PAGE}
    with mock.patch.multiple(readahead, **first), mock.patch.multiple(bounds, **others), mock.patch.multiple(readers, **first):
        yield


class Reading:
    """A mount with one open file of SIZE bytes, whose client watches it or not; byte i is i // PAGE."""

    def __init__(self, *, watched=True, by_path=False, flags=O_RDWR, **options):
        self.mount = Mount(EVERYTHING, **options)
        self.t = self.mount.t
        self.content = b"".join(bytes([page % 256]) * PAGE for page in range(SIZE // PAGE))
        self.attributes = attributes(21, size=SIZE)
        if by_path:
            self.node = b"f"
            self.mount.do(op.Lookup(b"", b"f"), self.attributes)
            self.handle = self.open(flags)
        else:
            self.node = self.mount.lookup(b"f", inode=21, size=SIZE)
            self.handle = self.open(flags)
        if watched:
            self.watch()
        self.mount.clear()
        self.done: set[int] = set()

    def watch(self):
        self.t.watches = True
        self.t.set_cache()
        names = [Name(b"f", 21, 0o100000, self.attributes), Name(b"other", 22, 0o100000, attributes(22))]
        cache = self.t.cache
        cache.listed(b"", None, names, complete=True, since=cache.tick, until=math.inf)

    def open(self, flags=O_RDWR, remote=77):
        return self.mount.do(op.Open(self.node, flags), wire.OpenedFile(remote, self.attributes)).handle

    def ask(self, offset, size=PAGE, handle=None):
        return self.mount.ask(op.Read(self.node, handle or self.handle, offset, size))

    def run(self, pages=2):
        """Read on, from the beginning, answered by the client."""
        for page in range(pages):
            number = self.ask(page * PAGE)
            self.answer(number)

    @property
    def ahead(self):
        """What is asked for ahead and not answered yet."""
        return [ask for ask in self.mount.sent if ask.id & 1 and ask.operation == "read" and ask.id not in self.done]

    @property
    def places(self):
        return [ask.arguments.offset for ask in self.ahead]

    def data(self, ask):
        return self.content[ask.arguments.offset : ask.arguments.offset + ask.arguments.size]

    def answer(self, number, data=None):
        self.done.add(number)
        (ask,) = [ask for ask in self.mount.sent if ask.id == number]
        self.mount.reply(number, self.data(ask) if data is None else data)

    def arrive(self, *, count=1):
        for ask in self.ahead[:count]:
            self.answer(ask.id)

    def got(self, number):
        (answer,) = self.mount.answers(number)
        return bytes(answer.data)

    def asked(self, number):
        """Whether the client was asked for this very READ."""
        return any(ask.id == number for ask in self.mount.sent)

    def is_answered(self, number):
        return bool(self.mount.answers(number))


def failed(answer):
    assert isinstance(answer, op.Failed), answer
    return errno_name(answer.errno)


def cancelled(mount):
    return [e.frame.id for e in mount.log if isinstance(e, effects.Send) and isinstance(e.frame, wire.Cancel)]


# Who is read ahead for.


@pytest.mark.parametrize("watched", [True, False])
def test_who_reads_on_is_read_ahead_for(watched):
    reading = Reading(watched=watched)
    reading.run(2)
    assert reading.ahead[0].arguments == wire.Read(77, 2 * PAGE, CHUNK)
    reading.arrive()
    number = reading.ask(2 * PAGE)
    assert not reading.asked(number)
    assert reading.got(number) == bytes([2]) * PAGE


def test_one_read_alone_however_large_is_not_read_on():
    reading = Reading()
    reading.answer(reading.ask(0, CHUNK))
    reading.answer(reading.ask(20 * CHUNK, CHUNK))
    reading.answer(reading.ask(7 * CHUNK, CHUNK))
    assert not reading.ahead


def test_reads_here_and_there_are_not_read_on():
    reading = Reading()
    for place in (9, 3, 30, 17, 25, 11, 0, 21):
        reading.answer(reading.ask(place * CHUNK))
    assert not reading.ahead
    assert reading.t.readahead.bytes_fetched == 0


def test_two_reads_may_come_in_either_order():
    reading = Reading()
    for page in (0, 2, 1):
        reading.answer(reading.ask(page * PAGE))
    assert reading.places == [3 * PAGE]


@pytest.mark.parametrize("flags", [O_DIRECT, O_RDWR | 0o200000])
def test_who_wants_no_cache_is_read_nothing_ahead(flags):
    reading = Reading(flags=flags)
    reading.run(8)
    assert not reading.ahead


def test_strict_is_strict():
    reading = Reading(watched=False, cache=CachePolicy(mode="strict"))
    reading.run(8)
    assert not reading.ahead


def test_two_readers_of_one_file_are_two_even_through_one_handle():
    reading = Reading()
    for page in (0, 1):
        for start in (0, 20 * CHUNK):
            reading.answer(reading.ask(start + page * PAGE))
    assert reading.places == [2 * PAGE, 20 * CHUNK + 2 * PAGE]


def test_readers_side_by_side_through_two_handles_share_what_comes():
    reading = Reading()
    other = reading.open(O_RDONLY, remote=78)
    reading.run(2)
    reading.arrive()
    one, two = reading.ask(2 * PAGE), reading.ask(2 * PAGE, handle=other)
    assert reading.got(one) == reading.got(two) == bytes([2]) * PAGE
    assert reading.t.readahead.bytes_fetched == 2 * CHUNK


def test_the_reader_who_read_longest_ago_makes_room_for_a_fifth():
    reading = Reading()
    reading.run(2)
    reading.mount.now += 0.1
    for start in (10, 15, 20, 25):
        reading.answer(reading.ask(start * CHUNK))
    assert cancelled(reading.mount) == [reading.ahead[0].id]


# How far.


def test_the_window_doubles_while_the_reader_waits():
    reading = Reading()
    reading.run(2)
    reading.arrive()
    lengths = []
    for page in range(2, 60):
        number = reading.ask(page * PAGE)
        lengths.append(len(reading.ahead))
        while not reading.is_answered(number):
            reading.arrive()
        assert reading.got(number) == bytes([page]) * PAGE
    assert max(lengths) == 9  # the one that is waited for, and the window
    assert reading.t.readahead.bytes_used == 58 * PAGE


def test_it_does_not_where_chunks_only_queue():
    reading = Reading()
    reading.run(2)
    reading.mount.now += 0.02
    reading.arrive()
    for page in range(2, 60):
        number = reading.ask(page * PAGE)
        assert len(reading.ahead) <= 3
        while not reading.is_answered(number):
            reading.mount.now += 0.2
            reading.arrive()


def read_whole(reading, pieces, *, took, size=CHUNK):
    """Read on in pieces; each of the client's answers takes so many seconds. For how many of them the client was asked ahead."""
    before = reading.t.readahead.bytes_fetched
    for piece in pieces:
        number = reading.ask(piece * size, size)
        while not reading.is_answered(number):
            reading.mount.now += took
            if reading.asked(number):
                reading.answer(number)
            else:
                reading.arrive()
        assert reading.got(number) == reading.content[piece * size : (piece + 1) * size]
    return (reading.t.readahead.bytes_fetched - before) // CHUNK


def test_over_no_distance_whole_chunks_are_asked_for_as_they_are_read_but_for_a_few():
    reading = Reading()
    read_whole(reading, range(4), took=0.001)
    reading.arrive(count=9)
    assert read_whole(reading, range(4, 36), took=0.001) == 2
    assert bounds.PROBES == 16


def test_short_reads_are_read_ahead_for_over_no_distance_too():
    reading = Reading()
    read_whole(reading, range(4), took=0.001)
    reading.arrive(count=9)
    assert read_whole(reading, range(16, 24), took=0.001, size=PAGE) >= 2


def test_a_client_that_has_come_back_may_be_far_away():
    reading = Reading()
    read_whole(reading, range(4), took=0.001)
    reading.t.suspend(reading.mount.now)
    assert reading.t.readahead._shortest == 0.0


def test_a_client_at_a_distance_is_asked_ahead():
    reading = Reading()
    read_whole(reading, range(4), took=0.004)
    assert read_whole(reading, range(4, 20), took=0.004) > 8


def test_nothing_is_asked_for_beyond_the_end():
    reading = Reading()
    start = SIZE - 2 * CHUNK
    for page in range(2):
        reading.answer(reading.ask(start + page * PAGE))
    reading.arrive(count=9)
    number = reading.ask(start + 2 * PAGE, 2 * CHUNK)
    assert reading.places == [start + 2 * PAGE + CHUNK]
    reading.arrive()
    assert reading.got(number) == reading.content[start + 2 * PAGE :]
    assert not reading.ahead


def test_where_the_end_is_not_known_a_short_chunk_tells():
    reading = Reading(watched=False)
    start = SIZE - CHUNK
    for page in range(2):
        reading.answer(reading.ask(start + page * PAGE))
    reading.arrive()
    assert reading.got(reading.ask(start + 2 * PAGE, CHUNK)) == reading.content[start + 2 * PAGE :]
    assert not reading.ahead
    beyond = reading.ask(SIZE)
    assert reading.asked(beyond)


def test_an_empty_chunk_answers_nobody():
    reading = Reading(watched=False)
    start = SIZE - 2 * PAGE
    for page in range(2):
        reading.answer(reading.ask(start + page * PAGE))
    reading.arrive()
    beyond = reading.ask(SIZE)
    assert reading.asked(beyond)


def test_all_readers_together_get_no_more_than_half_of_what_may_be_in_flight():
    reading = Reading(bounds=Limits(max_bytes_in_flight=4 * CHUNK))
    for start in (0, 10 * CHUNK, 20 * CHUNK):
        for page in range(2):
            reading.answer(reading.ask(start + page * PAGE))
    assert len(reading.ahead) == 2


def test_nothing_is_asked_for_that_would_wait():
    reading = Reading(bounds=Limits(max_in_flight=1))
    reading.answer(reading.ask(0))
    number = reading.ask(PAGE)
    assert not reading.ahead
    reading.answer(number)


def test_what_is_read_through_is_dropped_and_what_is_left_out_too():
    reading = Reading()
    reading.run(2)
    reading.arrive(count=9)
    number = reading.ask(2 * PAGE, CHUNK)
    assert reading.got(number) == reading.content[2 * PAGE : 2 * PAGE + CHUNK]
    reading.arrive(count=9)
    (reader,) = reading.t.readahead.files[(7, 21, 0o100000)].readers
    assert [chunk.offset for chunk in reader.chunks] == [2 * PAGE + CHUNK]
    for page in range(7, 19, 2):
        reading.ask(page * PAGE)
        reading.arrive(count=9)
    assert reader.chunks[0].offset > 2 * PAGE + CHUNK


def test_a_read_across_chunks_is_joined():
    reading = Reading()
    reading.run(2)
    reading.arrive()
    reading.ask(2 * PAGE)
    number = reading.ask(3 * PAGE, CHUNK)
    assert not reading.is_answered(number)
    reading.arrive(count=9)
    assert reading.got(number) == reading.content[3 * PAGE : 3 * PAGE + CHUNK]


def test_a_read_of_which_only_the_beginning_could_be_asked_for_ahead_is_asked_for_whole():
    reading = Reading(bounds=Limits(max_bytes_in_flight=2 * CHUNK))
    reading.run(2)
    number = reading.ask(2 * PAGE, 2 * CHUNK)
    assert not reading.asked(number)
    reading.arrive()
    assert reading.asked(number)
    assert not reading.ahead


def test_reads_that_want_what_is_read_ahead_for_others_in_vain_come_to_be_believed_less():
    reading = Reading()
    for start in range(0, 30 * CHUNK, 5 * CHUNK):
        for page in range(3):
            reading.answer(reading.ask(start + page * PAGE)) if page < 2 else None
        reading.arrive(count=9)
    before = reading.t.readahead.bytes_fetched
    reading.answer(reading.ask(35 * CHUNK))
    reading.answer(reading.ask(35 * CHUNK + PAGE))
    assert reading.t.readahead.bytes_fetched == before


# For how long.


@pytest.mark.parametrize(("watched", "seconds", "holds"), [(True, 4.0, True), (False, 0.9, True), (False, 1.1, False)])
def test_how_long_a_chunk_holds(watched, seconds, holds):
    reading = Reading(watched=watched)
    reading.run(2)
    reading.arrive()
    reading.mount.tick(seconds)
    number = reading.ask(2 * PAGE)
    assert reading.asked(number) is not holds


def test_a_chunk_of_which_nobody_would_tell_is_not_believed_once_the_watch_is_there():
    reading = Reading(watched=False)
    reading.run(2)
    reading.arrive()
    reading.watch()
    reading.mount.tick(2.0)
    assert reading.asked(reading.ask(2 * PAGE))


def test_a_file_whose_name_is_anothers_by_now_is_not_followed():
    reading = Reading()
    reading.run(2)
    reading.arrive()
    reading.t.cache.saw(b"f", attributes(99, size=SIZE), reading.t.cache.tick)
    reading.mount.tick(2.0)
    assert reading.asked(reading.ask(2 * PAGE))


def test_who_waited_may_have_what_arrives_late():
    reading = Reading(watched=False)
    reading.run(2)
    number = reading.ask(2 * PAGE)
    reading.mount.tick(3.0)
    reading.arrive()
    assert reading.got(number) == bytes([2]) * PAGE


def test_on_a_slow_line_without_a_watch_it_ends_by_itself():
    reading = Reading(watched=False)
    for page in range(40):
        number = reading.ask(page * PAGE)
        reading.mount.tick(2.0)
        while not reading.is_answered(number):
            if reading.ahead:
                reading.arrive()
            else:
                reading.answer(number)
        reading.mount.tick(2.0)
    assert reading.t.readahead.bytes_fetched <= 8 * CHUNK


def change_by_write(reading):
    reading.mount.do(op.Write(reading.node, reading.handle, 0, b"x"), 1)


def change_by_write_elsewhere(reading):
    reading.mount.do(op.Write(reading.node, reading.open(O_RDWR, 79), 0, b"x"), 1)


def change_by_fallocate(reading):
    reading.mount.do(op.Fallocate(reading.node, reading.handle, 0, 10, 0), None)


def change_by_copy(reading):
    reading.mount.do(op.CopyFileRange(reading.node, reading.handle, 0, reading.node, reading.handle, CHUNK, 5), 5)


def change_by_setattr(reading):
    reading.mount.do(op.Setattr(reading.node, reading.handle, size=3), attributes(21, size=3))


def change_by_opening(reading):
    reading.mount.do(op.Open(reading.node, O_RDWR | O_TRUNC), wire.OpenedFile(90, attributes(21, size=0)))


def lock(reading):
    reading.mount.do(op.Setlk(reading.node, reading.handle, 5, 0, 10, 0, 1, False, False), None)


def flock(reading):
    reading.mount.do(op.Setlk(reading.node, reading.handle, 5, 0, 2**63 - 1, 1, 1, False, True), None)


def test_what_is_said_of_another_file_changes_nothing():
    reading = Reading()
    reading.run(2)
    reading.arrive()
    assert isinstance(reading.mount.do(op.Lookup(ROOT, b"other")), op.Entry)
    assert not reading.asked(reading.ask(2 * PAGE))


def other_attributes(reading):
    reading.t.cache.forget(b"")
    reading.mount.do(op.Getattr(reading.node, reading.handle), attributes(21, size=SIZE, mtime=99))


MINE = [
    change_by_write, change_by_write_elsewhere, change_by_fallocate, change_by_copy, change_by_setattr, change_by_opening, lock,
    flock, other_attributes,
]  # fmt: skip


def notice(reading):
    reading.mount.message(codec.encode(wire.Notice((b"f",), (attributes(21, size=SIZE, mtime=5),))))


def notice_of_the_same(reading):
    reading.mount.message(codec.encode(wire.Notice((b"f",), (reading.attributes,))))


def notice_without_attributes(reading):
    reading.mount.notice(b"f")


def overflow(reading):
    reading.mount.message(codec.encode(wire.Notice((), (), True)))


def lose_the_watch(reading):
    reading.t.cache.evict(b"")
    reading.mount.message(codec.encode())


THEIRS = [notice, notice_of_the_same, notice_without_attributes, overflow]


@pytest.mark.parametrize("arrived", [True, False])
@pytest.mark.parametrize("change", [*MINE, *THEIRS, lose_the_watch])
def test_what_was_read_ahead_ends_with_a_change(change, arrived):
    reading = Reading()
    reading.run(2)
    other = reading.mount.do(op.Read(reading.node, reading.handle, 9 * CHUNK, PAGE), b"other")
    assert isinstance(other, op.Data)
    (ask,) = reading.ahead
    if arrived:
        reading.arrive()
    else:
        waiting = reading.ask(2 * PAGE)
    change(reading)
    number = reading.ask(3 * PAGE)
    assert reading.asked(number)
    if not arrived:
        assert ask.id in cancelled(reading.mount)
        assert reading.asked(waiting)
        reading.answer(waiting, b"new")
        assert reading.got(waiting) == b"new"
        reading.answer(ask.id)


@pytest.mark.parametrize("change", MINE[:8])
def test_the_same_without_nodes(change):
    reading = Reading(watched=False, by_path=True)
    reading.run(2)
    reading.arrive()
    change(reading)
    assert reading.asked(reading.ask(3 * PAGE))


def test_a_write_through_a_handle_of_which_no_more_is_known_ends_all():
    reading = Reading(watched=False, by_path=True)
    other = reading.open(O_RDWR, 79)
    reading.t.readahead._opened.pop(other)
    reading.run(2)
    reading.arrive()
    reading.mount.do(op.Write(b"f", other, 0, b"x"), 1)
    assert reading.asked(reading.ask(3 * PAGE))


def test_what_is_not_known_to_be_which_file_is_not_read_ahead():
    reading = Reading(watched=False, by_path=True)
    reading.t.readahead._opened.clear()
    reading.run(8)
    assert not reading.ahead
    reading.mount.do(op.Release(b"f", reading.handle))


def test_made_files_are_read_ahead_too_where_there_are_no_nodes():
    reading = Reading(watched=False, by_path=True)
    made = reading.mount.do(op.Create(b"", b"g", O_RDWR, 0o644, 0), wire.OpenedFile(80, attributes(30)))
    for page in range(2):
        reading.answer(reading.ask(page * PAGE, handle=made.opened.handle))
    assert reading.ahead[0].arguments.handle == 80


def test_other_names_of_a_file_are_the_same_file():
    mount = Mount()
    a, b = mount.lookup(b"a", inode=21, nlink=2), mount.lookup(b"b", inode=21, nlink=2)
    one, two = mount.open(a), mount.open(b, remote=78)
    for page in range(2):
        mount.do(op.Read(a, one, page * PAGE, PAGE), bytes(PAGE))
    ahead = mount.sent[-1] if mount.sent[-1].id & 1 else mount.sent[-2]
    mount.reply(ahead.id, bytes(CHUNK))
    mount.do(op.Write(b, two, 0, b"x"), 1)
    number = mount.ask(op.Read(a, one, 2 * PAGE, PAGE))
    assert any(ask.id == number for ask in mount.sent)


def test_closing_ends_what_was_read_ahead_for_it_and_nothing_else():
    reading = Reading()
    other = reading.open(O_RDONLY, remote=78)
    reading.run(2)
    for page in range(2):
        reading.answer(reading.ask(20 * CHUNK + page * PAGE, handle=other))
    first, second = reading.ahead
    reading.mount.do(op.Release(reading.node, reading.handle))
    assert cancelled(reading.mount) == [first.id]
    reading.answer(second.id)
    assert not reading.asked(reading.ask(20 * CHUNK + 2 * PAGE, handle=other))
    reading.mount.do(op.Release(reading.node, other))
    assert not reading.t.readahead.files


def test_who_does_not_go_on_gives_up_what_is_held_for_him():
    reading = Reading()
    reading.run(2)
    reading.arrive()
    assert reading.t.next_due(reading.mount.now) == 100.0 + bounds.IDLE
    reading.mount.tick(bounds.IDLE - 1)
    assert not reading.asked(reading.ask(2 * PAGE))
    reading.mount.tick(1.0)
    assert reading.t.readahead.due == reading.mount.now + bounds.IDLE
    reading.mount.tick(bounds.IDLE)
    assert reading.asked(reading.ask(3 * PAGE))
    reading.mount.tick(bounds.IDLE)
    assert reading.t.readahead.due == 0.0


# Waiting.


def test_a_chunk_that_fails_is_no_readers_fault():
    reading = Reading()
    reading.run(2)
    number = reading.ask(2 * PAGE)
    first = reading.ahead[0]
    reading.answer(first.id, Errno("EIO"))
    assert reading.asked(number)
    reading.answer(number)
    assert reading.got(number) == bytes([2]) * PAGE


def test_a_client_that_says_nothing_is_given_its_time_and_no_more():
    reading = Reading()
    reading.run(2)
    number = reading.ask(2 * PAGE)
    reading.mount.tick(30.0)
    assert reading.asked(number)
    with contextlib.suppress(ProtocolError):
        reading.mount.tick(1.0)
    assert failed(reading.mount.answer(number)) == "ETIMEDOUT"


def test_who_waits_does_go_on_however_long_it_takes():
    reading = Reading()
    reading.run(2)
    number = reading.ask(2 * PAGE)
    reading.mount.tick(bounds.IDLE + 1)
    assert not cancelled(reading.mount)
    reading.arrive()
    assert reading.got(number) == bytes([2]) * PAGE


def test_chunks_that_are_dropped_while_others_are_too_late():
    """The first that is told so may bring about that the others are wanted by nobody."""
    reading = Reading()
    reading.run(2)
    reading.ask(2 * PAGE)
    assert len(reading.ahead) > 1
    again = reading.t.again

    def close(call):
        again(call)
        reading.t.readahead.changed(reading.t, (7, 21, 0o100000))

    reading.t.again = close
    reading.mount.tick(30.0)
    assert not reading.t.readahead.files[(7, 21, 0o100000)].readers[0].chunks


def test_a_signal_ends_the_waiting():
    reading = Reading()
    reading.run(2)
    number = reading.ask(2 * PAGE)
    reading.mount.interrupt(number)
    reading.mount.tick(INTERRUPT_GRACE)
    assert failed(reading.mount.answer(number)) == "EINTR"
    reading.arrive()
    assert len(reading.mount.answers(number)) == 1
    assert not reading.t.readahead._came


def test_a_client_that_is_away_has_nothing_ahead():
    reading = Reading()
    reading.run(2)
    reading.arrive()
    reading.t.suspend(reading.mount.now)
    reading.mount.gather()
    assert not reading.is_answered(reading.ask(2 * PAGE))


def test_more_data_than_was_asked_for_breaks_the_protocol():
    reading = Reading()
    reading.run(2)
    with pytest.raises(ProtocolError):
        reading.answer(reading.ahead[0].id, bytes(CHUNK + 1))


def test_a_short_chunk_does_not_keep_a_long_message():
    reading = Reading(watched=False)
    start = SIZE - CHUNK
    for page in range(2):
        reading.answer(reading.ask(start + page * PAGE))
    (ask,) = reading.ahead
    padding = wire.Notice(tuple(b"%d" % number for number in range(1000)))
    reading.done.add(ask.id)
    reading.mount.message(codec.encode(wire.Reply(ask.id, None, reading.data(ask)), padding))
    (reader,) = reading.t.readahead.files[(7, 21, 0o100000)].readers
    assert isinstance(reader.chunks[0].data.obj, bytes)
    assert len(reader.chunks[0].data.obj) == CHUNK - 2 * PAGE


# Whatever happens.

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(1, 6)),
        st.tuples(st.just("jump"), st.integers(0, SIZE // PAGE - 1)),
        st.tuples(st.just("work"), st.integers(0, 9)),
        st.tuples(st.just("deliver"), st.integers(1, 3)),
        st.tuples(st.just("theirs"), st.just(0)),
        st.tuples(st.just("mine"), st.just(0)),
        st.tuples(st.just("wait"), st.floats(0.0, 1.5)),
    ),
    max_size=80,
)


class World:
    """A client that works on requests in any order and tells of changes, and a reader. Each change fills the file with the next
    number, so that each byte says when it was read."""

    def __init__(self, watched):
        self.reading = Reading(watched=watched)
        self.watched = watched
        self.version = 0
        self.changed_at = [-math.inf]
        """When each version came to be."""
        self.known = 0
        """The version that the server has been told of, by a notice or by its own write's answer."""
        self.position = 0
        self.begun: dict[int, tuple[float, int]] = {}
        self.todo: list[wire.Ask] = []
        self.channel: list[tuple[bytes, int]] = []
        self.seen = 0

    def take(self):
        log = self.reading.mount.log
        for effect in log[self.seen :]:
            if isinstance(effect, effects.Send) and isinstance(effect.frame, wire.Ask):
                self.todo.append(effect.frame)
            elif isinstance(effect, effects.Answer) and effect.request in self.begun:
                self.check(effect)
        self.seen = len(log)

    def check(self, effect):
        came, known = self.begun.pop(effect.request)
        data = bytes(effect.answer.data)
        assert data
        oldest = known
        if not self.watched:
            oldest = max(version for version, when in enumerate(self.changed_at) if when <= came - bounds.BELIEVED)
            oldest = max(oldest, known)
        assert {*data} <= {version % 256 for version in range(oldest, self.version + 1)}

    def change(self):
        self.version += 1
        self.changed_at.append(self.reading.mount.now)

    def step(self, kind, value):
        mount = self.reading.mount
        if kind == "jump":
            self.position = value * PAGE
        elif kind == "read" and self.position < SIZE:
            size = min(value * PAGE, SIZE - self.position)
            mount.number += 2
            self.begun[mount.number] = (mount.now, self.known)
            mount.number -= 2
            self.reading.ask(self.position, size)
            self.position += size
        elif kind == "work" and self.todo:
            self.work(self.todo.pop(value % len(self.todo)))
        elif kind == "deliver":
            for _ in range(min(value, len(self.channel))):
                message, version = self.channel.pop(0)
                self.known = max(self.known, version)
                mount.message(message)
        elif kind == "theirs":
            self.change()
            if self.watched:
                found = attributes(21, size=SIZE, mtime=100 + self.version)
                self.channel.append((codec.encode(wire.Notice((b"f",), (found,))), self.version))
        elif kind == "mine":
            mount.ask(op.Write(self.reading.node, self.reading.handle, 0, b"x"))
        elif kind == "wait":
            mount.tick(value)
        self.take()

    def work(self, ask):
        if ask.operation == "write":
            self.change()
            self.channel.append((codec.encode(wire.Reply(ask.id, None, 1)), self.version))
        else:
            data = bytes([self.version % 256]) * max(0, min(ask.arguments.size, SIZE - ask.arguments.offset))
            self.channel.append((codec.encode(wire.Reply(ask.id, None, data)), 0))


@pytest.mark.parametrize("watched", [True, False])
@given(steps=STEPS)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_nobody_reads_what_was_known_to_have_changed(watched, steps):
    with small():
        world = World(watched)
        for step in steps:
            world.step(*step)
        while world.todo or world.channel:
            world.step("work", 0)
            world.step("deliver", 1)
        assert not world.begun
        assert world.reading.t.readahead._sum == sum(
            CHUNK for file in world.reading.t.readahead.files.values() for reader in file.readers for _ in reader.chunks
        )
