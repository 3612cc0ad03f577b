"""The daemon's hand on the journal: fresh descriptors for workers whose own is of no more use, and records of its own.

Those are few: who was turned away at the door. They are told once a second, so that strangers cannot fill the journal.
"""

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from fuse_gated.config.settings import Audit
from fuse_gated.edge import process
from fuse_gated.edge.journal import Journal, audit_file, open_journal
from fuse_gated.edge.loop import Loop
from fuse_gated.errors import OperatorError
from fuse_gated.gate.audit import Chain, Record
from fuse_gated.guest import Guest
from fuse_gated.serving import Recorder

_PROGRAM: Final = "fuse-gated"
_COMPLAIN_EVERY: Final = 60.0
_TRY_AGAIN: Final = 0.1
_TELL_EVERY: Final = 1.0
_MOST_ADDRESSES: Final = 10
"""In one record; the rest is counted."""


class Journals:
    """`give` hands a worker a journal's descriptor; `guests` are the workers there are."""

    def __init__(
        self,
        loop: Loop,
        settings: Audit,
        runtime: str,
        guests: Callable[[], Iterable[Guest]],
        give: Callable[[Guest, int], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._runtime = runtime
        self._guests = guests
        self._give = give
        self._complains_again = 0.0
        self._own = open_journal(settings, runtime)
        chain = Chain("", secrets.token_hex(8), "")
        self._recorder = Recorder(loop, self._own, chain, self._tell_turned_away, self._mend_own)
        self._turned_away: dict[str, Counter[str]] = {}
        self._tells = False

    def broken(self, guest: Guest, reason: str) -> None:
        """A worker says that its journal takes nothing, and why: it gets another as soon as there is one."""
        if self._loop.now >= self._complains_again:
            self._complains_again = self._loop.now + _COMPLAIN_EVERY
            if self._settings.to == "journal":
                where, hint = "the journal", "look at systemctl status systemd-journald"
            else:
                where, hint = audit_file(self._settings, self._runtime), "make room where it lies"
            # A worker may be anyone's by now, and this is for a terminal.
            why = reason[:100] if reason.isprintable() else "for a reason that cannot be shown"
            told = f"audit records of {guest.shown}, and perhaps of others, cannot be written to {where} ({why})"
            process.tell(_PROGRAM, f"{told}: what they would tell of fails with EIO until they can; {hint}")
        if not guest.awaits_journal:
            guest.awaits_journal = True
            self._bring(guest)

    def reopen(self) -> None:
        """A file that was rotated away is left by all. A journal's sockets stay: nobody rotates those."""
        if self._settings.to == "journal":
            return
        try:
            journal = self._open()
        except OperatorError as error:
            process.tell(_PROGRAM, f"the audit file was not opened again: {error}")
            return
        for guest in list(self._guests()):
            self._give(guest, journal.fileno())
        journal.close()
        self._mend_own()

    def turned_away(self, address: str, reason: str) -> None:
        """Somebody was turned away at the door: told within a second, together with others."""
        self._turned_away.setdefault(reason, Counter())[address] += 1
        if not self._tells:
            self._tells = True
            self._loop.after(_TELL_EVERY, self._tell_turned_away)

    def close(self) -> None:
        """Tell what is to be told before the end."""
        self._tell_turned_away()
        self._own.close()

    def _bring(self, guest: Guest) -> None:
        """Until there is one: a journald that is started again is back before a session's patience is over."""
        try:
            journal = self._open()
        except OperatorError:
            if not guest.dead:
                self._loop.after(_TRY_AGAIN, lambda: self._bring(guest))
            return
        guest.awaits_journal = False
        self._give(guest, journal.fileno())
        journal.close()

    def _mend_own(self) -> None:
        try:
            journal = self._open()
        except OperatorError:
            return  # The recorder asks again.
        self._own.reconnect(os.dup(journal.fileno()))
        journal.close()

    def _open(self) -> Journal:
        return open_journal(self._settings, self._runtime)

    def _tell_turned_away(self) -> None:
        self._tells = False
        while self._turned_away and self._recorder.waiting is None:
            reason, addresses = self._turned_away.popitem()
            shown = [f"{count} from {address or 'a local socket'}" for address, count in addresses.most_common(_MOST_ADDRESSES)]
            others = len(addresses) - len(shown)
            more = f" and {others} more addresses" if others else ""
            detail = f"{reason}; {', '.join(shown)}{more}"
            self._recorder.write(Record(kind="connection-refused", count=addresses.total(), detail=detail))
