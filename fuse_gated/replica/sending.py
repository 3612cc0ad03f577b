"""How ours comes to the client, and how the client's is taken away, so that no work of anybody's goes with it.

What ours replaces is exchanged with it, not overwritten: what comes out is looked at, and is somebody's work if it is not what
was expected. What is to be removed is renamed first, for the same reason. Both are written down before (ledger.Begun), so that
whoever goes on after this process was killed looks at what was left.
"""

import contextlib
from collections.abc import Callable
from typing import Final

import msgspec

from fuse_gated.paths import shown, split
from fuse_gated.replica import names
from fuse_gated.replica.ledger import Begun, Book, Over, Same
from fuse_gated.replica.plan import is_somebodys
from fuse_gated.replica.sides import Changed, Far, Near, Refused
from fuse_gated.replica.version import FILE, Base, Version, mode_there, same_but_renamed

_TRIES: Final = 100


class Sending:
    """To one client. `again` takes paths that are to be looked at again."""

    def __init__(
        self,
        near: Near,
        far: Far,
        book: Book,
        *,
        session: str,
        token: Callable[[], str],
        tell: Callable[[str], None],
        again: set[bytes],
    ) -> None:
        self._near = near
        self._far = far
        self._ledger = book.ledger
        self._note = book.note
        self._session = session
        self._token = token
        self._tell = tell
        self._again = again
        self._left: set[bytes] = set()
        """What nobody lets us look at on the client. It is told once."""

    def recover(self) -> None:
        """What was begun and never ended. Raises Away."""
        for begun in list(self._ledger.begun.values()):
            self._clean_up(begun)

    def put(self, path: bytes, local: Version, remote: Version | None) -> None:
        """A file or a link of ours, in the place of what the client has there. Raises Changed, Busy and Refused, and then nothing
        of it is there; and Away."""
        parent = split(path)[0]
        found, chunks = self._near.read(path) if local.kind == FILE else (local, iter(()))
        if found != local or (parent and parent not in self._ledger.bases):
            raise Changed
        temporary = names.temporary(path, self._token())
        self._far.may_remove(temporary)
        begun = Begun(path, temporary, None, None)
        self._note(begun)
        try:
            if local.kind == FILE:
                ours = self._far.write(temporary, chunks, msgspec.structs.replace(local, mode=mode_there(local, remote)))
            else:
                ours = self._far.make(temporary, local)
            if self._near.look(path) != local:
                raise Changed
            begun = Begun(path, temporary, ours, remote)
            self._note(begun)
            self._put_in_place(begun)
        except (Changed, Refused):
            self._clean_up(begun)
            raise
        there = self._far.look(path)
        # What somebody wrote there since is a change of theirs.
        self._note(Same(path, Base(local, there if there is not None and same_but_renamed(there, ours) else ours)))
        self._clean_up(begun)

    def _put_in_place(self, begun: Begun) -> None:
        path, temporary = begun.path, begun.temporary
        if begun.theirs is None:
            self._far.rename(temporary, path)
        elif self._far.exchange(temporary, path):
            came_out = self._far.look(temporary)
            if came_out is not None and not same_but_renamed(came_out, begun.theirs):
                # Somebody has written to it just now. If it cannot be put back, it stays under another name.
                self._far.exchange(temporary, path)
                raise Changed
        elif self._far.look_now(path) != begun.theirs:
            raise Changed
        else:
            self._far.replace(temporary, path)

    def take_away(self, path: bytes, remote: Version) -> None:
        """Remove what the client has there. Raises Changed, Refused and Away."""
        temporary = names.temporary(path, self._token())
        begun = Begun(path, temporary, None, remote)
        self._note(begun)
        try:
            self._far.rename(path, temporary)
        except (Changed, Refused):
            self._note(Over(temporary))
            raise
        self._clean_up(begun)

    def _clean_up(self, begun: Begun) -> None:
        """Nothing is to be left at a temporary name: what is somebody's work goes back, or gets a name of its own. What may not
        even be looked at stays noted, and is seen to by whoever comes after."""
        try:
            self._put_right(begun)
        except Refused as refused:
            if begun.temporary not in self._left:
                self._left.add(begun.temporary)
                self._tell(f"{shown(begun.temporary)} may be left on the client: {refused.reason}")
        self._again.add(begun.path)

    def _put_right(self, begun: Begun) -> None:
        """Raises Refused where it may not be looked at."""
        found = self._far.look(begun.temporary)
        if found is not None and is_somebodys(begun, found):
            self._give_back(begun)
        elif found is not None:
            try:
                # It may have gone by itself.
                with contextlib.suppress(Changed):
                    self._far.remove(begun.temporary, found)
            except Refused as refused:
                self._tell(f"{shown(begun.temporary)} is left on the client: {refused.reason}")
        self._note(Over(begun.temporary))

    def _give_back(self, begun: Begun) -> None:
        for number in range(_TRIES):
            place = names.conflict(begun.path, self._session, number) if number else begun.path
            try:
                self._far.rename(begun.temporary, place)
            except Changed:
                if self._far.look(begun.temporary) is None:
                    return
            except Refused:
                break
            else:
                if number:
                    self._tell(f"{shown(begun.path)} has changed on both sides: the client's is {shown(place)}")
                self._again.add(place)
                return
        self._tell(f"{shown(begun.path)} as the client had it is {shown(begun.temporary)} there, and cannot be renamed")
