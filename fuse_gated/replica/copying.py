"""One name after the other is brought to where both sides are the same (plan.py says how), so that nothing that anybody has
closed is lost whenever the process is killed. How it goes to the client is in sending.py.
"""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

import msgspec

from fuse_gated.paths import shown
from fuse_gated.replica import names
from fuse_gated.replica.comparing import alike
from fuse_gated.replica.ledger import Book, Kept, Same
from fuse_gated.replica.plan import Action, decide
from fuse_gated.replica.room import Room
from fuse_gated.replica.sending import Sending
from fuse_gated.replica.sides import Busy, Changed, Far, Near, Refused
from fuse_gated.replica.version import DIRECTORY, FILE, Base, Version, same_but_renamed

_REMOVALS: Final = frozenset({Action.REMOVE_LOCAL, Action.REMOVE_REMOTE, Action.FORGET})


class Copy:
    """`token` makes names that nobody else has. `tell` takes a line for people."""

    def __init__(
        self,
        near: Near,
        far: Far,
        book: Book,
        *,
        room: Room,
        session: str,
        token: Callable[[], str],
        tell: Callable[[str], None],
    ) -> None:
        self.ledger = book.ledger
        self.room = room
        self.left_out: dict[bytes, tuple[Version, str]] = {}
        """What the client has and the copy has not, and why."""
        self.unsent: dict[bytes, str] = {}
        """What the copy has and the client does not get, and why."""
        self.again: set[bytes] = set()
        """To be looked at again soon."""
        self._asked: dict[bytes, Version] = {}
        """What the client has refused to be read: asked for once."""
        self._later: dict[bytes, Version] = {}
        """What could not come or go for now, as it was then."""
        self._counted = False
        self._near = near
        self._far = far
        self._note = book.note
        self._session = session
        self._tell = tell
        self._sending = Sending(near, far, book, session=session, token=token, tell=tell, again=self.again)

    def recover(self) -> None:
        """What was begun on the client and never ended. Raises Away."""
        self._sending.recover()

    def retry(self) -> None:
        """The rules or the room are others: what was refused is tried again."""
        self.left_out.clear()
        self.unsent.clear()
        self._asked.clear()
        self._later.clear()
        for path in list(self.ledger.kept):
            self._note(Kept(path, None))

    def retry_later(self) -> None:
        """Some time has gone: what could not be for now, because a disk was full, is tried again."""
        self._later.clear()

    def doubt(self, path: bytes) -> None:
        """A program has closed the file that it had open for writing. Even if its times are as they were it may be another one:
        a store to a mapping (mmap(2)) leaves them alone on a tmpfs. So what is in it is compared."""
        base = self.ledger.bases.get(path)
        with self._refusals(path):
            if base is not None and base.local.kind == FILE and base.local == self._near.look(path):
                # Noted, so that whoever comes after us, or the session's end, does not take it for what the client has.
                self._note(Same(path, Base(msgspec.structs.replace(base.local, ctime=0), base.remote)))

    def withdraw(self, path: bytes, why: str) -> bool:
        """The client's content may no longer be read: what is here of it goes, unless somebody has changed it. False while a
        program has it open for writing."""
        base = self.ledger.bases.get(path)
        try:
            with self._refusals(path), contextlib.suppress(Changed):
                if base is not None and base.local == self._near.look(path):
                    self._leave_out(path, base.local, base.remote, why)
                    self._asked[path] = base.remote
        except Busy:
            return False
        return True

    def round(self, here: Collection[bytes], there: Mapping[bytes, Version], is_unknown: Callable[[bytes], bool]) -> None:
        """Settle whatever is on either side, or was. `there` is all that the client has, but for what `is_unknown`: that is left
        as it is. What is removed comes last, and what lies deepest first. Raises Away."""
        removals: list[bytes] = []
        self.again.clear()
        self._begin(here)
        for path in sorted({*here, *there, *self.ledger.bases, *self.left_out, *self.ledger.kept}):
            if is_unknown(path):
                continue
            with self._refusals(path):
                if decide(self.ledger.bases.get(path), self._near.look(path), there.get(path)) in _REMOVALS:
                    removals.append(path)
                else:
                    self.settle(path, there.get(path))
        for path in reversed(removals):
            self.settle(path, there.get(path))

    def _begin(self, here: Collection[bytes]) -> None:
        for path in [path for path in self.unsent if len(path) > names.LONGEST]:
            del self.unsent[path]
        if not self._counted:
            # What the last process has brought here has room already.
            for path in itertools.filterfalse(names.is_ours, here):
                with self._refusals(path):
                    self.room.has(path, self._near.look(path))
            self._counted = True

    def settle(self, path: bytes, remote: Version | None) -> None:
        """Do what is to be done with a name, of which the client says that. Raises Away."""
        if names.is_ours(path):
            return
        if len(path) > names.LONGEST:
            self.unsent[path] = "its path is too long"
            return
        with self._refusals(path):
            local = self._near.look(path)
            self.room.has(path, local)
            if remote is None:
                self.left_out.pop(path, None)
                self._asked.pop(path, None)
            if local is None:
                self.unsent.pop(path, None)
                self._note(Kept(path, None))
            action = decide(self.ledger.bases.get(path), local, remote)
            try:
                self._do(action, path, local, remote)
            except Changed:
                self.again.add(path)
                if action is Action.SEND:
                    self.unsent[path] = "not sent yet"
            except Busy:
                # It is tried again when it is closed.
                self.unsent[path] = "a program has it open for writing"
            else:
                if action is not Action.SEND:
                    self.unsent.pop(path, None)

    @contextlib.contextmanager
    def _refusals(self, path: bytes) -> Iterator[None]:
        """What nobody lets us do here keeps nothing else up."""
        try:
            yield
        except Refused as refused:
            self.unsent[path] = refused.reason

    def _do(self, action: Action, path: bytes, local: Version | None, remote: Version | None) -> None:
        match action:
            case Action.FORGET:
                self._forget(path)
            case Action.ADOPT:
                self._note(Same(path, Base(_there(local), _there(remote))))
            case Action.FETCH:
                self._fetch(path, local, _there(remote))
            case Action.SEND:
                self._send(path, _there(local), remote)
            case Action.REMOVE_LOCAL:
                self._remove_here(path, _there(local))
            case Action.REMOVE_REMOTE:
                self._remove_there(path, _there(remote))
            case Action.CONFLICT:
                self._conflict(path, _there(local), _there(remote))

    # From the client.

    def _fetch(self, path: bytes, local: Version | None, remote: Version) -> None:
        why = names.why_not(path, remote) or self.room.why_not(path, remote)
        if why:
            self._leave_out(path, local, remote, why)
            return
        if local is None and remote in (self._asked.get(path), self._later.get(path)):
            # Tried before, and it is the same still.
            return
        try:
            installed = self._fetched(path, local, remote)
        except Refused as refused:
            self._leave_out(path, local, remote, refused.reason)
            (self._later if refused.passing else self._asked)[path] = remote
            return
        for known in (self.left_out, self._asked, self._later):
            known.pop(path, None)
        self.room.has(path, installed)
        self._note(Same(path, Base(installed, remote)))

    def _leave_out(self, path: bytes, local: Version | None, remote: Version, why: str) -> None:
        """What is not copied must not look as if it were what it was."""
        if local is not None:
            self._remove_here(path, local)
        self.left_out[path] = (remote, why)

    def _fetched(self, path: bytes, local: Version | None, remote: Version) -> Version:
        if remote.kind != FILE:
            if local is not None:
                self._near.remove(path, local)
            return self._near.make(path, remote)
        found, chunks = self._far.read(path)
        if found != remote:
            raise Changed
        name = self._near.receive(chunks, remote)
        try:
            if self._far.look(path) != remote:
                raise Changed
            return self._near.install(name, path, local)
        finally:
            self._near.discard(name)

    # To the client.

    def _send(self, path: bytes, local: Version, remote: Version | None) -> None:
        why = names.why_not(path, local)
        if why:
            # Sent, it would be taken from here as what the client has made.
            self.unsent[path] = why
            return
        if local in (self.ledger.kept.get(path), self._later.get(path)):
            self.unsent.setdefault(path, "the policy refuses it")
            return
        if remote is not None and self._is_no_change(path, local, remote):
            self._note(Same(path, Base(local, remote)))
            self.unsent.pop(path, None)
            return
        try:
            if local.kind == DIRECTORY:
                self._note(Same(path, Base(local, self._far.make(path, local))))
            else:
                self._sending.put(path, local, remote)
        except Refused as refused:
            if refused.passing:
                self._later[path] = local
                self.unsent[path] = refused.reason
            else:
                self._keep_refused(path, local, remote, refused.reason)
        else:
            self.unsent.pop(path, None)
            self._note(Kept(path, None))
            self._later.pop(path, None)

    def _is_no_change(self, path: bytes, local: Version, remote: Version) -> bool:
        """Whether nothing but a time tells that ours was changed, and the client has what is in it."""
        base = self.ledger.bases.get(path)
        return base is not None and same_but_renamed(base.local, local) and alike(self._near, self._far, path, local, remote)

    def _keep_refused(self, path: bytes, local: Version, remote: Version | None, reason: str) -> None:
        """It stays here. Where the client has another one of that name, that one is to be seen by it."""
        kept = path
        if remote is not None:
            kept = self._aside(path, names.refused)
            self._forget(path)
        self._note(Kept(kept, self._near.look(kept) if remote is not None else local))
        self.unsent[kept] = reason
        self._tell(f"{shown(path)} is not sent ({reason}): what was written here stays at {shown(kept)}")

    # Both.

    def _remove_here(self, path: bytes, local: Version) -> None:
        try:
            self._near.remove(path, local)
        except (Changed, Refused):
            # What lies in it is not on the client, or nobody lets us: both sides are looked at anew.
            self._forget(path)
            raise Changed from None
        self._forget(path)
        self.room.has(path, None)

    def _remove_there(self, path: bytes, remote: Version) -> None:
        try:
            if remote.kind == DIRECTORY:
                self._far.remove(path, remote)
            else:
                self._sending.take_away(path, remote)
        except Refused as refused:
            self._tell(f"{shown(path)} comes back: the client keeps it ({refused.reason})")
            self.again.add(path)
        except Changed:
            self.again.add(path)
        self._forget(path)

    def _conflict(self, path: bytes, local: Version, remote: Version) -> None:
        if alike(self._near, self._far, path, local, remote):
            self._note(Same(path, Base(local, remote)))
            return
        aside = self._aside(path, names.conflict)
        self._forget(path)
        self._tell(f"{shown(path)} has changed on both sides: what was written here is {shown(aside)} on both from now on")

    def _aside(self, path: bytes, name: Callable[[bytes, str, int], bytes]) -> bytes:
        """Give what is here the first name of that kind that is free."""
        number = 1
        while self._near.look(name(path, self._session, number)) is not None:
            number += 1
        aside = name(path, self._session, number)
        self._near.move(path, aside)
        self.again |= {path, aside}
        return aside

    def _forget(self, path: bytes) -> None:
        self._note(Same(path, None))


def _there(found: Version | None) -> Version:
    """What `decide` has seen is there."""
    assert found is not None
    return found
