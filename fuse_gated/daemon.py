"""The daemon: accepts, forks and supervises. It parses nothing that came from a network.

One connection is one worker from the first byte on (the model of sshd). The daemon knows who has logged in, because it
compares the digests itself; it gives each worker its own tenant's policy and its own mount's descriptor and nothing else;
and when a worker ends, however it ends, its mount is taken away at once.
"""

import contextlib
import gc
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
from fuse_gated.desk import Desk
from fuse_gated.door import Door
from fuse_gated.edge import keeping, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.systemd import Manager
from fuse_gated.errors import ConfigurationError, PeerError
from fuse_gated.gate.gate import Gate
from fuse_gated.guest import Guest
from fuse_gated.journals import Journals
from fuse_gated.libfuse_mounter import LibfuseMounter
from fuse_gated.mountd import allow_descriptors
from fuse_gated.mounter import Mounter
from fuse_gated.standalone import DaemonParts
from fuse_gated.supervision import CLOSE_LIMIT, CLOSE_POLICY
from fuse_gated.tenants import Tenants
from fuse_gated.worker import Visitor

PROGRAM: Final = "fuse-gated"
_END_PATIENCE: Final = 6.0
_LOGIN_SLACK: Final = 2.0
_LOOK_EVERY: Final = 1.0


class Daemon:
    """Runs until SIGTERM. SIGHUP reads the policy anew; after SIGUSR1 nobody new is accepted, and the sessions go on."""

    def __init__(self, parts: DaemonParts, settings: Settings, directory: Path, tls: ssl.SSLContext | None) -> None:
        self.loop = Loop()
        self.settings = settings
        self.guests: dict[str, Guest] = {}
        self.tenants = Tenants({})
        self.drivers: tuple[str, ...] = ()
        self.mounter: Mounter | LibfuseMounter | None = None
        self._parts = parts
        self._directory = directory
        self._tls = tls
        self._manager = Manager()
        self._closed = False
        self._faulty = False
        self._ending = False
        self._status = 0
        self._journals = Journals(self.loop, settings.audit, str(parts.runtime), self.guests.values, self._give_journal)
        if parts.mountd is not None and "kernel" in settings.drivers:
            channel = Channel(parts.mountd, keeping.ANSWERS, max_fds=1)
            self.drivers, self.mounter = ("kernel",), Mounter(self.loop, channel, self._keeper_lost)
        elif parts.mountd is None and "libfuse" in settings.drivers:
            self.drivers, self.mounter = ("libfuse",), LibfuseMounter(self.loop, str(parts.runtime))
        else:
            raise _no_driver(parts.mountd is not None)

    def run(self) -> int:
        """Serve; the exit status. Raises ConfigurationError if the policy is at fault."""
        self.tenants = Tenants.read(self._directory)
        allow_descriptors()
        self._door = Door(
            self.loop,
            self._parts.listeners,
            self.settings.admission,
            self._fork,
            self._journals.turned_away,
            silent=self._tls is not None,
        )
        Desk(self.loop, self._parts.control, self)
        signal.signal(signal.SIGHUP, lambda *_: self.loop.from_thread(self.reload))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.loop.from_thread(self.end))
        signal.signal(signal.SIGUSR1, lambda *_: self.loop.from_thread(self.refuse_newcomers))
        # What every worker shares is never collected, and so never copied by the fork's writes to it.
        gc.collect()
        gc.freeze()
        where = ", ".join(_shown(listener) for listener in self._parts.listeners)
        self._look_for_dead()
        self._beat()
        self._tell_status()
        self._manager.ready()
        process.tell(PROGRAM, f"ready: listening on {where}, {_counted(len(self.tenants), 'tenant')}, {self.drivers[0]} driver")
        self.loop.run()
        self._journals.close()
        return self._status

    def end(self) -> None:
        """End in order: every session is told, then unmounted."""
        if self._ending:
            return
        self._ending = True
        self._manager.stopping()
        self._door.shut()
        for guest in list(self.guests.values()):
            guest.say(supervision.End(1001, "the server is stopping"))
        self.loop.after(_END_PATIENCE, self._end_hard)
        self._check_end()

    def refuse_newcomers(self) -> None:
        """Accept nobody any more; the sessions go on.

        For `systemctl stop fuse-gated.socket`: systemd closes its own copies of the sockets, but here they would go on
        listening. Shut down they refuse whoever comes, instead of letting them wait for ever.
        """
        self._door.shut()
        for listener in self._parts.listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        self._closed = True
        self._tell_status()
        process.tell(PROGRAM, f"accepting nobody new; {_counted(self._mounted, 'session')} left")

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
            counted = f"{_counted(len(self.tenants), 'tenant')}, {_counted(self._mounted, 'session')}"
            process.tell(PROGRAM, f"policy applied: {counted}")
        self._tell_status()
        self._manager.ready()

    def kick(self, session: str, reason: str) -> None:
        """End one session."""
        guest = self.guests.get(session)
        if guest is not None:
            self._end_guest(guest, CLOSE_POLICY, reason)

    def ask(self, guest: Guest, answered: Callable[[str], None]) -> None:
        """Ask a worker for a report; `answered(session)` is called when it came."""
        guest.asked.append(answered)
        if len(guest.asked) == 1:
            guest.say(supervision.Ask(1))

    # Connections.

    def _fork(self, sock: socket.socket, address: str) -> None:
        session = secrets.token_hex(8)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        visitor = Visitor(session, address)
        own_pid, runtime = os.getpid(), str(self._parts.runtime)
        with theirs:
            try:
                child = process.spawn(
                    lambda: worker_process.run(sock, theirs, visitor, self.settings, runtime, self._tls, own_pid), program=PROGRAM
                )
            except OSError:
                ours.close()
                raise
        sock.close()
        channel = Channel(ours, supervision.FROM_WORKER, max_fds=0)
        guest = Guest(session, address, child, channel)
        self.guests[session] = guest
        guest.deadline = self.loop.after(
            self.settings.admission.login_deadline + _LOGIN_SLACK, lambda: child.send_signal(signal.SIGKILL)
        )
        self.loop.watch(channel.fileno(), lambda _events: self._heard(guest))
        self.loop.watch(child.fileno(), lambda _events: self._reap(guest))

    def _heard(self, guest: Guest) -> None:
        try:
            received = guest.channel.receive()
        except BlockingIOError:
            return
        except PeerError:
            # What a worker says that is no message was not said by our code.
            guest.kill()
            received = None
        if received is None:
            self.loop.forget(guest.channel.fileno())
            return
        match received[0]:
            case supervision.Login(digest=digest):
                self._login(guest, digest)
            case supervision.Open(export=export, program=program):
                self._open(guest, export, program)
            case supervision.Ending():
                self._unmount(guest)
            case supervision.JournalBroken(reason=reason):
                self._journals.broken(guest, reason)
            case supervision.Report() as report:
                guest.report = report
                asked, guest.asked = guest.asked, []
                for answered in asked:
                    answered(guest.session)

    def _look_for_dead(self) -> None:
        """What a pidfd tells too late (`Guest.has_ended`)."""
        self.loop.after(_LOOK_EVERY, self._look_for_dead)
        for guest in list(self.guests.values()):
            if guest.mounted and not guest.dead and guest.has_ended():
                self._died(guest)

    def _died(self, guest: Guest) -> None:
        """Its main thread has ended, or all of it. Whoever waits for an answer of it is told by its mount's end."""
        if guest.dead:
            return
        guest.dead = True
        guest.forget_state()
        self._started(guest)
        if guest.deadline is not None:
            guest.deadline.cancel()
        self.loop.forget(guest.channel.fileno())
        guest.channel.close()
        asked, guest.asked = guest.asked, []
        for answered in asked:
            answered(guest.session)
        self._unmount(guest)

    def _reap(self, guest: Guest) -> None:
        self.loop.forget(guest.child.fileno())
        status = guest.child.wait()
        if status:
            process.tell(PROGRAM, f"worker of session {guest.session} ({guest.shown}) ended with {_status(status)}")
        guest.reaped = True
        self._died(guest)
        self._check_gone(guest)

    # Login and mounts.

    def _login(self, guest: Guest, digest: str) -> None:
        if guest.tenant is not None:
            guest.kill()  # our code asks once
            return
        found = self.tenants.log_in(digest)
        if isinstance(found, str):
            guest.say(supervision.LoginRefused(found))
            return
        guest.tenant, guest.digest = found[0], digest
        guest.say(supervision.LoggedIn(*found))

    def _open(self, guest: Guest, export: str, program: str) -> None:
        tenant = guest.tenant
        if tenant is None or guest.mounted or guest.opening:
            guest.kill()
            return
        guests = self.guests.values()
        others = [other.export for other in guests if other.export and other.tenant and other.tenant.name == tenant.name]
        entry = self.tenants.open(tenant, export, others)
        held = sum(other.holds_mount for other in guests)
        if isinstance(entry, supervision.OpenRefused):
            guest.say(entry)
        elif held >= self.settings.max_sessions:
            guest.say(supervision.OpenRefused(f"the server has {held} sessions, as many as it may", CLOSE_LIMIT))
        elif self.mounter is None or not self.mounter.alive:
            guest.say(supervision.OpenRefused("the server cannot mount: there is no mount keeper", 1011))
        else:
            guest.export, guest.program, guest.opening = export, program, True
            self._started(guest)
            self.mounter.mount(Gate(*entry), export, lambda answer, fds: self._mount_answered(guest, answer, fds))

    def _mount_answered(self, guest: Guest, answer: keeping.FromKeeper, fds: list[int]) -> None:
        guest.opening = False
        if isinstance(answer, keeping.Mounted) and fds:
            guest.mounted, guest.path, guest.driver = True, answer.path, self.drivers[0]
            if guest.deadline is not None:
                guest.deadline.cancel()
            self._tell_status()
            if guest.dead:
                self._unmount(guest)
            else:
                guest.say(supervision.Opened(answer.path, guest.driver), fds)
        else:
            reason = answer.reason if isinstance(answer, keeping.Refused) else "no descriptor came with the mount"
            process.tell(PROGRAM, f"{guest.shown} could not be mounted: {reason}")
            guest.export = ""
            guest.say(supervision.OpenRefused(f"the server could not mount: {reason}", 1011))
            self._check_gone(guest)
        for fd in fds:
            os.close(fd)

    def _unmount(self, guest: Guest) -> None:
        if not guest.mounted or self.mounter is None or guest.tenant is None:
            return
        guest.mounted, guest.unmounting = False, True
        self._tell_status()
        self.mounter.unmount(guest.tenant.name, guest.export, lambda answer, _fds: self._unmounted(guest, answer))

    def _unmounted(self, guest: Guest, answer: keeping.FromKeeper) -> None:
        if isinstance(answer, keeping.Refused):
            process.tell(PROGRAM, f"{guest.shown} could not be unmounted: {answer.reason}")
        guest.export, guest.unmounting = "", False
        if guest.dead:
            self._check_gone(guest)
        else:
            guest.say(supervision.Unmounted())
            self.loop.after(_END_PATIENCE, lambda: self._kill(guest))

    # The policy.

    def _apply(self) -> None:
        exports: dict[str, list[str]] = {}
        for guest in list(self.guests.values()):
            if guest.tenant is None:
                continue
            entry = self.tenants.renew(guest.tenant, guest.digest)
            if isinstance(entry, supervision.End):
                self._end_guest(guest, entry.code, entry.reason)
                continue
            guest.tenant = entry[0]
            guest.say(supervision.Apply(*entry))
            if guest.mounted or guest.opening:
                # The keeper does what it is asked in order, so one that is being mounted gets the new rights too.
                exports.setdefault(guest.tenant.name, []).append(guest.export)
        if self.mounter is not None:
            for name, names in exports.items():
                self.mounter.apply(Gate(*self.tenants[name]), names)

    # Details.

    @property
    def _mounted(self) -> int:
        return sum(guest.mounted for guest in self.guests.values())

    def _tell_status(self) -> None:
        closed = "; accepting nobody new" if self._closed else ""
        faulty = "; the newest policy is faulty and not applied" if self._faulty else ""
        counted = f"{_counted(self._mounted, 'session')}, {_counted(len(self.tenants), 'tenant')}"
        self._manager.status(f"{counted}{closed}{faulty}")

    def _beat(self) -> None:
        every = self._manager.beat_every
        if every is not None:
            self._manager.beat()
            self.loop.after(every, self._beat)

    def _started(self, guest: Guest) -> None:
        if guest.starting:
            guest.starting = False
            self._door.logged_in(guest.address)

    def _give_journal(self, guest: Guest, descriptor: int) -> None:
        guest.say(supervision.JournalOpened(), [descriptor])

    def _end_guest(self, guest: Guest, code: int, reason: str) -> None:
        guest.say(supervision.End(code, reason))
        self.loop.after(_END_PATIENCE, lambda: self._kill(guest))

    def _kill(self, guest: Guest) -> None:
        """End a worker that did not end by itself. Its mount goes at once, not when it is seen to have ended: a thread of it may
        wait in the kernel for a caller who waits for its answer, and then the mount's end is what ends both."""
        guest.kill()
        self._unmount(guest)

    def _check_gone(self, guest: Guest) -> None:
        if guest.reaped and not guest.holds_mount:
            self.guests.pop(guest.session, None)
            self._check_end()

    def _check_end(self) -> None:
        if self._ending and not self.guests:
            self.loop.stop()

    def _end_hard(self) -> None:
        for guest in list(self.guests.values()):
            self._kill(guest)
        self.loop.after(1.0, self.loop.stop)

    def _keeper_lost(self) -> None:
        """Whoever started us starts the keeper again, and us with it: sessions end, in order."""
        if not self._ending:
            process.tell(PROGRAM, "the mount keeper is gone: ending, to be started again")
            self._status = 1
            self.end()


def _no_driver(has_keeper: bool) -> ConfigurationError:
    there, missing = ("kernel", "libfuse") if has_keeper else ("libfuse", "kernel")
    how = "an ordinary user's server mounts by libfuse" if missing == "kernel" else "as root it is the kernel driver that mounts"
    return ConfigurationError(f"fuse-gated.yaml has drivers: [{missing}], but {how}", f"add {there}, or leave `drivers` out")


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"


def _shown(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
    return str(name)


def _status(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
