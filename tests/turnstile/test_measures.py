"""turnstile/measures.py: what is counted, and where the time went."""

import itertools

import pytest
from harness.sansio import CALLER, EVERYTHING, ROOT, Errno, Mount, attributes
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError, errno_number
from fuse_gated.gate.tenant import Limits as TenantLimits
from fuse_gated.gate.verdict import Rule
from fuse_gated.operations import Count, Data, Done, Failed
from fuse_gated.turnstile import measures
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.figures import Figures
from fuse_gated.turnstile.limits import Limits
from fuse_gated.turnstile.measures import AT, BUCKETS, LAST, MAGIC, OPERATIONS, SIZE, Measures
from fuse_gated.turnstile.table import TABLE
from fuse_gated.wire import codec, messages


class Session:
    """Measures with a clock of its own."""

    def __init__(self, words: "memoryview[int] | None" = None, slow_after: float | None = None) -> None:
        self.now = 1000.0
        self.open = 0
        self.block = words if words is not None else memoryview(bytearray(SIZE)).cast("Q")
        self.measures = Measures(lambda: self.now, self.block, slow_after=slow_after)

    def call(self, operation: str = "getattr", number: int = 2) -> Call:
        call = Call(number, CALLER, op.Getattr(ROOT, None), operation, self.now)
        self.open += 1
        return call

    def asks(self, call: Call) -> None:
        """As the desk does."""
        self.measures.asked_again(call)
        call.asked = self.now

    def replies(self, call: Call, usec: int, now: float | None = None) -> None:
        call.back, call.usec = now or self.now, usec

    def passes(self, seconds: float) -> None:
        self.now += seconds

    @property
    def figures(self) -> Figures:
        self.open -= len(self.measures.ends)
        self.block[measures.IN_FLIGHT] = self.open
        self.measures.fold()
        return Figures.read(self.block.tobytes())

    @property
    def only(self):
        (operation,) = self.figures.operations
        return operation


def bucket(seconds: float) -> int:
    return min((int(seconds * 1e9) >> measures.SHIFT).bit_length(), LAST)


def counted(histogram) -> dict[int, int]:
    return {number: count for number, count in enumerate(histogram) if count}


def test_every_operation_has_its_words():
    assert {row.name for row in TABLE.values()} == set(OPERATIONS) == set(AT)
    spans = sorted((at, at + measures.OPERATION_WORDS) for at in AT.values())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert measures.REMOTE + BUCKETS <= measures.OPERATION_WORDS
    assert spans[-1][1] <= measures.WORDS
    assert spans[0][0] == measures.HEADER >= measures.WHOLE + BUCKETS


def test_an_operation_that_we_answer_ourselves():
    session = Session()
    call = session.call("statfs")
    assert session.figures.in_flight == 1
    session.passes(0.001)
    assert session.measures.ended(call, Done()) is False
    assert session.figures.in_flight == 0
    shown = session.only
    assert (shown.name, shown.count, shown.errors, shown.faults, shown.asked) == ("statfs", 1, 0, 0, 0)
    assert counted(shown.whole) == counted(shown.gate) == counted(session.figures.whole) == {bucket(0.001): 1}
    assert counted(shown.held) == counted(shown.remote) == {}
    assert shown.gate_seconds == pytest.approx(0.001, abs=1e-8)


def test_where_the_time_went():
    session = Session()
    call = session.call()
    session.passes(0.001)
    session.asks(call)
    session.passes(0.020)
    session.replies(call, 5000)
    session.passes(0.002)
    session.asks(call)
    session.passes(0.030)
    session.replies(call, 7000)
    session.measures.ended(call, Done())
    shown = session.only
    assert counted(shown.whole) == {bucket(0.053): 1}
    assert counted(shown.gate) == {bucket(0.003): 1}
    assert counted(shown.remote) == {bucket(0.050): 1}
    assert shown.asked == 1
    assert shown.remote_seconds == pytest.approx(0.050)
    assert shown.client_seconds == pytest.approx(0.012)
    assert shown.gate_seconds == pytest.approx(0.003)
    assert shown.seconds == pytest.approx(0.053)


@pytest.mark.parametrize(("usec", "client"), [(0, 0.0), (-5, 0.0), (10**12, 0.02), (2000, 0.002)])
def test_the_client_s_word_goes_no_further_than_the_time_there_was(usec, client):
    session = Session()
    call = session.call()
    session.asks(call)
    session.passes(0.02)
    session.replies(call, usec)
    session.measures.ended(call, Done())
    assert session.only.client_seconds == pytest.approx(client)


def test_a_reply_that_is_older_than_its_question():
    """The loop's time is as old as its turn."""
    session = Session()
    call = session.call()
    session.asks(call)
    session.replies(call, 5, session.now - 1)
    session.measures.ended(call, Done())
    assert (session.only.asked, session.only.remote_seconds, session.only.gate_seconds) == (0, 0, 0)


def test_who_is_not_waited_for_any_more_was_with_the_client_until_then():
    session = Session()
    call = session.call()
    session.asks(call)
    session.passes(0.5)
    session.measures.ended(call, Failed(110))
    assert counted(session.only.remote) == {bucket(0.5): 1}


def test_who_gives_up_while_a_limit_keeps_it_back():
    session = Session()
    call = session.call()
    session.measures.keep(call)
    session.passes(0.3)
    session.measures.ended(call, Failed(4))
    assert (session.only.held_seconds, session.figures.waiting) == (pytest.approx(0.3), 0)


def test_a_clock_of_which_a_turn_is_ahead():
    session = Session()
    call = session.call()
    session.passes(-0.1)
    session.measures.ended(call, Done())
    assert counted(session.only.whole) == {0: 1}


def test_our_own_time_is_never_below_zero():
    session = Session()
    call = session.call()
    call.spent = 0.5, 0.0, 0.0
    session.passes(0.1)
    session.measures.ended(call, Done())
    assert counted(session.only.gate) == {0: 1}
    assert session.only.gate_seconds == 0


def test_what_is_held_back():
    session = Session()
    call = session.call("read")
    session.measures.keep(call)
    session.measures.keep(call)
    assert session.figures.waiting == 1
    session.passes(0.25)
    session.measures.let_through(call)
    session.measures.let_through(call)
    assert session.figures.waiting == 0
    session.passes(0.01)
    session.measures.ended(call, Data(b"12345"))
    shown = session.only
    assert counted(shown.held) == {bucket(0.25): 1}
    assert counted(shown.gate) == {bucket(0.01): 1}
    assert shown.held_seconds == pytest.approx(0.25)
    assert (shown.bytes, session.figures.bytes_read) == (5, 5)


def test_what_waits_for_room_on_the_connection():
    session = Session()
    call, other = session.call(), session.call(number=4)
    session.asks(call)
    session.measures.waits_for_room(call)
    session.passes(0.1)
    session.measures.has_room(other.id)
    assert session.figures.waiting == 1
    session.measures.has_room(call.id)
    assert session.figures.waiting == 0
    session.passes(0.02)
    session.replies(call, 0)
    session.measures.ended(call, Done())
    assert counted(session.only.held) == {bucket(0.1): 1}
    assert counted(session.only.remote) == {bucket(0.02): 1}
    session.measures.ended(other, Done())


def test_what_is_given_up_while_it_waits_for_room():
    session = Session()
    call = session.call()
    session.asks(call)
    session.measures.waits_for_room(call)
    session.passes(0.1)
    session.measures.ended(call, Failed(4))
    session.measures.has_room(call.id)
    assert counted(session.only.held) == {bucket(0.1): 1}
    assert counted(session.only.remote) == {}
    assert session.figures.waiting == 0


@pytest.mark.parametrize(
    ("errno", "faults"), [("ENOENT", 0), ("EACCES", 0), ("EIO", 1), ("ETIMEDOUT", 1), ("ENOTCONN", 1), ("ESTALE", 1)]
)
def test_errors_and_faults(errno, faults):
    session = Session()
    session.measures.ended(session.call("lookup"), Failed(errno_number(errno)))
    session.measures.ended(session.call("lookup"), Done())
    assert (session.only.count, session.only.errors, session.only.faults) == (2, 1, faults)
    assert (session.figures.errors, session.figures.faults) == (1, faults)


def test_bytes_count_where_they_are_moved():
    session = Session()
    session.measures.ended(session.call("read"), Data(b"abc"))
    session.measures.ended(session.call("read"), Done())
    session.measures.ended(session.call("getxattr"), Data(b"not a file's"))
    session.measures.ended(session.call("write"), Count(7))
    session.measures.ended(session.call("copy_file_range"), Count(11))
    figures = session.figures
    assert (figures.bytes_read, figures.bytes_written, figures.bytes_copied) == (3, 7, 11)
    assert {one.name: one.bytes for one in figures.operations} == {"read": 3, "getxattr": 0, "write": 7, "copy_file_range": 11}


@pytest.mark.parametrize(
    ("seconds", "number"), [(0.0, 0), (4.0e-6, 0), (4.2e-6, 1), (1.0, 18), (17.1, 22), (17.2, 23), (1e6, 23)]
)
def test_a_time_s_bucket(seconds, number):
    session = Session()
    call = session.call()
    call.asked, call.back, call.usec = 1.0, 1.0 + seconds, 0
    call.started -= seconds
    session.measures.ended(call, Done())
    held = session.call()
    held.spent = seconds, 0.0, 0.0
    held.started -= seconds
    session.measures.ended(held, Done())
    assert counted(session.only.whole) == {number: 2}
    if seconds:
        assert counted(session.only.remote) == counted(session.only.held) == {number: 1}
        assert number == 0 or measures.BOUNDS[number - 1] <= seconds
        assert number == LAST or seconds < measures.BOUNDS[number]


@pytest.mark.parametrize(("limit", "slow"), [(None, False), (5.0, True), (6.0, False)])
def test_what_is_slow(limit, slow):
    session = Session(slow_after=limit)
    call = session.call()
    session.passes(5.5)
    session.measures.asked_again(call)
    assert session.measures.ended(call, Done()) is slow
    if slow:
        assert session.measures.slow(call) == pytest.approx((5.5, 0.0, 0.0, 0.0))
    assert session.figures.slow == slow


def test_what_else_is_counted():
    session = Session()
    session.measures.refused()
    session.measures.untold()
    session.measures.cached(3, 1)
    session.measures.cached(5, 1)
    # Made anew, it counts from 0.
    session.measures.cached(1, 1)
    figures = session.figures
    assert (figures.refused, figures.untold, figures.cache_hits, figures.cache_misses) == (1, 1, 6, 1)
    session.measures.cached(1, 0)
    assert session.figures.cache_misses == 1


def test_very_many_are_counted_before_they_are_too_many():
    session = Session()
    for number in range(measures.FOLD_AT):
        session.measures.ended(session.call(number=2 * number), Done())
    assert session.measures.ends == []
    assert session.figures.count == measures.FOLD_AT


ANSWERS = [Done(), Failed(2), Failed(5), Data(b"12345"), Count(7)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["getattr", "read", "write", "open"]),
            st.one_of(st.floats(-1, 40), st.sampled_from([0.0, *measures.BOUNDS])),
            st.sampled_from(ANSWERS),
        ),
        max_size=20,
    )
)
def test_what_is_answered_here_alone_is_counted_as_everything_else(ended):
    """There is a shorter way for it."""
    short, long = Session(), Session()
    for operation, seconds, answer in ended:
        for session in (short, long):
            call = session.call(operation)
            call.started -= seconds
            if session is long:
                call.spent = 0.0, 0.0, 0.0
            session.measures.ended(call, answer)
    assert short.figures.operations == long.figures.operations
    assert short.block.tobytes() == long.block.tobytes()


def test_what_was_written_is_not_kept_for_it():
    session = Session()
    call = session.call("write")
    call.request = op.Write(ROOT, 5, 0, memoryview(b"data"), 0, 0)
    session.measures.ended(call, Count(4))
    assert (call.request.data, call.request.handle, session.figures.bytes_written) == (b"", 5, 4)


# A worker after another.


def test_a_successor_counts_on():
    first = Session()
    first.measures.ended(first.call(), Done())
    lost = first.call(number=4)
    first.measures.keep(lost)
    assert (first.figures.in_flight, first.figures.waiting) == (1, 1)
    second = Session(first.block)
    assert (second.figures.count, second.figures.in_flight, second.figures.waiting) == (1, 0, 0)
    second.measures.ended(second.call(), Done())
    assert (second.figures.count, second.figures.in_flight) == (2, 0)


@pytest.mark.parametrize("left", ["another form", "too much"])
def test_nobody_stumbles_over_what_an_earlier_worker_left(left):
    words = memoryview(bytearray(b"\xff" * SIZE)).cast("Q")
    if left == "too much":
        words[0] = MAGIC
    session = Session(words)
    assert words[0] == MAGIC
    session.measures.ended(session.call(), Done())
    assert session.figures.count == 1


# The hooks in the turnstile.


def figures_of(mount: Mount) -> Figures:
    mount.t.count_ended()
    return Figures.read(mount.t.measures.words.tobytes())


def test_a_session_counts_its_operations():
    mount = Mount([Rule("/secret", hide=True), *EVERYTHING])
    mount.do(op.Lookup(ROOT, b"f"), attributes(21))
    mount.do(op.Lookup(ROOT, b"none"), Errno("ENOENT"))
    mount.do(op.Symlink(ROOT, b"secret", b"target"))
    mount.do(op.Statfs(ROOT), Errno("EIO"))
    shown = {one.name: (one.count, one.errors, one.faults) for one in figures_of(mount).operations}
    assert shown == {"lookup": (2, 1, 0), "symlink": (1, 1, 0), "statfs": (1, 1, 1)}
    assert figures_of(mount).refused == 1
    assert figures_of(mount).in_flight == 0


def test_the_time_at_the_client_counts_from_the_asking_to_the_reply():
    mount = Mount()
    number = mount.ask(op.Lookup(ROOT, b"f"))
    mount.tick(2.0)
    mount.message(codec.encode(messages.Reply(number, None, attributes(21), 500_000)))
    (shown,) = figures_of(mount).operations
    assert (shown.remote_seconds, shown.client_seconds, shown.gate_seconds) == pytest.approx((2.0, 0.5, 0.0))


def test_what_one_reply_says_of_itself_is_not_the_next_one_s():
    mount = Mount(bounds=Limits(deadline=3.0))
    first = mount.ask(op.Lookup(ROOT, b"f"))
    mount.ask(op.Lookup(ROOT, b"g"))
    mount.tick(1.0)
    mount.message(codec.encode(messages.Reply(first, None, attributes(21), 500_000)))
    mount.tick(4.0)
    (shown,) = figures_of(mount).operations
    assert (shown.count, shown.faults, shown.client_seconds) == (2, 1, pytest.approx(0.5))


def test_a_rate_s_wait_is_held():
    mount = Mount(limits=TenantLimits(operations={"other": 1.0}))
    mount.do(op.Lookup(ROOT, b"f"), attributes(21))
    number = mount.ask(op.Lookup(ROOT, b"g"))
    assert figures_of(mount).waiting == 1
    mount.tick(1.0)
    mount.reply(number, attributes(22))
    (shown,) = figures_of(mount).operations
    assert (figures_of(mount).waiting, shown.held_seconds) == (0, pytest.approx(1.0))


def test_the_wait_for_room_is_held():
    mount = Mount(bounds=Limits(max_in_flight=1))
    first = mount.ask(op.Lookup(ROOT, b"f"))
    second = mount.ask(op.Lookup(ROOT, b"g"))
    assert figures_of(mount).waiting == 1
    mount.tick(1.0)
    mount.reply(first, attributes(21))
    assert figures_of(mount).waiting == 0
    mount.tick(2.0)
    mount.reply(second, attributes(22))
    (shown,) = figures_of(mount).operations
    assert (shown.held_seconds, shown.remote_seconds) == pytest.approx((1.0, 3.0))


def test_what_finds_no_room_until_its_deadline_was_never_with_the_client():
    mount = Mount(bounds=Limits(max_in_flight=1, deadline=3.0))
    mount.ask(op.Lookup(ROOT, b"f"))
    mount.tick(1.0)
    mount.ask(op.Statfs(ROOT))
    mount.message(codec.encode(messages.Notice((b"x",))))
    mount.tick(2.5)
    # Nothing was answered, and the second one has had no room for all its time.
    with pytest.raises(ProtocolError):
        mount.tick(1.0)
    mount.t.lost(mount.now)
    shown = {one.name: one for one in figures_of(mount).operations}
    assert (shown["lookup"].asked, shown["statfs"].asked) == (1, 0)
    assert (shown["statfs"].held_seconds, shown["statfs"].remote_seconds) == pytest.approx((mount.now - 101.0, 0.0))
    assert figures_of(mount).waiting == 0


def test_a_reply_to_what_still_waits_for_room_counts_nothing():
    """It fails there, and was never with the client."""
    session = Session()
    call = session.call()
    session.asks(call)
    session.measures.waits_for_room(call)
    session.passes(1.0)
    session.replies(call, 5)
    session.measures.ended(call, Failed(110))
    assert (session.only.asked, session.only.held_seconds) == (0, pytest.approx(1.0))


def test_what_cannot_be_told_is_counted():
    mount = Mount()
    number = mount.ask(op.Mkdir(ROOT, b"d", 0o755, 0))
    mount.t.withdraw(number)
    mount.t.silenced = True
    mount.do(op.Lookup(ROOT, b"f"))
    assert figures_of(mount).untold == 2


# Slow ones.


def slow(mount: Mount, name: bytes, seconds: float = 6.0) -> None:
    number = mount.ask(op.Lookup(ROOT, name))
    mount.now += seconds
    mount.reply(number, attributes(int.from_bytes(name, "big")))


def patient(**bounds) -> Mount:
    mount = Mount(bounds=Limits(deadline=60.0, **bounds))
    mount.t.measures = Measures(lambda: mount.t.now, slow_after=5.0)
    return mount


def test_a_slow_operation_is_told_after_its_answer():
    mount = patient()
    number = mount.ask(op.Lookup(ROOT, b"f"))
    mount.now += 6.0
    mount.message(codec.encode(messages.Reply(number, None, attributes(21), 5_500_000)))
    assert mount.story[-2:] == ["answer Entry", "tell slow-operation lookup /f"]
    (record,) = [record for record in mount.records if record.kind == "slow-operation"]
    assert (record.duration_usec, record.gate_usec, record.held_usec, record.remote_usec, record.client_usec) == (
        6_000_000, 0, 0, 6_000_000, 5_500_000,
    )  # fmt: skip
    assert (record.uid, record.pid, record.count) == (CALLER.uid, CALLER.pid, None)
    assert record.detail == "gate 0 s, held 0 s, wire and client 6 s (the client itself 5.5 s)"


def test_of_very_many_slow_ones_a_few_are_told_and_the_rest_counted():
    mount = patient()
    numbers = [mount.ask(op.Lookup(ROOT, b"%d" % number)) for number in range(10)]
    mount.now += 6.0
    for number in numbers:
        mount.reply(number, attributes(1000 + number))
    told = [record for record in mount.records if record.kind == "slow-operation"]
    assert [record.count for record in told] == [None, None, None]
    assert figures_of(mount).slow == 10
    slow(mount, b"x")
    told = [record for record in mount.records if record.kind == "slow-operation"]
    assert [record.count for record in told[3:]] == [8]


def test_who_waits_for_a_lock_is_not_slow():
    mount = patient()
    node = mount.lookup(b"f")
    handle = mount.open(node)
    number = mount.ask(op.Setlk(node, handle, 1, 0, 9, 1, 4321, True, False))
    mount.now += 6.0
    mount.reply(number)
    assert figures_of(mount).slow == 1
    assert not [record for record in mount.records if record.kind == "slow-operation"]


def test_who_waits_for_what_another_asked_for_is_with_the_client_as_well():
    session = Session()
    call = session.call()
    session.passes(0.001)
    session.measures.waits(call)
    session.passes(0.02)
    session.replies(call, 4000)
    session.passes(0.001)
    session.measures.ended(call, Done())
    assert (session.only.remote_seconds, session.only.client_seconds) == pytest.approx((0.02, 0.004))
