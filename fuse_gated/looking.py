"""What can be seen of sessions without asking their workers: their measures, which lie in their states (edge/state.py).

Nothing of it is interpreted here: the daemon copies bytes, and whoever asked reads them as numbers (turnstile/figures.py). So
looking costs a worker nothing, and what a worker that was taken over writes there reaches nobody who would stumble over it.
"""

from __future__ import annotations

import secrets
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from fuse_gated import __version__, control
from fuse_gated.edge.state import look
from fuse_gated.seat import Seat

if TYPE_CHECKING:
    from fuse_gated.daemon import Daemon

_MOST_ENDED: Final = 1000
"""Sessions that ended, of which the figures are kept: about a kilobyte each."""
_MOST: Final = 2**63 - 1


def seen(daemon: Daemon, arguments: dict[str, Any], uptime: float) -> control.Seen:
    """What `control.figures` asks for. It is copied at once: of a thousand sessions about ten megabytes."""
    seats, past = daemon.seats, daemon.seats.past
    name, after = arguments.get("session"), arguments.get("ended_after")
    found = seats.find(name) if name else seats.mounted
    return control.Seen(
        version=__version__,
        started=past.name,
        uptime=uptime,
        tenants=len(daemon.tenants),
        draining=daemon.draining,
        connections=len(daemon.guests),
        sessions=[figured(seat, brief=bool(arguments.get("brief"))) for seat in found],
        ended=past.after(after) if isinstance(after, int) and after >= 0 else [],
        last_ended=past.last,
    )


def figured(seat: Seat, *, brief: bool) -> control.Figured:
    """A session that is mounted."""
    seen = look(seat.descriptors[1], brief=brief)
    return control.Figured(
        session=seat.session,
        tenant=seat.tenant.name,
        export=seat.export,
        state=seat.state,
        driver=seat.driver,
        address=seat.address,
        since=seat.since,
        measures=seen.measures,
        sealed=min(seen.sealed, _MOST),
        taken=min(seen.taken, _MOST),
    )


class Past:
    """The last sessions that have ended, for who adds up what all did."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)
        """Of the daemon's run, in which they are counted."""
        self.last = 0
        """The number of the last one."""
        self._ended: deque[control.Ended] = deque(maxlen=_MOST_ENDED)

    def add(self, seat: Seat) -> None:
        """It is over, and its state about to go."""
        self.last += 1
        seen = look(seat.descriptors[1])
        self._ended.append(
            control.Ended(
                number=self.last,
                session=seat.session,
                tenant=seat.tenant.name,
                export=seat.export,
                measures=zlib.compress(seen.measures, 1),
                sealed=min(seen.sealed, _MOST),
            )
        )

    def after(self, number: int) -> list[control.Ended]:
        """Those that ended after that one."""
        return [ended for ended in self._ended if ended.number > number]
