"""Locks that the client granted when their callers had gone: a signal, or the deadline, has ended their calls.

What such a caller has is what it had before, or what it was given since, because it tried again. So each part of the range is
made what it is by our own account, and not before all that the owner has asked for is answered. Meanwhile the owner's next
request waits: the client may carry out the two in any order.
"""

from typing import TYPE_CHECKING, Any, Final

from fuse_gated.tree.handles import Handle
from fuse_gated.tree.posix_locks import UNLOCK
from fuse_gated.wire import messages

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk

_SOON: Final = 0.02
"""Seconds after which a request that waits for one of these looks again."""

Owner = tuple[int, int, bool]
"""The client's handle, whose lock it is, and whether it is flock(2)'s."""


class Belated:
    """Of one session: what is still to be given back, and whose parts are being given back."""

    def __init__(self) -> None:
        self.due: list[messages.Setlk] = []
        self.busy: dict[Owner, int] = {}


def came(t: "Desk", arguments: messages.Setlk) -> None:
    """The client has granted this."""
    if arguments.type != UNLOCK:
        t.belated.due.append(arguments)
        settle(t)


def keeps_waiting(t: "Desk", handle: Handle, owner: int, flock: bool) -> float:
    """Seconds after which the owner's next request is to come again; 0.0: it need not wait."""
    return _SOON if t.belated.busy and (handle.remote, owner, flock) in t.belated.busy else 0.0


def settle(t: "Desk") -> None:
    """To be called whenever the client has answered for a lock."""
    if not t.belated.due:
        return
    asked = {_owner(arguments) for arguments in t.session.asked() if isinstance(arguments, messages.Setlk)}
    due, t.belated.due = t.belated.due, []
    for arguments in due:
        if _owner(arguments) in asked:
            t.belated.due.append(arguments)
        else:
            _give_back(t, arguments)


def _owner(arguments: messages.Setlk) -> Owner:
    return arguments.handle, arguments.owner, arguments.flock


def _give_back(t: "Desk", granted: messages.Setlk) -> None:
    handle = next((handle for handle in t.handles if handle.remote == granted.handle), None)
    if granted.flock:
        held = UNLOCK if handle is None else handle.flock
        # A process before this one has taken it, maybe: to have it a while too long harms less than to have lost it.
        parts = [(granted.start, granted.end, granted.type if held is None else held)]
    else:
        place = handle.place if handle is not None else b""
        parts = t.handles.locks.parts(place, granted.owner, granted.start, granted.end)
    owner = _owner(granted)

    def ended(_outcome: Any) -> None:
        t.belated.busy[owner] -= 1
        if not t.belated.busy[owner]:
            del t.belated.busy[owner]

    for start, end, kind in parts:
        if kind != granted.type and t.outage is None:
            t.belated.busy[owner] = t.belated.busy.get(owner, 0) + 1
            t.ask_aside(messages.Setlk(granted.handle, granted.owner, start, end, kind, granted.flock), ended)
