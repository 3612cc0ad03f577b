"""The daemon: accepts, forks and supervises. It parses nothing that came from a network.

One connection is one worker from the first byte on (the model of sshd). The daemon knows who has logged in, because it
compares the digests itself; it gives each worker its own tenant's policy and its own mount's descriptor and nothing else;
and when a worker ends, however it ends, its mount is taken away at once.
"""

import contextlib
import gc
import hashlib
import http
import ipaddress
import os
import secrets
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fuse_gated import supervision, worker_process
from fuse_gated.config.settings import Settings
from fuse_gated.deaths import Deaths
from fuse_gated.desk import Desk
from fuse_gated.door import Door
from fuse_gated.drivers import NETWORK, Drivers
from fuse_gated.edge import keeping, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.systemd import Manager
from fuse_gated.errors import ConfigurationError, OperatorError, PeerError
from fuse_gated.guest import Guest
from fuse_gated.journals import Journals
from fuse_gated.libfuse_mounter import LibfuseMounter
from fuse_gated.mountd import allow_descriptors
from fuse_gated.mounter import Found, Mounter
from fuse_gated.seats import Seat, Seats
from fuse_gated.standalone import DaemonParts
from fuse_gated.supervision import CLOSE_POLICY
from fuse_gated.tenants import Tenants
from fuse_gated.worker import Visitor

PROGRAM: Final = "fuse-gated"
_END_PATIENCE: Final = 6.0
_LEAVE_PATIENCE: Final = 4.0
_LOGIN_SLACK: Final = 2.0


class Daemon:
    """Runs until SIGTERM. SIGHUP reads the policy anew; after SIGUSR1 nobody new is accepted, and the sessions go on."""

    def __init__(self, parts: DaemonParts, settings: Settings, directory: Path, tls: ssl.SSLContext | None) -> None:
        self.loop = Loop()
        self.settings = settings
        self.guests: dict[int, Guest] = {}
        """By their pids."""
        self.tenants = Tenants({})
        self.drivers: tuple[str, ...] = ()
        self.mounter: Drivers | None = None
        self._parts = parts
        self._directory = directory
        self._tls = tls
        self._manager = Manager()
        self.seats = Seats(self)
        self._door: Door | None = None
        self._ends_sessions = False
        self.draining = False
        """No new sessions are taken; who has one here may come back to it."""
        self._closed = False
        self._faulty = False
        self._ending = False
        self._status = 0
        self._deaths = Deaths(self.loop, self.guests.values, self.died)
        self._journals = Journals(self.loop, settings.audit, str(parts.runtime), self.guests.values, self._give_journal)
        mounting = "kernel" if parts.mountd is not None else "libfuse"
        self.mounter = Drivers(self._mounter(), mounting, settings.drivers, str(parts.runtime))
        self.drivers = self.mounter.names

    def _mounter(self) -> Mounter | LibfuseMounter | None:
        """How mounts are made here, if they can be. Raises OperatorError where they must be, and cannot."""
        if self._parts.mountd is not None:
            # Also where none is to be made: those that an earlier daemon left are there.
            return Mounter(self.loop, Channel(self._parts.mountd, keeping.ANSWERS, max_fds=2), self._keeper_lost)
        if "libfuse" not in self.settings.drivers:
            return None
        try:
            return LibfuseMounter(self.loop, str(self._parts.runtime))
        except OperatorError as error:
            if NETWORK not in self.settings.drivers:
                raise
            process.tell(PROGRAM, f"warning: {error}; sessions are open without a mount")
            return None

    def run(self) -> int:
        """Serve; the exit status. Raises ConfigurationError if the policy is at fault."""
        self.tenants = Tenants.read(self._directory)
        allow_descriptors()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: self.loop.from_thread(lambda: self._told_to_end(number)))
        signal.signal(signal.SIGUSR1, lambda *_: self.loop.from_thread(self.refuse_newcomers))
        signal.signal(signal.SIGUSR2, lambda *_: self.loop.from_thread(self._end_sessions_too))
        # What every worker shares is never collected, and so never copied by the fork's writes to it.
        gc.collect()
        gc.freeze()
        assert self.mounter is not None
        self.mounter.fetch(self._begin)
        self.loop.run()
        self._journals.close()
        return self._status

    def _begin(self, found: list[Found]) -> None:
        """What is mounted already has somebody who reads before anybody else is heard."""
        self.seats.adopt(found)
        self._door = Door(
            self.loop,
            self._parts.listeners,
            self.settings,
            self._fork,
            self._journals.turned_away,
        )
        if self._closed:
            # Told so before there was a door.
            self._door.shut()
        Desk(self.loop, self._parts.control, self)
        signal.signal(signal.SIGHUP, lambda *_: self.loop.from_thread(self.reload))
        where = ", ".join(_shown(listener) for listener in self._parts.listeners)
        self._deaths.begin()
        self._beat()
        self._tell_status()
        self._manager.ready()
        process.tell(PROGRAM, f"ready: listening on {where}, {_counted(len(self.tenants), 'tenant')}, {self.drivers[0]} driver")

    def _told_to_end(self, number: int) -> None:
        """SIGTERM alone is for who starts us again: the mounts stay, if there is a mount keeper that keeps them. After SIGUSR2,
        and for Ctrl-C, it is the end of all sessions."""
        if number == signal.SIGTERM and self.mounter is not None and self.mounter.has_keeper and not self._ends_sessions:
            self.leave()
        else:
            self.end()

    def _end_sessions_too(self) -> None:
        self._ends_sessions = True

    def end(self) -> None:
        """End in order: every session is told, then unmounted."""
        if self._ending:
            return
        self._stop_accepting()
        for guest in list(self.guests.values()):
            guest.say(supervision.End(1001, "the server is stopping"))
        self.loop.after(_END_PATIENCE, self._end_hard)
        self._check_end()

    def leave(self) -> None:
        """End, and leave the sessions to a successor: their processes stop in order, their mounts stay."""
        if self._ending:
            return
        self._stop_accepting()
        self.seats.leave()
        for guest in list(self.guests.values()):
            if guest.seat is None or not guest.seat.resume:
                guest.say(supervision.End(supervision.CLOSE_RESTART, "the server is being restarted"))
        self.loop.after(_LEAVE_PATIENCE, self._leave_hard)
        self._check_end()

    def _stop_accepting(self) -> None:
        self._ending = True
        # The interpreter gives a handled signal its default back as it ends: one that comes then would be told as our death.
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        self._manager.stopping()
        if self._door is not None:
            self._door.shut()

    def refuse_newcomers(self) -> None:
        """Accept nobody any more; the sessions go on.

        For `systemctl stop fuse-gated.socket`: systemd closes its own copies of the sockets, but here they would go on
        listening. Shut down they refuse whoever comes, instead of letting them wait for ever.
        """
        if self._door is not None:
            self._door.shut()
        for listener in self._parts.listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        self._closed = True
        self._tell_status()
        process.tell(PROGRAM, f"accepting nobody new; {_counted(len(self.seats.mounted), 'session')} left")

    def drain(self, *, undo: bool, move: bool = False) -> None:
        """Take no new sessions, or take them again. Those that are here go on, or with `move` are ended one after the other:
        their clients connect again, and a balancer before several servers sends them elsewhere."""
        if self.draining == undo:
            self.draining = not undo
            self._tell_status()
            what = "taking new sessions again" if undo else "draining: no new sessions"
            process.tell(PROGRAM, f"{what}; {_counted(len(self.seats.mounted), 'session')} here")
        if move:
            self.seats.move_next()

    def reload(self) -> None:
        """Read the policy anew and give it to the live sessions. A faulty one changes nothing."""
        self._manager.reloading()
        self._journals.reopen()
        try:
            self.tenants = Tenants.read(self._directory)
        except ConfigurationError as error:
            for fault in error.faults or (str(error),):
                process.tell(PROGRAM, f"policy not applied: {fault}")
            process.tell(PROGRAM, "the policy in force stays as it was; mend it and reload again")
            self._faulty = True
        else:
            self._apply()
            self._faulty = False
            counted = f"{_counted(len(self.tenants), 'tenant')}, {_counted(len(self.seats.mounted), 'session')}"
            process.tell(PROGRAM, f"policy applied: {counted}")
        self._tell_status()
        self._manager.ready()

    def kick(self, seat: Seat, reason: str) -> None:
        """End one session."""
        self.seats.ban(seat)
        self.seats.end(seat, CLOSE_POLICY, reason)

    def ask(self, guest: Guest, answered: Callable[[str], None]) -> None:
        """Ask a worker for a report; `answered(session)` is called when it came."""
        guest.asked.append(answered)
        if len(guest.asked) == 1:
            guest.say(supervision.Ask(1))

    # Connections.

    def _fork(self, sock: socket.socket, address: str) -> None:
        visitor = Visitor(secrets.token_hex(8), address, self.draining)
        guest = self._spawn(
            visitor.session, address, lambda theirs, place: worker_process.run(sock, theirs, visitor, place, self._tls)
        )
        sock.close()
        guest.deadline = self.loop.after(self.settings.admission.login_deadline + _LOGIN_SLACK, guest.kill)

    def stand_by(self, session: str) -> Guest:
        """A process that serves a session without its client. Raises OSError."""
        guest = self._spawn(session, "", lambda theirs, place: worker_process.stand_by(theirs, session, place))
        guest.starting, guest.stands_by = False, True
        return guest

    def _spawn(self, session: str, address: str, run: Callable[[socket.socket, worker_process.Place], int]) -> Guest:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        place = worker_process.Place(self.settings, str(self._parts.runtime), os.getpid())
        with theirs:
            try:
                child = process.spawn(lambda: run(theirs, place), program=PROGRAM)
            except OSError:
                ours.close()
                raise
        guest = Guest(session, address, child, Channel(ours, supervision.FROM_WORKER, max_fds=0))
        self.guests[child.pid] = guest
        self.loop.watch(guest.channel.fileno(), lambda _events: self._heard(guest))
        self.loop.watch(child.fileno(), lambda _events: self._reap(guest))
        return guest

    def _heard(self, guest: Guest) -> None:
        try:
            received = guest.channel.receive()
        except BlockingIOError:
            return
        except PeerError:
            # What a worker says that is no message was not said by our code.
            guest.lied()
            received = None
        if received is None:
            self.loop.forget(guest.channel.fileno())
            self._deaths.silent(guest)
            return
        match received[0]:
            case supervision.Arrived(address=address):
                self._arrived(guest, address)
            case supervision.Login(token=token):
                self._login(guest, hashlib.sha256(token).hexdigest())
            case supervision.Open(export=export, program=program, resume=resume):
                self.seats.open(guest, export, program, resume)
            case supervision.Ready(resume=resume):
                self.seats.ready(guest, resume)
            case supervision.Suspended(reason=reason):
                self.seats.suspended(guest, reason)
            case supervision.Ending():
                guest.ends = True
                if guest.seat is not None and guest.seat.reader is guest:
                    self.seats.unmount(guest.seat)
            case supervision.JournalBroken(reason=reason):
                self._journals.broken(guest, reason)
            case supervision.Report() as report:
                guest.report = report
                asked, guest.asked = guest.asked, []
                for answered in asked:
                    answered(guest.session)

    def died(self, guest: Guest, how: str = "a thread that waits in the kernel") -> None:
        """Its main thread has ended, or all of it."""
        if guest.dead:
            return
        guest.dead = True
        # Its main thread alone reads, if it is ours. Whoever else runs there must not go on with what a successor gets.
        guest.kill()
        guest.forget_state()
        self.started(guest)
        guest.settled()
        self.loop.forget(guest.channel.fileno())
        guest.channel.close()
        asked, guest.asked = guest.asked, []
        for answered in asked:
            answered(guest.session)
        self.seats.died(guest, how)

    def _reap(self, guest: Guest) -> None:
        self.loop.forget(guest.child.fileno())
        status = guest.child.wait()
        if status:
            process.tell(PROGRAM, f"worker of session {guest.session} ({guest.shown}) ended with {_status(status)}")
        self.died(guest, _status(status or 0))
        self.guests.pop(guest.child.pid, None)
        self._check_end()

    # Login and mounts.

    def _arrived(self, guest: Guest, address: str) -> None:
        """A proxy's connection comes from there: counted there from now on."""
        door = self._door
        is_proxy = door is not None and door.is_proxy(guest.address)
        if door is None or not is_proxy or guest.moved or guest.tenant is not None or not _is_address(address):
            guest.lied()  # our code says it once, of a proxy's, and as it is written
            return
        guest.moved = True
        refusal = door.moved(guest.address, address)
        if refusal is None:
            guest.address = address
        else:
            guest.turned_away = True
            self._journals.turned_away(address, refusal.reason)
            guest.say(supervision.TurnedAway(refusal.status, refusal.reason))

    def _login(self, guest: Guest, digest: str) -> None:
        if guest.turned_away:
            return
        if guest.tenant is not None:
            guest.lied()  # our code asks once
            return
        found = self.tenants.log_in(digest)
        if isinstance(found, str):
            guest.say(supervision.LoginRefused(found))
            return
        if self.draining and not any(seat.tenant.name == found[0].name for seat in self.seats):
            guest.say(supervision.LoginRefused(supervision.DRAINING, http.HTTPStatus.SERVICE_UNAVAILABLE))
            return
        guest.tenant, guest.digest = found[0], digest
        guest.say(supervision.LoggedIn(*found))

    # The policy.

    def _apply(self) -> None:
        for guest in list(self.guests.values()):
            if guest.tenant is None or guest.seat is not None:
                continue
            entry = self.tenants.renew(guest.tenant, guest.digest)
            if isinstance(entry, supervision.End):
                guest.say(entry)
                self.loop.after(_END_PATIENCE, guest.kill)
            else:
                guest.tenant = entry[0]
                guest.say(supervision.Apply(*entry))
        self.seats.apply()

    # Details.

    def changed(self) -> None:
        """There are more sessions, or fewer, or one's client went or came."""
        self._tell_status()
        self._check_end()

    def _tell_status(self) -> None:
        draining = "; draining" if self.draining else ""
        closed = "; accepting nobody new" if self._closed else ""
        faulty = "; the newest policy is faulty and not applied" if self._faulty else ""
        sessions = self.seats.mounted
        away = sum(bool(seat.away) for seat in sessions)
        waiting = f" ({away} without its client)" if away == 1 else f" ({away} without their clients)" if away else ""
        counted = f"{_counted(len(sessions), 'session')}{waiting}, {_counted(len(self.tenants), 'tenant')}"
        self._manager.status(f"{counted}{draining}{closed}{faulty}")

    def _beat(self) -> None:
        every = self._manager.beat_every
        if every is not None:
            self._manager.beat()
            self.loop.after(every, self._beat)

    def started(self, guest: Guest) -> None:
        if guest.starting:
            guest.starting = False
            if self._door is not None:
                self._door.logged_in(guest.address)

    def _give_journal(self, guest: Guest, descriptor: int) -> None:
        guest.say(supervision.JournalOpened(), [descriptor])

    def moves(self) -> bool:
        """Whether sessions are to go to other servers."""
        return self.draining and not self._ending

    def _check_end(self) -> None:
        if self._ending and not self.guests and (self.seats.leaving or not len(self.seats)):
            self.loop.stop()

    def _end_hard(self) -> None:
        for guest in list(self.guests.values()):
            guest.kill()
        for seat in self.seats:
            self.seats.unmount(seat)
        self.loop.after(1.0, self.loop.stop)

    def _leave_hard(self) -> None:
        for guest in list(self.guests.values()):
            guest.kill()
        self.loop.after(1.0, self.loop.stop)

    def _keeper_lost(self) -> None:
        """Whoever started us starts the keeper again, and us with it: sessions end, in order."""
        if not self._ending:
            process.tell(PROGRAM, "the mount keeper is gone: ending, to be started again")
            self._status = 1
            self.end()


def _is_address(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text)) == text
    return False


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"


def _shown(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
    return str(name)


def _status(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
