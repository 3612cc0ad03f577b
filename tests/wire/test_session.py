"""wire/session.py: what may come when, how much is with the client at once, and what becomes of late replies."""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fuse_gated.errors import ProtocolError
from fuse_gated.wire import codec
from fuse_gated.wire.messages import Ask, Broken, Hello, Notice, Offer, Read, Reply, Setlk, Unlink
from fuse_gated.wire.session import MAX_HELLO, Pending, Session, read_hello


class Peer:
    """A session with what it sent and whom it called back."""

    def __init__(self, max_in_flight=2, max_bytes=100):
        self.frames = []
        self.heard = []
        self.late = []
        self.session = Session(
            self.frames.append,
            lambda pending, result: self.late.append((pending.operation, pending.arguments, result)),
            lambda notice: self.heard.append(notice.paths),
            max_in_flight=max_in_flight,
            max_bytes_in_flight=max_bytes,
        )

    def ask(self, number, arguments=None, size=0, deadline=30.0):
        def answered(result):
            self.heard.append((number, result))

        def failed(errno):
            self.heard.append((number, errno))

        arguments = arguments or Unlink(b"f%d" % number)
        self.session.ask(Pending(number, arguments, deadline, answered, failed, size))

    def reply(self, *replies):
        return self.session.received(codec.encode(*replies))

    @property
    def sent(self):
        return [(type(frame).__name__, frame.id) for frame in self.frames]

    @property
    def asked(self):
        return [frame.id for frame in self.frames if isinstance(frame, Ask)]


@pytest.fixture
def peer():
    return Peer()


def test_a_request_is_sent_and_its_reply_is_handed_to_who_asked(peer):
    peer.ask(2)
    assert peer.frames == [Ask(2, "unlink", Unlink(b"f2"))]
    assert (peer.session.in_flight, peer.session.busy) == (1, True)
    peer.reply(Reply(2, None))
    assert peer.heard == [(2, None)]
    assert (peer.session.in_flight, peer.session.busy) == (0, False)


def test_replies_may_come_in_any_order(peer):
    peer.ask(2, Read(1, 0, 5))
    peer.ask(4)
    peer.reply(Reply(4, None), Reply(2, None, b"hello"))
    assert peer.heard == [(4, None), (2, b"hello")]


@pytest.mark.parametrize(
    ("told", "heard"),
    [("ENOENT", "ENOENT"), ("EDEADLOCK", "EDEADLK"), ("ENOTSUP", "EOPNOTSUPP"), ("EWHATEVER", "EIO"), ("", "EIO")],
)
def test_an_errno_is_one_of_this_machines_whatever_the_client_says(peer, told, heard):
    peer.ask(2)
    peer.reply(Reply(2, told))
    assert peer.heard == [(2, heard)]


def test_an_id_that_is_in_flight_cannot_be_asked_again(peer):
    peer.ask(2)
    with pytest.raises(ValueError, match="in flight already"):
        peer.ask(2)


def test_own_ids_are_odd_and_never_the_same(peer):
    own = [peer.session.own_id() for _ in range(3)]
    assert len(set(own)) == 3
    assert all(peer.session.is_own(number) for number in own)
    assert not peer.session.is_own(4)


# Bounds.


def test_no_more_requests_are_in_flight_than_allowed_and_the_rest_follow_in_order(peer):
    for number in (2, 4, 6, 8):
        peer.ask(number)
    assert (peer.asked, peer.session.in_flight, peer.session.waiting) == ([2, 4], 2, 2)
    peer.reply(Reply(4, None))
    assert (peer.asked, peer.session.waiting) == ([2, 4, 6], 1)
    peer.reply(Reply(2, None), Reply(6, None))
    assert (peer.asked, peer.session.waiting) == ([2, 4, 6, 8], 0)


def test_no_more_bytes_are_in_flight_than_allowed():
    peer = Peer(max_in_flight=10, max_bytes=100)
    peer.ask(2, size=60)
    peer.ask(4, size=40)
    peer.ask(6, size=1)
    peer.ask(8)
    assert peer.asked == [2, 4], "a request without data does not overtake one that waits"
    peer.reply(Reply(4, None))
    assert peer.asked == [2, 4, 6, 8]


def test_what_is_larger_than_the_bound_goes_alone(peer):
    peer.ask(2, size=1000)
    peer.ask(4)
    peer.ask(6, size=1)
    assert peer.asked == [2], "nothing goes beside it"
    peer.reply(Reply(2, None))
    assert peer.asked == [2, 4, 6]


def test_whether_a_request_would_wait_is_known_before(peer):
    assert not peer.session.would_wait(100)
    assert peer.session.would_wait(101)
    peer.ask(2, size=60)
    assert not peer.session.would_wait(40)
    assert peer.session.would_wait(41)
    peer.ask(4)
    assert peer.session.would_wait(0), "both places are taken"
    peer.ask(6)
    peer.reply(Reply(2, None))
    assert peer.session.would_wait(0)
    peer.reply(Reply(4, None))
    assert not peer.session.would_wait(0)


def test_requests_are_counted_by_their_operation(peer):
    peer.ask(2)
    peer.ask(4, Read(1, 0, 5))
    peer.ask(6, Read(1, 0, 5))
    assert peer.session.count("read") == 2
    assert peer.session.count("read", "unlink") == 3
    assert peer.session.count("write") == 0


# What is out of order.


@pytest.mark.parametrize("number", [3, 0, -5, 2**64 - 1])
def test_a_reply_to_what_was_never_asked_is_refused(peer, number):
    peer.ask(2)
    with pytest.raises(ProtocolError, match=f"a reply to request {number}, which is not in flight") as caught:
        peer.reply(Reply(number, None))
    assert caught.value.close_code == 1008


def test_a_second_reply_is_refused(peer):
    peer.ask(2)
    with pytest.raises(ProtocolError, match="not in flight"):
        peer.reply(Reply(2, None), Reply(2, None))
    assert peer.heard == [(2, None)]


def test_a_reply_to_what_was_not_sent_yet_is_refused(peer):
    for number in (2, 4, 6):
        peer.ask(number)
    with pytest.raises(ProtocolError, match="request 6, which is not in flight"):
        peer.reply(Reply(6, None))


def test_a_second_hello_is_refused(peer):
    with pytest.raises(ProtocolError, match="second hello"):
        peer.reply(Hello(Offer(export="src")))


def test_a_result_of_another_kind_is_refused(peer):
    peer.ask(2)
    with pytest.raises(ProtocolError, match="malformed result of unlink"):
        peer.reply(Reply(2, None, b"text"))
    assert peer.heard == []


@pytest.mark.parametrize("message", [b"", b"\x91", b"\x91\x93\xa5reply\x02\xa1\xff", b"\x91\x94\xa5reply\x02\xc0\x81\xa1a\x01"])
def test_a_malformed_message_is_refused_and_nobody_is_called(peer, message):
    peer.ask(2)
    with pytest.raises(ProtocolError, match="malformed"):
        peer.session.received(message)
    assert peer.heard == []


def test_notices_and_replies_are_taken_in_their_order(peer):
    peer.ask(2)
    peer.reply(Notice((b"a",)), Reply(2, None), Notice((b"b", b"c")))
    assert peer.heard == [(b"a",), (2, None), (b"b", b"c")]


def test_a_lease_that_is_wanted_is_told(peer):
    peer.ask(2)
    peer.reply(Broken(1))  # Nobody has said yet what is to become of that.
    peer.session.on_broken = peer.heard.append
    peer.reply(Broken(7), Reply(2, None), Broken(8))
    assert peer.heard == [7, (2, None), 8]


# Giving up.


def test_a_request_that_waits_here_is_dropped_and_never_sent(peer):
    for number in (2, 4, 6, 8):
        peer.ask(number)
    assert not peer.session.give_up(6)
    peer.reply(Reply(2, None), Reply(4, None))
    assert peer.sent == [("Ask", 2), ("Ask", 4), ("Ask", 8)]


def test_giving_up_what_was_too_large_makes_room_for_those_behind_it():
    peer = Peer(max_in_flight=10, max_bytes=100)
    peer.ask(2, size=60)
    peer.ask(4, size=60)
    peer.ask(6, size=40)
    assert peer.asked == [2]
    peer.session.give_up(4)
    assert peer.asked == [2, 6]


def crowded_peer():
    """One request is with the client, and more bytes wait behind it than may be in flight."""
    peer = Peer(max_in_flight=1, max_bytes=100)
    for number in (2, 4):
        peer.ask(number, size=100)
    assert not peer.session.crowded, "as many as may be in flight"
    peer.ask(6, size=1)
    assert peer.session.crowded
    return peer


def test_it_is_crowded_until_what_waits_is_sent():
    peer = crowded_peer()
    peer.reply(Reply(2, None))
    assert (peer.asked, peer.session.crowded) == ([2, 4], False)


def test_it_is_crowded_until_what_waits_is_given_up():
    peer = crowded_peer()
    peer.session.give_up(2)
    assert peer.session.crowded, "it is with the client"
    peer.session.give_up(4)
    assert not peer.session.crowded


def test_who_is_abandoned_is_not_crowded():
    peer = crowded_peer()
    peer.session.abandon()
    peer.ask(8, size=100)
    peer.ask(10, size=100)
    assert not peer.session.crowded


def test_a_request_that_is_with_the_client_is_cancelled_and_keeps_its_place(peer):
    for number in (2, 4, 6):
        peer.ask(number)
    assert peer.session.give_up(2)
    assert peer.sent == [("Ask", 2), ("Ask", 4), ("Cancel", 2)]
    assert peer.session.in_flight == 2
    assert peer.session.get(2) is None
    waited_for = peer.session.get(4)
    assert waited_for is not None
    assert waited_for.id == 4
    assert not peer.session.give_up(2), "once is enough"
    peer.reply(Reply(2, "EINTR"))
    assert (peer.heard, peer.late, peer.asked) == ([], [], [2, 4, 6])


def test_what_nobody_asked_cannot_be_given_up_or_cancelled(peer):
    assert not peer.session.give_up(2)
    assert not peer.session.cancel(2)


def test_a_late_success_is_told_with_what_was_asked(peer):
    lock = Setlk(5, 9, 0, 10, 1)
    peer.ask(2, lock)
    peer.session.give_up(2)
    peer.reply(Reply(2, None))
    assert peer.late == [("setlk", lock, None)]
    assert peer.heard == []


def test_a_late_result_of_another_kind_is_refused_too(peer):
    peer.ask(2)
    peer.session.give_up(2)
    with pytest.raises(ProtocolError, match="malformed result"):
        peer.reply(Reply(2, None, 5))


def test_a_request_can_be_cancelled_and_its_answer_waited_for(peer):
    for number in (2, 4, 6):
        peer.ask(number)
    assert peer.session.cancel(2)
    assert not peer.session.cancel(6), "it was never sent"
    assert peer.sent[-1] == ("Cancel", 2)
    peer.reply(Reply(2, None))
    assert peer.heard == [(2, None)]


def test_those_are_overdue_whose_deadline_has_passed_and_that_somebody_waits_for(peer):
    peer.ask(2, deadline=10.0)
    peer.ask(4, deadline=10.0)
    peer.ask(6, deadline=10.0)
    peer.session.give_up(4)
    assert peer.session.overdue(9.9) == []
    assert [pending.id for pending in peer.session.overdue(10.0)] == [2, 6]


def test_it_is_clogged_when_others_wait_behind_what_was_all_given_up(peer):
    for number in (2, 4):
        peer.ask(number)
        peer.session.give_up(number)
    assert not peer.session.clogged, "nothing waits"
    peer.ask(6)
    assert peer.session.clogged
    peer.reply(Reply(4, "EINTR"))
    peer.ask(8)
    assert not peer.session.clogged, "one of those in flight may still be answered"


def test_what_is_never_given_up_hides_nobody_who_answers_nothing(peer):
    peer.ask(2, deadline=math.inf)
    peer.ask(4)
    peer.ask(6)
    assert not peer.session.clogged, "nothing was given up"
    peer.session.give_up(4)
    assert peer.session.clogged


# Taking back.


def test_a_withdrawn_request_leaves_its_place_to_the_next(peer):
    for number in (2, 4, 6):
        peer.ask(number, size=50)
    peer.session.withdraw(2)
    assert peer.asked == [2, 4, 6]
    assert peer.session.in_flight == 2
    with pytest.raises(ProtocolError, match="not in flight"):
        peer.reply(Reply(2, None))


def test_a_request_that_was_given_up_can_be_withdrawn(peer):
    peer.ask(2)
    peer.session.give_up(2)
    peer.session.withdraw(2)
    peer.ask(4)
    peer.ask(6)
    peer.ask(8)
    assert not peer.session.clogged
    assert peer.asked == [2, 4, 6]


def test_what_was_not_handed_out_cannot_be_withdrawn(peer):
    for number in (2, 4, 6):
        peer.ask(number)
    peer.session.withdraw(6)
    peer.session.withdraw(100)
    peer.reply(Reply(2, None))
    assert peer.asked == [2, 4, 6]


def test_an_abandoned_session_expects_nothing_and_calls_nobody(peer):
    for number in (2, 4, 6):
        peer.ask(number)
    peer.session.abandon()
    assert (peer.session.busy, peer.session.in_flight, peer.session.waiting) == (False, 0, 0)
    with pytest.raises(ProtocolError):
        peer.reply(Reply(2, None))
    assert (peer.heard, peer.asked) == ([], [2, 4])


# Hello.


def test_the_first_message_is_one_hello():
    offer = Offer(export="src", capabilities=("chown",))
    assert read_hello(codec.encode(Hello(offer))) == offer


@pytest.mark.parametrize(
    "message", [codec.encode(), codec.encode(Hello(Offer(export="a")), Hello(Offer(export="b"))), codec.encode(Reply(2, None))]
)
def test_anything_else_is_no_first_message(message):
    with pytest.raises(ProtocolError, match="must be one hello"):
        read_hello(message)


def test_a_hello_is_bounded_because_it_comes_from_a_stranger():
    long = codec.encode(Hello(Offer(export="src", capabilities=("x" * MAX_HELLO,))))
    with pytest.raises(ProtocolError, match=f"a hello of {len(long)} bytes") as caught:
        read_hello(long)
    assert caught.value.close_code == 1009


class Bounds(RuleBasedStateMachine):
    """Whatever happens in whatever order, the bounds hold, nobody is called twice, and nothing is forgotten."""

    def __init__(self):
        super().__init__()
        self.peer = Peer(max_in_flight=3, max_bytes=100)
        self.number = 0
        self.sizes = {}
        self.replied = set()
        self.given_up = set()
        self.dropped = set()

    def with_client(self):
        gone = self.replied | self.dropped
        return [number for number in self.peer.asked if number not in gone]

    @rule(size=st.integers(0, 120))
    def ask(self, size):
        self.number += 2
        self.sizes[self.number] = size
        self.peer.ask(self.number, size=size)

    @precondition(lambda self: self.with_client())
    @rule(data=st.data(), errno=st.sampled_from([None, "EIO"]))
    def reply(self, data, errno):
        number = data.draw(st.sampled_from(self.with_client()))
        self.replied.add(number)
        self.peer.reply(Reply(number, errno))

    @precondition(lambda self: self.number)
    @rule(data=st.data())
    def give_up(self, data):
        number = data.draw(st.integers(1, self.number // 2)) * 2
        if number in self.replied | self.dropped | self.given_up:
            return
        (self.given_up if number in self.peer.asked else self.dropped).add(number)
        self.peer.session.give_up(number)

    @precondition(lambda self: self.with_client())
    @rule(data=st.data())
    def withdraw(self, data):
        number = data.draw(st.sampled_from(self.with_client()))
        self.dropped.add(number)
        self.peer.session.withdraw(number)

    @invariant()
    def bounds_hold(self):
        there = self.with_client()
        assert len(there) == self.peer.session.in_flight <= 3
        assert sum(self.sizes[number] for number in there) <= 100 or len(there) == 1 or any(self.sizes[n] > 100 for n in there)
        heard = [number for number, _ in self.peer.heard]
        assert sorted(heard) == sorted(self.replied - self.given_up)
        assert self.peer.asked == sorted(set(self.peer.asked)), "in the order in which they came, and once"
        unsent = [n for n in self.sizes if n not in self.peer.asked and n not in self.dropped]
        assert len(unsent) == self.peer.session.waiting
        if unsent:
            first = self.sizes[unsent[0]]
            assert len(there) == 3 or sum(self.sizes[n] for n in there) + first > 100


TestBounds = Bounds.TestCase
TestBounds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_gives_up_a_lock_has_a_number_that_nothing_else_has():
    session = Session(lambda _frame: None, lambda *_: None, lambda _notice: None, max_in_flight=1, max_bytes_in_flight=1)
    numbers = [of(number) for number in (2, 4, 10**9) for of in (session.unlock_id, session.rest_id, session.lasting_id)]
    assert len(set(numbers)) == len(numbers)
    assert all(number % 2 == 0 and session.is_own(number) for number in numbers)
