"""Carrying out requests: what is quick on the loop, what may wait on threads, locks that another holds by trying again.

A handle is released last: a release waits for what still runs on it, because its descriptor's number may be another file's
afterwards.
"""

import errno
from collections.abc import Callable
from typing import Any, Final

from fuse_gated.edge.files import ELSEWHERE, LATER, Export, Later
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.pool import Pool
from fuse_gated.edge.request import RELEASES, Request, handles_of, is_held_by_another
from fuse_gated.errors import errno_name
from fuse_gated.wire import messages as wire

_FIRST_TRY: Final = 0.001
_SLOWEST_TRY: Final = 0.05
_LONGEST_WAIT: Final = 600.0


class Carrying:
    """`finished(request, errno's name or None, result)` is called once for each request that is started and not withdrawn.
    `elsewhere` are threads for what concerns other filesystems than the root's, so that one that hangs holds up no other slow
    work."""

    def __init__(
        self, loop: Loop, export: Export, pool: Pool, elsewhere: Pool, finished: Callable[[Request, str | None, Any], None]
    ) -> None:
        self._loop = loop
        self._export = export
        self._pool = pool
        self._elsewhere = elsewhere
        self._finished = finished
        self._busy: dict[int, int] = {}
        self._releasing: set[int] = set()
        self._parked: dict[int, Request] = {}
        self._stopped = False

    def attempt(self, arguments: wire.Arguments) -> tuple[str | None, Any] | Later | None:
        """Carry it out if that is a matter of microseconds: (errno's name or None, result). Otherwise nothing was done, and what
        is returned is for `start`."""
        kind = type(arguments)
        if kind is wire.Setlk or self._busy:
            return None
        try:
            result = self._export.attempt(arguments)
        except OSError as error:
            return errno_name(error.errno or errno.EIO), None
        return result if type(result) is Later else (None, result)

    def start(self, request: Request, later: Later | None = None) -> None:
        """Carry it out, now or later; `later` is what `attempt` said of it."""
        arguments = request.arguments
        if later is not None:
            self._hand_over(request, later)
        elif self._releasing and not self._releasing.isdisjoint(handles_of(arguments)):
            # Its descriptor's number may be another file's by the time a thread used it.
            self._finished(request, "EBADF", None)
        elif isinstance(arguments, RELEASES) and arguments.handle in self._busy:
            self._releasing.add(arguments.handle)
            self._parked[arguments.handle] = request
        else:
            self._begin(request)

    def cancel(self, request: Request) -> None:
        """End it if it waits: for a lock, or for a thread. What has begun goes on."""
        if request.stop_waiting():
            self._finished(request, "EINTR", None)
        elif request.withdraw():
            self._finished(request, "EINTR", None)
            self._no_longer_busy(request)
        else:
            request.deadline = self._loop.now  # A lock that a thread is trying for is not tried for again.

    def withdraw(self, request: Request) -> bool:
        """Whether it has not begun on a thread, and never will."""
        if not request.withdraw():
            return False
        self._no_longer_busy(request)
        return True

    def forget_locks(self) -> None:
        """Give up all POSIX locks, those on other filesystems on a thread."""
        give_up = self._export.forget_locks()
        if give_up is not None:
            self._elsewhere.submit(give_up, lambda *_: None)

    def stop(self) -> None:
        """Nothing is finished any more."""
        self._stopped = True
        self._parked.clear()

    def _begin(self, request: Request) -> None:
        try:
            result = self._export.attempt(request.arguments)
        except OSError as error:
            if is_held_by_another(error, request.arguments) and self._may_wait(request):
                self._wait_for_lock(request)
            else:
                self._finished(request, errno_name(error.errno or errno.EIO), None)
            return
        if result is LATER or result is ELSEWHERE:
            self._hand_over(request, result)
        else:
            self._finished(request, None, result)

    def _hand_over(self, request: Request, later: Later) -> None:
        pool = self._pool if later is LATER else self._elsewhere
        arguments = request.arguments
        for handle in handles_of(arguments):
            self._busy[handle] = self._busy.get(handle, 0) + 1
        if isinstance(arguments, RELEASES):
            self._releasing.add(arguments.handle)
        request.pool = pool
        request.job = pool.submit(
            lambda: self._export.perform(arguments), lambda result, error: self._performed(request, result, error)
        )

    def _performed(self, request: Request, result: Any, error: Exception | None) -> None:
        if self._stopped:
            return
        request.job = None
        if error is None:
            self._finished(request, None, result)
        elif is_held_by_another(error, request.arguments) and self._may_wait(request):
            self._wait_for_lock(request)
        elif isinstance(error, OSError):
            self._finished(request, errno_name(error.errno or errno.EIO), None)
        else:
            raise error
        self._no_longer_busy(request)

    def _no_longer_busy(self, request: Request) -> None:
        for handle in handles_of(request.arguments):
            self._busy[handle] -= 1
            if not self._busy[handle]:
                del self._busy[handle]
                self._releasing.discard(handle)
                if handle in self._parked:
                    self._begin(self._parked.pop(handle))

    def _may_wait(self, request: Request) -> bool:
        return request.heard and (not request.deadline or self._loop.now < request.deadline)

    def _wait_for_lock(self, request: Request) -> None:
        assert isinstance(request.arguments, wire.Setlk)
        if not request.deadline:
            request.deadline = self._loop.now + min(request.arguments.wait / 1000, _LONGEST_WAIT)
        request.delay = min(request.delay * 2, _SLOWEST_TRY) or _FIRST_TRY
        request.timer = self._loop.after(request.delay, lambda: self._try_lock(request))

    def _try_lock(self, request: Request) -> None:
        request.timer = None
        if not self._releasing.isdisjoint(handles_of(request.arguments)):
            self._finished(request, "EBADF", None)
        else:
            self._begin(request)
