"""The daemon's side of the control socket: answers `fuse-gatectl` (control.py has the form).

Only root and the daemon's own user are listened to, by the kernel's word (SO_PEERCRED, unix(7)). What the workers know is
asked of them first; one that does not answer in time is shown without its figures.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from fuse_gated import __version__, control
from fuse_gated.edge.listening import rest_if_scarce
from fuse_gated.edge.loop import Loop, Timer

if TYPE_CHECKING:
    from fuse_gated.daemon import Daemon
    from fuse_gated.guest import Guest

_MOST_CALLERS: Final = 64
_PATIENCE: Final = 1.0
_CALLER_PATIENCE: Final = 10.0
_MOST: Final = 2**63 - 1


class Desk:
    """Answers the callers of one listening socket."""

    def __init__(self, loop: Loop, listener: socket.socket, daemon: Daemon) -> None:
        self._loop = loop
        self._listener = listener
        self._daemon = daemon
        self._callers = 0
        self._started = time.monotonic()
        self._commands: dict[str, Callable[[dict[str, Any], Callable[[control.Answer], None]], None]] = {
            "status": self._status,
            "sessions": self._sessions,
            "show": self._show,
            "kick": self._kick,
            "stats": self._stats,
        }
        self._listen()

    def _listen(self) -> None:
        self._loop.watch(self._listener.fileno(), self._ready)

    def _ready(self, _events: int) -> None:
        try:
            caller, _ = self._listener.accept()
        except OSError as error:
            rest_if_scarce(self._loop, self._listener, error, self._listen)
            return
        caller.setblocking(False)
        _pid, uid, _gid = struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()) or self._callers >= _MOST_CALLERS:
            caller.close()
            return
        self._callers += 1
        timer = self._loop.after(_CALLER_PATIENCE, lambda: self._over(caller))
        self._loop.watch(caller.fileno(), lambda _events: self._heard(caller, timer))

    def _heard(self, caller: socket.socket, timer: Timer) -> None:
        timer.cancel()
        try:
            packet = caller.recv(control.MAX_REQUEST)
            request = control.decode_request(packet)
        except (OSError, msgspec.DecodeError):
            self._over(caller)
            return
        self._loop.forget(caller.fileno())
        command = self._commands.get(request.command)
        if command is None:
            answer = control.Answer(f"the daemon knows no command '{request.command}'", "is it of an older version? restart it")
            self._reply(caller, answer)
            return
        command(request.arguments, lambda answer: self._reply(caller, answer))

    def _reply(self, caller: socket.socket, answer: control.Answer) -> None:
        packets = control.encode_answer(answer)

        def send(_events: int = 0) -> None:
            while packets:
                try:
                    caller.send(packets[0])
                except BlockingIOError:
                    return
                except OSError:
                    break
                packets.pop(0)
            timer.cancel()
            self._over(caller)

        timer = self._loop.after(_CALLER_PATIENCE, lambda: self._over(caller))
        self._loop.watch(caller.fileno(), send, read=False, write=True)

    def _over(self, caller: socket.socket) -> None:
        if caller.fileno() >= 0:
            self._callers -= 1
            self._loop.forget(caller.fileno())
            caller.close()

    # The commands.

    def _status(self, _arguments: dict[str, Any], reply: Callable[[control.Answer], None]) -> None:
        daemon = self._daemon
        status = control.Status(
            version=__version__,
            pid=os.getpid(),
            sessions=sum(guest.mounted for guest in daemon.guests.values()),
            tenants=len(daemon.tenants),
            uptime=time.monotonic() - self._started,
            mountd=daemon.mounter is not None and daemon.mounter.alive,
            drivers=daemon.drivers,
        )
        reply(control.Answer(result=msgspec.to_builtins(status)))

    def _sessions(self, _arguments: dict[str, Any], reply: Callable[[control.Answer], None]) -> None:
        self._ask_all(lambda guests: reply(control.Answer(result=[_shown(guest) for guest in guests])))

    def _show(self, arguments: dict[str, Any], reply: Callable[[control.Answer], None]) -> None:
        name = arguments.get("session")
        if not self._find(name):
            reply(control.Answer(f"there is no session {name!r}", "fuse-gatectl sessions lists them"))
            return

        def then(guests: list[Guest]) -> None:
            for guest in guests:
                if guest.session in self._find(name):
                    details = msgspec.to_builtins(guest.report) if guest.report is not None else {}
                    details.pop("statistics", None)
                    details.pop("id", None)
                    reply(control.Answer(result={**details, **_shown(guest)}))
                    return
            reply(control.Answer(f"the session {name!r} has just ended", "fuse-gatectl sessions lists those that are there"))

        self._ask_all(then)

    def _kick(self, arguments: dict[str, Any], reply: Callable[[control.Answer], None]) -> None:
        name = arguments.get("session")
        found = self._find(name)
        for session in found:
            self._daemon.kick(session, "ended by the operator")
        if found:
            reply(control.Answer(result={}))
        else:
            reply(control.Answer(f"there is no session {name!r}", "fuse-gatectl sessions lists them"))

    def _stats(self, _arguments: dict[str, Any], reply: Callable[[control.Answer], None]) -> None:
        def then(guests: list[Guest]) -> None:
            total: dict[str, int] = {"sessions": len(guests)}
            for guest in guests:
                if guest.report is not None:
                    for name, value in msgspec.to_builtins(guest.report.statistics).items():
                        # A worker may be anyone's by now: what it says must fit the answer.
                        total[name] = min(total.get(name, 0) + max(0, value), _MOST)
            reply(control.Answer(result=total))

        self._ask_all(then)

    def _find(self, name: object) -> list[str]:
        """The sessions meant: by their own name, or by tenant/export."""
        return [
            guest.session for guest in self._daemon.guests.values() if guest.mounted and name in (guest.session, guest.shown)
        ]

    def _ask_all(self, then: Callable[[list[Guest]], None]) -> None:
        guests = [guest for guest in self._daemon.guests.values() if guest.mounted]
        waiting = {guest.session for guest in guests}

        def answered(session: str) -> None:
            waiting.discard(session)
            if not waiting:
                finish()

        def finish() -> None:
            if not done:
                done.append(True)
                timer.cancel()
                then([guest for guest in guests if guest.session in self._daemon.guests])

        done: list[bool] = []
        timer = self._loop.after(_PATIENCE, finish)
        for guest in guests:
            self._daemon.ask(guest, answered)
        if not guests:
            finish()


def _shown(guest: Guest) -> dict[str, Any]:
    report = guest.report
    statistics = report.statistics if report is not None else None
    session = control.Session(
        session=guest.session,
        tenant=guest.tenant.name if guest.tenant is not None else "",
        export=guest.export,
        state="mounted" if report is None or not report.silenced else "silenced",
        driver=guest.driver,
        address=guest.address,
        since=guest.since,
        mount=guest.path,
        operations=statistics.operations if statistics is not None else 0,
        bytes_read=statistics.bytes_read if statistics is not None else 0,
        bytes_written=statistics.bytes_written if statistics is not None else 0,
        in_flight=report.in_flight if report is not None else 0,
        open_files=report.open_files if report is not None else 0,
        denied=statistics.denied if statistics is not None else 0,
        pid=guest.child.pid,
        user_agent=guest.program,
    )
    result: dict[str, Any] = msgspec.to_builtins(session)
    return result
