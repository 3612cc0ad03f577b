"""A few threads for calls that wait, whose results come back to the loop.

Not concurrent.futures: its threads are joined at exit, and one that hangs in a dead network filesystem would keep the
program from ending.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from fuse_gated.edge.loop import Loop

THREADS: Final = 6


class Job:
    """A call that was handed to the pool. It either runs to its end, or is cancelled before it began."""

    __slots__ = ("_claim", "done", "work")

    def __init__(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        self.work = work
        self.done = done
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """True for the first who asks: the thread that runs it, or the loop that cancels it."""
        return self._claim.acquire(blocking=False)


class Pool:
    """All methods are for the loop's thread. Threads are started when they are first needed."""

    def __init__(self, loop: Loop, threads: int = THREADS) -> None:
        self._loop = loop
        self._most = threads
        self._threads: list[threading.Thread] = []
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._outstanding = 0

    def submit(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> Job:
        """Call `work` on a thread, then `done(result, error)` on the loop's."""
        job = Job(work, done)
        self._outstanding += 1
        if len(self._threads) < min(self._outstanding, self._most):
            thread = threading.Thread(target=self._run, name=f"fuse-gate-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put(job)
        return job

    def cancel(self, job: Job) -> bool:
        """True if it had not begun, and so never will; `done` is not called then."""
        if not job.claim():
            return False
        # It stays in the queue until a thread comes by: without what it would have done, which may be large.
        job.work, job.done = _nothing, _not_done
        self._outstanding -= 1
        return True

    def close(self, timeout: float) -> bool:
        """Let the threads end what they are doing, for at most `timeout` seconds. False if some still run."""
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            if job.claim():
                self._perform(job)

    def _perform(self, job: Job) -> None:
        result: Any = None
        failure: Exception | None = None
        try:
            result = job.work()
        except Exception as error:  # Whatever it is, the loop's thread must hear of it.
            failure = error
        self._loop.from_thread(lambda: self._finished(job, result, failure))

    def _finished(self, job: Job, result: Any, failure: Exception | None) -> None:
        self._outstanding -= 1
        job.done(result, failure)


def _nothing() -> None:
    """What a cancelled job does."""


def _not_done(_result: Any, _error: Exception | None) -> None:
    """It never was."""
