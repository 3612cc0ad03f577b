"""What the client must have done before it begins what it is asked next (wire/messages.Ask.after), while anything is on its way
that was answered before: writes (owing.py) and locks that are given up (unlocking.py)."""

from functools import partial
from typing import TYPE_CHECKING

from fuse_gated.turnstile.owing import key_of
from fuse_gated.wire import messages
from fuse_gated.wire.session import Pending

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk


def adjust(t: "Desk") -> None:
    """To be called when any of it has begun or ended."""
    t.session.after = partial(after, t) if t.ahead or t.unlocks else None


def after(t: "Desk", pending: Pending) -> tuple[int, ...]:
    """A write comes after what is owed of its own file, because it is not carried out if that fails; everything else after all,
    whatever it asks about. Locks come after those that were given up, too."""
    mine = t.ahead.get(pending.id)
    if mine is not None:
        return (mine.previous,) if mine.previous else ()
    if isinstance(pending.arguments, messages.Write):
        remote = pending.arguments.handle
        key = key_of(next((handle for handle in t.handles if handle.remote == remote), None)) if t.ahead else None
        # What finishes a short write had to wait for room if it finds itself there.
        return tuple(number for number in t.ahead.newest(key) if number != pending.id) if key is not None else ()
    written = t.ahead.newest()
    if isinstance(pending.arguments, messages.Setlk | messages.Getlk):
        return (*written, *(number for number in t.unlocks.newest() if number != pending.id))
    return written
