"""Whether the client at the other end of a session's connection is still there (RFC 6455, 5.5.2)."""

from collections.abc import Callable
from typing import Final

from fuse_gated.edge.loop import Loop
from fuse_gated.edge.websocket import WebSocket

ASK_AFTER: Final = 15.0
"""Seconds without a word after which a client is asked for one. Ours asks when it has heard nothing for 10 s: that tells both
sides that the other is there. A thousand idle sessions do nothing else, and each question wakes two processes."""
DEAD_AFTER: Final = 20.0
"""Seconds without a word after which a client counts as away: it answers pings."""
_BEAT: Final = 1.0
"""Seconds in which further questions of a client's change nothing: it may ask without end."""


class Pulse:
    """Calls `lost` once, with a reason for people, when nothing was heard by `socket` for DEAD_AFTER seconds. It ends with the
    socket."""

    def __init__(self, loop: Loop, socket: WebSocket, lost: Callable[[str], None]) -> None:
        self._loop = loop
        self._socket = socket
        self._lost = lost
        self._asked = False
        self._since = loop.now
        self._timer = loop.after(ASK_AFTER, self._look)
        socket.on_sign = self._beat

    def _beat(self) -> None:
        # Put off here, the timer of a session that only lives does not wake its process as well.
        if self._asked or self._loop.now - self._since >= _BEAT:
            self._again(ASK_AFTER)

    def _look(self) -> None:
        if self._socket.closed:
            return
        silent = self._loop.now - self._socket.last_heard
        if silent < ASK_AFTER:
            self._again(ASK_AFTER - silent)
        elif self._asked and silent >= DEAD_AFTER:
            self._lost(f"nothing heard from the client for {silent:.0f} s")
        else:
            # Also after so long that it would be dead: this process may have been stopped itself for all of that time.
            self._socket.ping()
            self._again(DEAD_AFTER - ASK_AFTER)
            self._asked = True

    def _again(self, seconds: float) -> None:
        self._asked = False
        self._since = self._loop.now
        self._timer.cancel()
        self._timer = self._loop.after(seconds, self._look)
