import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from fuse_gated.edge.loop import Loop
from fuse_gated.edge.pool import Pool


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Heard:
    """What `done` was called with, and on which thread."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Exception | None, int]] = []

    def __call__(self, result: Any, error: Exception | None) -> None:
        self.calls.append((result, error, threading.get_ident()))


def test_results_and_errors_come_back_to_the_loop(loop: Loop) -> None:
    pool, heard = Pool(loop), Heard()
    failure = OSError(5, "disk")

    def fail() -> None:
        raise failure

    pool.submit(threading.get_ident, heard)
    pool.submit(fail, heard)
    while len(heard.calls) < 2:
        loop.turn()
    results = {error: (result, thread) for result, error, thread in heard.calls}
    assert results[failure] == (None, threading.get_ident())
    assert results[None][0] != threading.get_ident()
    assert results[None][1] == threading.get_ident()
    assert pool.close(10)


def test_threads_are_few_and_started_when_needed(loop: Loop) -> None:
    pool, heard = Pool(loop, threads=2), Heard()
    before = threading.active_count()
    gate = threading.Event()
    for _ in range(5):
        pool.submit(gate.wait, heard)
    assert threading.active_count() == before + 2
    gate.set()
    while len(heard.calls) < 5:
        loop.turn()
    assert pool.close(10)
    assert threading.active_count() == before


def test_one_after_another_needs_one_thread(loop: Loop) -> None:
    pool, heard = Pool(loop), Heard()
    before = threading.active_count()
    for number in range(5):
        pool.submit(lambda: None, heard)
        while len(heard.calls) <= number:
            loop.turn()
    assert threading.active_count() == before + 1
    assert pool.close(10)


def test_what_has_not_begun_can_be_cancelled(loop: Loop) -> None:
    pool, heard = Pool(loop, threads=1), Heard()
    begun, gate = threading.Event(), threading.Event()

    def wait() -> str:
        begun.set()
        gate.wait()
        return "first"

    first = pool.submit(wait, heard)
    second = pool.submit(lambda: "second", heard)
    pool.submit(lambda: "third", heard)
    begun.wait()
    assert not pool.cancel(first)
    assert pool.cancel(second)
    assert not pool.cancel(second)
    gate.set()
    while len(heard.calls) < 2:
        loop.turn()
    assert [result for result, _, _ in heard.calls] == ["first", "third"]
    assert pool.close(10)


def test_a_thread_that_hangs_does_not_hold_up_the_end(loop: Loop) -> None:
    pool, heard = Pool(loop, threads=1), Heard()
    gate = threading.Event()
    pool.submit(gate.wait, heard)
    assert not pool.close(0.01)
    gate.set()
    assert pool.close(10)


def test_a_cancelled_job_holds_nothing(loop: Loop) -> None:
    """It stays in the queue for as long as no thread comes by, and a server could have any number of them made."""
    pool, heard, gate = Pool(loop, threads=1), Heard(), threading.Event()
    pool.submit(gate.wait, heard)
    large = bytearray(1)
    reference = weakref.ref(work := Large(large))
    job = pool.submit(work, heard)
    del work
    assert reference() is not None
    assert pool.cancel(job)
    assert reference() is None
    gate.set()
    assert pool.close(10)


class Large:
    """Work that holds data."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def __call__(self) -> None:
        """It is never called."""
