"""edge/loop.py: descriptors, timers, what is put off, and wake-ups from other threads."""

import gc
import os
import socket
import threading

import pytest

from fuse_gated.edge.loop import READABLE, WRITABLE, Loop


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pair():
    first, second = socket.socketpair()
    first.setblocking(False)
    with first, second:
        yield first, second


def turn_until(loop, done):
    """Turns until `done()`; the test's own timeout ends it otherwise."""
    while not done():
        loop.turn()


# Descriptors.


def test_a_descriptor_that_is_readable_is_told_so(loop, pair):
    ours, theirs = pair
    told = []
    loop.watch(ours.fileno(), lambda events: told.append((events, ours.recv(10))))
    theirs.send(b"hello")
    turn_until(loop, lambda: told)
    ((events, data),) = told
    assert events & READABLE
    assert data == b"hello"


def test_a_descriptor_is_waited_for_as_was_asked(loop, pair):
    ours, theirs = pair
    told = []
    loop.watch(ours.fileno(), told.append, read=False, write=True)
    turn_until(loop, lambda: told)
    assert told[0] & WRITABLE
    loop.change(ours.fileno())
    told.clear()
    loop.soon(lambda: None)
    loop.turn()
    assert told == []
    theirs.send(b"x")
    turn_until(loop, lambda: told)
    assert not told[0] & WRITABLE


def test_the_other_ends_going_is_told_even_to_who_waits_for_nothing(loop, pair):
    ours, theirs = pair
    told = []
    loop.watch(ours.fileno(), lambda events: (told.append(events), loop.forget(ours.fileno())), read=False)
    theirs.close()
    turn_until(loop, lambda: told)
    assert told[0] & READABLE


def test_a_forgotten_descriptor_is_told_nothing_and_may_be_forgotten_twice(loop, pair):
    ours, theirs = pair
    told = []
    loop.watch(ours.fileno(), told.append)
    theirs.send(b"x")
    loop.forget(ours.fileno())
    loop.forget(ours.fileno())
    loop.soon(lambda: None)
    loop.turn()
    assert told == []


def test_a_descriptor_that_was_closed_before_may_still_be_forgotten(loop):
    reader, writer = os.pipe()
    loop.watch(reader, lambda _events: None)
    os.close(reader)
    os.close(writer)
    loop.forget(reader)


def test_one_that_another_forgot_in_the_same_turn_is_told_nothing(loop):
    pairs = [socket.socketpair() for _ in range(2)]
    told = []

    def first_come(index):
        told.append(index)
        loop.forget(pairs[1 - index][0].fileno())

    for index, (ours, theirs) in enumerate(pairs):
        loop.watch(ours.fileno(), lambda _events, index=index: first_come(index))
        theirs.send(b"x")
    loop.turn()
    assert len(told) == 1
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_its_own_descriptors_are_known_and_close_on_exec(loop):
    descriptors = loop.descriptors()
    assert len(descriptors) == 2
    assert not any(os.get_inheritable(fd) for fd in descriptors)


# Timers.


def test_timers_run_in_their_order_and_once(loop):
    ran = []
    for number in (3, 1, 2):
        loop.at(loop.now + number * 0.001, lambda number=number: ran.append(number))
    turn_until(loop, lambda: len(ran) == 3)
    assert ran == [1, 2, 3]
    loop.soon(lambda: None)
    loop.turn()
    assert ran == [1, 2, 3]


def test_a_timer_does_not_run_before_its_time(loop):
    seen = []
    timer = loop.after(0.002, lambda: seen.append(loop.now))
    turn_until(loop, lambda: seen)
    assert seen[0] >= timer.when


def test_a_cancelled_timer_does_not_run(loop):
    ran = []
    first = loop.after(0.0, lambda: ran.append("cancelled"))
    first.cancel()
    last = loop.after(0.001, lambda: ran.append("ran"))
    turn_until(loop, lambda: ran)
    assert ran == ["ran"]
    last.cancel()


def test_a_timer_may_be_cancelled_by_another_that_is_due_with_it(loop):
    ran = []
    second = loop.at(loop.now, lambda: ran.append("second"))
    loop.at(loop.now - 1, second.cancel)
    loop.turn()
    assert ran == []


def test_cancelled_timers_are_not_kept_until_they_are_due(loop):
    kept = [loop.after(3600.0, int) for _ in range(100)]
    for _ in range(5000):
        loop.after(3600.0, int).cancel()
    assert len(loop._timers) < 500
    assert {timer for timer in loop._timers if timer.callback} == set(kept)


def test_a_timer_that_runs_may_set_many_others(loop):
    ran = []

    def many():
        for number in range(300):
            timer = loop.at(loop.now - 1, lambda number=number: ran.append(number))
            if number % 3:
                timer.cancel()

    loop.at(loop.now - 1, many)
    loop.soon(int)
    loop.turn()
    loop.soon(int)
    loop.turn()
    assert sorted(ran) == list(range(0, 300, 3))


def test_cancelled_timers_do_not_wake_the_loop(loop):
    loop.after(0.0, lambda: None).cancel()
    woken = []
    thread = threading.Timer(0.01, lambda: loop.from_thread(lambda: woken.append(True)))
    thread.start()
    loop.turn()
    assert woken == [True], "the turn waited for what was to come"
    thread.join()


def test_a_far_timer_is_waited_for_in_pieces(loop):
    loop.after(10**7, lambda: None)
    assert loop._wait() == 60.0


# What is put off.


def test_what_is_put_off_runs_at_the_end_of_the_turn_in_order(loop, pair):
    ours, theirs = pair
    ran = []

    def ready(_events):
        ours.recv(10)
        loop.soon(lambda: (ran.append("first"), loop.soon(lambda: ran.append("third"))))
        loop.soon(lambda: ran.append("second"))
        ran.append("ready")

    loop.watch(ours.fileno(), ready)
    loop.at(loop.now, lambda: ran.append("timer"))
    theirs.send(b"x")
    loop.turn()
    assert ran == ["ready", "timer", "first", "second", "third"]


def test_what_is_put_off_is_not_waited_with(loop):
    ran = []
    loop.soon(lambda: ran.append(True))
    loop.turn()
    assert ran == [True]


# Running.


def test_the_loop_runs_until_it_is_stopped_and_can_run_again(loop):
    turns = []

    def count():
        turns.append(True)
        if len(turns) % 3 == 0:
            loop.stop()
        else:
            loop.soon(lambda: loop.after(0, count))

    loop.soon(count)
    loop.run()
    assert len(turns) == 3
    loop.soon(count)
    loop.run()
    assert len(turns) == 6


def test_what_a_callback_raises_comes_out_of_run(loop):
    def fail():
        raise RuntimeError("from a callback")

    loop.soon(fail)
    with pytest.raises(RuntimeError, match="from a callback"):
        loop.run()


def test_other_threads_wake_it_and_their_calls_run_on_its_thread(loop):
    ran = []
    ready = threading.Barrier(4)

    def call(number):
        ready.wait()
        for _ in range(10):
            loop.from_thread(lambda: ran.append((number, threading.get_ident())))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    ready.wait()
    turn_until(loop, lambda: len(ran) == 30)
    for thread in threads:
        thread.join()
    assert {ident for _, ident in ran} == {threading.get_ident()}
    assert sorted(number for number, _ in ran) == sorted([0, 1, 2] * 10)


def test_a_wake_up_that_was_already_heard_does_no_harm(loop):
    ran = []
    loop.from_thread(lambda: ran.append(True))
    loop._woken(0)
    loop._woken(0)
    assert ran == [True]


def test_closing_gives_up_its_own_descriptors_and_no_other(pair):
    ours, _ = pair
    loop = Loop()
    loop.watch(ours.fileno(), lambda _events: None)
    own = loop.descriptors()
    loop.close()
    gc.collect()
    for fd in own:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    os.fstat(ours.fileno())
