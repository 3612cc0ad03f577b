"""The sessions that are mounted, as the daemon keeps them, and their way from one process to the next.

A session has exactly one process that reads what the kernel asks: the worker of the client's connection, or, while the client is
away, that same worker or a standby. When it has ended, however it ended, another gets the device and the state, and goes on
(servant.py). Nobody gets them before the last one has ended, or at least its main thread, which alone reads.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import msgspec

from fuse_gated import supervision
from fuse_gated.allotments import Allotments
from fuse_gated.config.settings import Settings
from fuse_gated.drivers import LOCAL, NETWORK, Drivers
from fuse_gated.edge import keeping, process
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.peers import Peer
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.guest import Guest
from fuse_gated.local_copies import LocalCopies
from fuse_gated.looking import Past
from fuse_gated.mounter import Found
from fuse_gated.seat import Note, Seat, read_note
from fuse_gated.supervision import CLOSE_LIMIT, CLOSE_POLICY
from fuse_gated.tenants import Tenants

PROGRAM: Final = "fuse-gated"
IN_ORDER: Final = "status 0"
_YIELD_PATIENCE: Final = 2.0
_KILL_PATIENCE: Final = 2.0
_END_PATIENCE: Final = 6.0
_LOOK_AGAIN: Final = 0.01
_GRACE_SLACK: Final = 10.0
_MOST_FALLS: Final = 10
_FALLS_WITHIN: Final = 60.0
_MOST_BANNED: Final = 10_000
_LONGEST_PROGRAM: Final = 200
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class Host(Protocol):
    """The daemon. `stand_by` forks a process without a connection (OSError if it cannot); `changed` is called when the number of
    sessions has, or whether one's client is there."""

    loop: Loop
    settings: Settings
    tenants: Tenants
    drivers: tuple[str, ...]
    draining: bool
    mounter: Drivers | None

    def stand_by(self, session: str) -> Guest: ...
    def died(self, guest: Guest) -> None: ...
    def started(self, guest: Guest) -> None: ...
    def changed(self) -> None: ...
    def moves(self) -> bool: ...


class Seats:
    """All of them."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seats: dict[tuple[str, str], Seat] = {}
        self.past = Past()
        self._allotments = Allotments()
        self._banned: dict[str, None] = {}
        """Digests of the secrets of sessions that the operator has ended, the oldest first."""
        self.copies = LocalCopies(host, self.attach)
        self.leaving = False
        """The daemon ends, and leaves the mounts to its successor or to the keeper."""

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self._seats.values()))

    def __len__(self) -> int:
        return len(self._seats)

    @property
    def mounted(self) -> list[Seat]:
        return [seat for seat in self._seats.values() if seat.mounted]

    def find(self, name: object) -> list[Seat]:
        """Those meant: by their session's name, or by tenant/export."""
        return [seat for seat in self.mounted if name in (seat.session, seat.shown)]

    # A client comes.

    def open(self, guest: Guest, export: str, program: str, secret: bytes) -> None:
        """A client that has logged in wants this export mounted, or to go on with the session of which it has the secret."""
        if guest.tenant is None or guest.opens:
            guest.lied()  # our code asks once
            return
        guest.opens = True
        # A worker may be anyone's by now.
        self._open(guest, guest.tenant, export, program[:_LONGEST_PROGRAM], hashlib.sha256(secret).hexdigest())

    def _open(self, guest: Guest, tenant: Tenant, export: str, program: str, resume: str) -> None:
        if guest.dead:
            return
        if self.leaving:
            guest.say(supervision.OpenRefused("the server is being restarted", supervision.CLOSE_RESTART))
            return
        if resume in self._banned:
            guest.say(supervision.OpenRefused("the operator has ended the session", CLOSE_POLICY))
            return
        seat = self._seats.get((tenant.name, export))
        if seat is not None and seat.mounted and hmac.compare_digest(seat.resume, resume):
            self._inherit(seat, guest, program)
            return
        if self._host.draining:
            guest.say(supervision.OpenRefused(supervision.DRAINING, supervision.CLOSE_LATER))
            return
        if seat is not None and (seat.away or seat.unmounting):
            # Its client was started anew and has nothing of what is open, or it came too late: a new one, when this is over.
            seat.then.append(lambda: self._open(guest, tenant, export, program, ""))
            if not seat.unmounting:
                self.end(seat, CLOSE_POLICY, "its client has begun a new session")
            return
        others = [other for name, other in self._seats if name == tenant.name]
        entry = self._host.tenants.open(tenant, export, others)
        mounter = self._host.mounter
        if isinstance(entry, supervision.OpenRefused):
            guest.say(entry)
        elif len(self._seats) >= self._host.settings.max_sessions:
            guest.say(supervision.OpenRefused(f"the server has {len(self._seats)} sessions, as many as it may", CLOSE_LIMIT))
        elif mounter is None or not mounter.alive:
            guest.say(supervision.OpenRefused("the server cannot mount: there is no mount keeper", 1011))
        else:
            made = Seat(guest, entry[0], export)
            try:
                made.share = self._allotments.give(tenant.name)
            except OSError as error:
                guest.say(supervision.OpenRefused(f"the server cannot open it now: {error.strerror}", 1011))
                return
            self._seats[tenant.name, export] = guest.seat = made
            made.program = program
            self._host.started(guest)
            mounter.mount(Gate(*entry), export, lambda answer, fds: self._mount_answered(made, answer, fds))

    def _mount_answered(self, seat: Seat, answer: keeping.FromKeeper, fds: list[int]) -> None:
        guest = seat.reader
        if isinstance(answer, keeping.Mounted) and len(fds) == 2:
            seat.path, seat.descriptors = answer.path, fds
            seat.driver = next(name for name in self._host.drivers if (name == NETWORK) == (not answer.path))
            if seat.driver == NETWORK and seat.tenant.local is not None:
                self.copies.begin(seat, lambda: self._is_open(seat))
            else:
                self._is_open(seat)
            return
        for fd in fds:
            os.close(fd)
        reason = answer.reason if isinstance(answer, keeping.Refused) else "no descriptors came with the mount"
        process.tell(PROGRAM, f"{seat.shown} could not be mounted: {reason}")
        self._remove(seat)
        if guest is not None:
            guest.seat = None
            guest.say(supervision.OpenRefused(f"the server could not mount: {reason}", 1011))
        self._host.changed()

    def _is_open(self, seat: Seat) -> None:
        guest = seat.reader
        seat.mounted = True
        self._host.changed()
        if guest is None or guest.dead:
            self.unmount(seat)
        else:
            guest.settled()
            guest.say(supervision.Opened(seat.path, seat.driver, seat.share or 0), self._handed(seat))

    def ready(self, guest: Guest, resume: str) -> None:
        """Its mount is in use."""
        seat = guest.seat
        if seat is None or seat.reader is not guest or seat.resume or not seat.mounted or not _DIGEST.fullmatch(resume):
            guest.lied()
            return
        seat.resume = resume
        self._write_note(seat)

    def suspended(self, guest: Guest, reason: str) -> None:
        """Its client is away."""
        seat = guest.seat
        if seat is not None and seat.reader is guest:
            guest.suspended_at = self._host.loop.now
            # A worker may be anyone's by now, and this is for a terminal.
            seat.away = reason[:200] if reason.isprintable() and reason else "its client is away"
            self._host.changed()
            # Its own word ends the waiting; this is for one that says nothing more.
            self._be_patient(seat, guest, seat.tenant.outage.grace + _GRACE_SLACK)

    def _be_patient(self, seat: Seat, guest: Guest, seconds: float) -> None:
        seat.waits_no_longer()
        seat.patience = self._host.loop.after(seconds, lambda: self._waits_too_long(seat, guest))

    def _waits_too_long(self, seat: Seat, guest: Guest) -> None:
        left = guest.suspended_at + seat.tenant.outage.grace + _GRACE_SLACK - self._host.loop.now
        if seat.reader is not guest or not seat.away or not seat.mounted:
            return
        if left > 0:
            # A new policy gives it longer.
            self._be_patient(seat, guest, left)
        else:
            self._end_hard(seat, guest)

    # One process after the other.

    def _inherit(self, seat: Seat, guest: Guest, program: str) -> None:
        """A client is back. Who serves its session is to stop."""
        if seat.heir is not None:
            seat.heir.seat = None
            seat.heir.say(supervision.OpenRefused("the client has come by another connection since", CLOSE_LIMIT))
        seat.heir, guest.seat = guest, seat
        # It stands by this login from now on.
        seat.program, seat.address, seat.digest = program, guest.address, guest.digest
        self._host.started(guest)
        reader = seat.reader
        if reader is None or reader.dead:
            self._pass_on(seat, "")
            return
        if not reader.yields:
            reader.yields = True
            reader.say(supervision.Yield())
            self._watch_end(seat, reader, self._host.loop.now + _YIELD_PATIENCE)

    def _watch_end(self, seat: Seat, guest: Guest, latest: float) -> None:
        """Look for the end of a process more often than a descriptor tells it (`Guest.has_ended`). One that does not end although
        it is killed is stuck in the kernel, and only the end of its mount frees it."""
        if guest.dead:
            return
        if guest.has_ended():
            self._host.died(guest)
        elif self._host.loop.now >= latest + _KILL_PATIENCE:
            process.tell(PROGRAM, f"{seat.shown}: its worker cannot be ended, its session ends")
            self.unmount(seat)
        else:
            if self._host.loop.now >= latest:
                guest.kill()
            self._host.loop.after(_LOOK_AGAIN, lambda: self._watch_end(seat, guest, latest))

    def died(self, guest: Guest, how: str) -> None:
        """A process has ended that had to do with a session."""
        seat = guest.seat
        if seat is None:
            return
        if seat.heir is guest:
            seat.heir = None
        if seat.reader is not guest:
            return
        if seat.unmounting or self.leaving:
            seat.reader = None
        elif guest.ends or not seat.resume:
            seat.reader = None
            self.unmount(seat)
        else:
            seat.reader = None
            # A client that comes back and goes again at once leaves a worker that ends in order: that is no fall.
            in_order = guest.yields or (how == IN_ORDER and not guest.stands_by)
            self._pass_on(seat, "" if in_order else f"the worker ended with {how}")

    def _pass_on(self, seat: Seat, fall: str) -> None:
        """Nobody reads: somebody must, before anyone waits in vain. `fall`: how the last one ended, if it was not by our word."""
        now = self._host.loop.now
        if fall:
            seat.falls = [when for when in seat.falls if when > now - _FALLS_WITHIN] + [now]
            if len(seat.falls) > _MOST_FALLS:
                process.tell(PROGRAM, f"{seat.shown}: {len(seat.falls)} workers have fallen within a minute, its session ends")
                self.unmount(seat)
                return
        entry = self._host.tenants.renew(seat.tenant, seat.digest)
        if isinstance(entry, supervision.End):
            self._refuse_heir(seat, entry.code, entry.reason)
            self.unmount(seat)
            return
        seat.tenant = entry[0]
        guest = seat.heir
        if guest is None or guest.dead:
            try:
                if seat.share is None:
                    seat.share = self._allotments.give(seat.tenant.name)
                guest = self._host.stand_by(seat.session)
            except OSError as error:
                process.tell(PROGRAM, f"{seat.shown} has no worker: {error.strerror} (are processes or memory short?)")
                self._host.loop.after(0.1, lambda: self._pass_on_again(seat))
                return
            guest.tenant, guest.digest, guest.seat = entry[0], seat.digest, seat
        else:
            seat.away = ""
            guest.settled()
        came = guest is seat.heir
        seat.waits_no_longer()
        seat.reader, seat.heir = guest, None
        detail = f"from {seat.address or 'a local socket'}, {seat.program[:80]}" if came else fall or seat.away
        guest.say(supervision.TakeOver(seat.session, *entry, detail, seat.share or 0), self._handed(seat))
        self._write_note(seat)
        self._host.changed()

    def _pass_on_again(self, seat: Seat) -> None:
        if seat.reader is None and seat.mounted and not self.leaving:
            self._pass_on(seat, "")

    def _refuse_heir(self, seat: Seat, code: int, reason: str) -> None:
        heir, seat.heir = seat.heir, None
        if heir is not None:
            heir.seat = None
            heir.say(supervision.OpenRefused(reason, code))

    def _handed(self, seat: Seat) -> list[int]:
        """The descriptors for whoever serves it."""
        return [*seat.descriptors, self._allotments.descriptor(seat.tenant.name)]

    def _remove(self, seat: Seat) -> None:
        seat.waits_no_longer()
        if self._seats.pop((seat.tenant.name, seat.export), None) is not None and seat.share is not None:
            self._allotments.take_back(seat.tenant.name, seat.share)

    def _write_note(self, seat: Seat) -> None:
        if self._host.mounter is not None:
            self._host.mounter.note(seat.tenant.name, seat.export, msgspec.msgpack.encode(seat.note))

    # The end.

    def ban(self, seat: Seat) -> None:
        """Its client is not to come back by itself: it may be away, and not hear of the end."""
        if seat.resume:
            self._banned[seat.resume] = None
            while len(self._banned) > _MOST_BANNED:
                del self._banned[next(iter(self._banned))]

    def end(self, seat: Seat, code: int, reason: str) -> None:
        """End it in order: its client is told, open files are told of, then it is unmounted."""
        self._refuse_heir(seat, code, reason)
        if seat.reader is None:
            self.unmount(seat)
        else:
            reader = seat.reader
            reader.say(supervision.End(code, reason))
            self._host.loop.after(_END_PATIENCE, lambda: self._end_hard(seat, reader))

    def _end_hard(self, seat: Seat, reader: Guest) -> None:
        """End a worker that did not end by itself. Its mount goes at once, not when it is seen to have ended: a thread of it may
        wait in the kernel for a caller who waits for its answer, and then the mount's end is what ends both."""
        reader.kill()
        if seat.reader is reader or seat.reader is None:
            self.unmount(seat)

    def unmount(self, seat: Seat) -> None:
        """Take its mount away: whoever waits on it is told by that."""
        mounter = self._host.mounter
        if not seat.mounted or mounter is None:
            return
        seat.mounted, seat.unmounting = False, True
        self._refuse_heir(seat, 1011, "the session is over: connect again")
        self._host.changed()
        self.copies.end(seat, keep=self.leaving)

        def unmounted(answer: keeping.FromKeeper, _fds: list[int]) -> None:
            self.copies.when_ended(seat, lambda: self._unmounted(seat, answer))

        mounter.unmount(seat.tenant.name, seat.export, unmounted)

    def _unmounted(self, seat: Seat, answer: keeping.FromKeeper) -> None:
        if isinstance(answer, keeping.Refused):
            process.tell(PROGRAM, f"{seat.shown} could not be unmounted: {answer.reason}")
        self.past.add(seat)
        for fd in seat.descriptors:
            os.close(fd)
        seat.descriptors = []
        self._remove(seat)
        if seat.reader is not None:
            reader, seat.reader = seat.reader, None
            reader.seat = None
            reader.say(supervision.Unmounted())
            self._host.loop.after(_END_PATIENCE, reader.kill)
        for waiting in seat.then:
            waiting()
        self._host.changed()

    def move_next(self) -> None:
        """End one session after the other, for as long as the server is drained: all clients at once would be too much for
        those to which they go."""
        if not self._host.moves():
            return
        for seat in self.mounted:
            seat.then.append(self.move_next)
            self.end(seat, supervision.CLOSE_RESTART, "this server is drained: connect again")
            return

    def attach(self, seat: Seat, fd: int, peer: Peer) -> bool:
        """Have a program served over a socket. False where nobody serves the session at this moment."""
        if seat.reader is None or seat.reader.dead:
            return False
        seat.reader.say(supervision.Attach(peer.uid, peer.gid, peer.pid, peer.groups), [fd])
        return True

    def leave(self) -> None:
        """The daemon ends and its sessions do not: their processes stop, in order. One without a mount ends."""
        self.leaving = True
        for seat in self:
            self._refuse_heir(seat, supervision.CLOSE_RESTART, "the server is being restarted")
            if seat.reader is not None:
                going = supervision.End(supervision.CLOSE_RESTART, "the server is being restarted")
                seat.reader.say(going if seat.driver in (NETWORK, LOCAL) else supervision.Yield())

    # The beginning.

    def adopt(self, found: Iterable[Found]) -> None:
        """Go on with what an earlier daemon left with the mount keeper."""
        for held, device, state in found:
            note = read_note(held.note)
            entry: tuple[Tenant, Identity] | supervision.End = supervision.End(1011, "nobody knows what it is")
            if note is not None:
                entry = self._host.tenants.renew_as(held.tenant, note.digest, note.settled)
            if note is None or isinstance(entry, supervision.End):
                why = entry.reason if isinstance(entry, supervision.End) else ""
                process.tell(PROGRAM, f"{held.tenant}/{held.export}, which was left behind, is taken away: {why}")
                os.close(device)
                os.close(state)
                assert self._host.mounter is not None
                self._host.mounter.unmount(held.tenant, held.export, lambda _answer, _fds: None)
                continue
            seat = self._seats[held.tenant, held.export] = Seat(None, entry[0], held.export)
            seat.session, seat.digest, seat.resume, seat.program = note.session, note.digest, note.resume, note.program
            seat.address, seat.since, seat.driver, seat.path = note.address, note.since, note.driver, held.path
            seat.descriptors, seat.mounted, seat.away = [device, state], True, "the service was started anew"
            self._pass_on(seat, "")

    # The policy.

    def apply(self) -> None:
        """A new policy for all."""
        exports: dict[str, list[str]] = {}
        for seat in self:
            entry = self._host.tenants.renew(seat.tenant, seat.digest)
            if isinstance(entry, supervision.End):
                self.end(seat, entry.code, entry.reason)
                continue
            seat.tenant = entry[0]
            self.copies.apply(seat)
            for guest in (seat.reader, seat.heir):
                if guest is not None:
                    guest.tenant = entry[0]
                    guest.say(supervision.Apply(*entry))
            if not seat.unmounting:
                # The keeper does what it is asked in order, so one that is being mounted gets the new rights too.
                exports.setdefault(seat.tenant.name, []).append(seat.export)
        if self._host.mounter is not None:
            for name, names in exports.items():
                self._host.mounter.apply(Gate(*self._host.tenants[name]), names)


__all__ = ["Note", "Seat", "Seats"]
