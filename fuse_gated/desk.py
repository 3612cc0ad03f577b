"""The daemon's side of the control socket: answers `fuse-gatectl` (control.py has the form).

Root and the daemon's own user may ask everything, all others only for what they may use without a mount, by the kernel's word
(SO_PEERCRED, SO_PEERGROUPS; unix(7)). What the workers know is asked of them first; one that does not answer in time is shown
without its figures.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from fuse_gated import __version__, control, looking, supervision
from fuse_gated.edge import hosting
from fuse_gated.edge.listening import rest_if_scarce
from fuse_gated.edge.loop import Loop, Timer
from fuse_gated.edge.peers import Peer, peer_of
from fuse_gated.gate.admission import NOT_A_USER, may_attach

if TYPE_CHECKING:
    from fuse_gated.daemon import Daemon
    from fuse_gated.seat import Seat

_MOST_CALLERS: Final = 64
_MOST_OTHERS: Final = 32
_MOST_OF_ONE_USER: Final = 4
"""Callers who are neither root nor the daemon's own user: so that they keep neither us nor each other out."""
_REFUSAL_PAUSE: Final = 0.2
"""Seconds that a refusal takes, each of which is told to the audit."""
_OPERATORS: Final = -1
_LISTED: Final = "fuse-gatectl sessions lists them"
_PATIENCE: Final = 1.0
_CALLER_PATIENCE: Final = 10.0
_MOST: Final = 2**63 - 1


class _Caller(NamedTuple):
    """Who is connected."""

    sock: socket.socket
    peer: Peer

    @property
    def uid(self) -> int:
        return self.peer.uid

    @property
    def is_operator(self) -> bool:
        return self.uid in (0, os.geteuid())


class Desk:
    """Answers the callers of one listening socket."""

    def __init__(self, loop: Loop, listener: socket.socket, daemon: Daemon) -> None:
        self._loop = loop
        self._listener = listener
        self._daemon = daemon
        self._callers: Counter[int] = Counter()
        """How many there are, by their users; operators are -1."""
        self._started = time.monotonic()
        self._commands: dict[str, Callable[[dict[str, Any], Callable[[control.Answer], None]], None]] = {
            "status": self._status,
            "sessions": self._sessions,
            "show": self._show,
            "kick": self._kick,
            "stats": self._stats,
            "drain": self._drain,
        }
        self._listen()

    def _listen(self) -> None:
        self._loop.watch(self._listener.fileno(), self._ready)

    def _ready(self, _events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            rest_if_scarce(self._loop, self._listener, error, self._listen)
            return
        sock.setblocking(False)
        caller = _Caller(sock, peer_of(sock))
        if not self._has_room(caller):
            sock.close()
            return
        self._callers[_OPERATORS if caller.is_operator else caller.uid] += 1
        timer = self._loop.after(_CALLER_PATIENCE, lambda: self._over(caller))
        self._loop.watch(sock.fileno(), lambda _events: self._heard(caller, timer))

    def _has_room(self, caller: _Caller) -> bool:
        operators = self._callers[_OPERATORS]
        if caller.is_operator:
            return operators < _MOST_CALLERS
        return self._callers[caller.uid] < _MOST_OF_ONE_USER and self._callers.total() - operators < _MOST_OTHERS

    def _heard(self, caller: _Caller, timer: Timer) -> None:
        timer.cancel()
        try:
            packet = caller.sock.recv(control.MAX_REQUEST)
            request = control.decode_request(packet)
        except (OSError, msgspec.DecodeError):
            self._over(caller)
            return
        self._loop.forget(caller.sock.fileno())
        if request.command == "attach":
            self._attach(caller, request.arguments.get("session"))
            return
        if request.command == "exports":
            self._reply(caller, control.Answer(result=[seat.shown for seat in self._open_to(caller)]))
            return
        if not caller.is_operator:
            hint = "ask as root, or as the user that the daemon runs as"
            self._reply(caller, control.Answer(f"'{request.command}' is for the operator", hint, errno="EACCES"))
            return
        if request.command == "figures":
            self._figures(caller, request.arguments)
            return
        command = self._commands.get(request.command)
        if command is None:
            answer = control.Answer(f"the daemon knows no command '{request.command}'", "is it of an older version? restart it")
            self._reply(caller, answer)
            return
        command(request.arguments, lambda answer: self._reply(caller, answer))

    def _reply(self, caller: _Caller, answer: control.Answer, fds: Sequence[int] = ()) -> None:
        """The descriptors go with the first packet, and stay the caller's."""
        if caller.sock.fileno() < 0:
            return
        packets = control.encode_answer(answer)
        if fds:
            # There is room for one packet in a socket that nobody has written to.
            with contextlib.suppress(OSError):
                socket.send_fds(caller.sock, [packets.pop(0)], fds)

        def send(_events: int = 0) -> None:
            while packets:
                try:
                    caller.sock.send(packets[0])
                except BlockingIOError:
                    return
                except OSError:
                    break
                packets.pop(0)
            timer.cancel()
            self._over(caller)

        timer = self._loop.after(_CALLER_PATIENCE, lambda: self._over(caller))
        self._loop.watch(caller.sock.fileno(), send, read=False, write=True)

    def _over(self, caller: _Caller) -> None:
        if caller.sock.fileno() >= 0:
            # The counter forgets who is not there.
            self._callers -= Counter({_OPERATORS if caller.is_operator else caller.uid: 1})
            self._loop.forget(caller.sock.fileno())
            caller.sock.close()

    # What everybody may ask.

    def _attach(self, caller: _Caller, name: object) -> None:
        """A socket to the worker of a session, for whoever may enter the tenant's mounts."""
        found = self._daemon.seats.find(name)
        for seat in found:
            why = may_attach(*self._daemon.tenants[seat.tenant.name], caller.uid, caller.peer.groups)
            if why is not None:
                self._refuse(caller, name, seat, why)
                return
            if self._join(caller, seat):
                return
        if found:
            answer = control.Answer(f"nobody serves {name!r} at this moment", "try again", errno="EAGAIN")
            self._reply(caller, answer)
        elif caller.is_operator:
            self._reply(caller, control.Answer(f"there is no session {name!r}", _LISTED, errno="ENOENT"))
        else:
            self._refuse(caller, name, None, NOT_A_USER)

    def _refuse(self, caller: _Caller, name: object, seat: Seat | None, why: str) -> None:
        """To who may not use it, a session that is there is like one that is not."""
        if seat is not None and seat.reader is not None:
            seat.reader.say(supervision.AttachRefused(caller.uid, caller.peer.pid))
        shown = f"there is no session {name!r} that uid {caller.uid} may use"
        message = shown if why == NOT_A_USER else why
        hint = "the policy's users and groups say who may; ask the operator"
        answer = control.Answer(message, hint, errno="EACCES")
        self._loop.after(_REFUSAL_PAUSE, lambda: self._reply(caller, answer))

    def _join(self, caller: _Caller, seat: Seat) -> bool:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * hosting.MAX_PACKET)
            if not self._daemon.seats.attach(seat, theirs.fileno(), caller.peer):
                return False
            attachment = control.Attachment(session=seat.session, tenant=seat.tenant.name, export=seat.export)
            self._reply(caller, control.Answer(result=msgspec.to_builtins(attachment)), [ours.fileno()])
        return True

    def _open_to(self, caller: _Caller) -> list[Seat]:
        seats = self._daemon.seats.mounted
        tenants = self._daemon.tenants
        return [seat for seat in seats if may_attach(*tenants[seat.tenant.name], caller.uid, caller.peer.groups) is None]

    # The commands.

    def _status(self, _arguments: dict[str, Any], reply: Callable[[control.Answer], None]) -> None:
        daemon = self._daemon
        status = control.Status(
            version=__version__,
            pid=os.getpid(),
            sessions=len(daemon.seats.mounted),
            tenants=len(daemon.tenants),
            uptime=time.monotonic() - self._started,
            mountd=daemon.mounter is not None and daemon.mounter.can_mount,
            drivers=daemon.drivers,
            draining=daemon.draining,
            held=len(daemon.seats),
        )
        reply(control.Answer(result=msgspec.to_builtins(status)))

    def _sessions(self, _arguments: dict[str, Any], reply: Callable[[control.Answer], None]) -> None:
        self._ask_all(lambda seats: reply(control.Answer(result=[_shown(seat) for seat in seats])))

    def _show(self, arguments: dict[str, Any], reply: Callable[[control.Answer], None]) -> None:
        name = arguments.get("session")
        if not self._daemon.seats.find(name):
            reply(control.Answer(f"there is no session {name!r}", "fuse-gatectl sessions lists them"))
            return

        def then(seats: list[Seat]) -> None:
            for seat in seats:
                if name in (seat.session, seat.shown):
                    details = msgspec.to_builtins(seat.report) if seat.report is not None else {}
                    details.pop("statistics", None)
                    details.pop("id", None)
                    reply(control.Answer(result={**details, **_shown(seat)}))
                    return
            reply(control.Answer(f"the session {name!r} has just ended", "fuse-gatectl sessions lists those that are there"))

        self._ask_all(then)

    def _kick(self, arguments: dict[str, Any], reply: Callable[[control.Answer], None]) -> None:
        name = arguments.get("session")
        found = self._daemon.seats.find(name)
        for seat in found:
            self._daemon.kick(seat, "ended by the operator")
        if found:
            reply(control.Answer(result={}))
        else:
            reply(control.Answer(f"there is no session {name!r}", "fuse-gatectl sessions lists them"))

    def _drain(self, arguments: dict[str, Any], reply: Callable[[control.Answer], None]) -> None:
        self._daemon.drain(undo=bool(arguments.get("undo")), move=bool(arguments.get("move")))
        self._status(arguments, reply)

    def _stats(self, _arguments: dict[str, Any], reply: Callable[[control.Answer], None]) -> None:
        def then(seats: list[Seat]) -> None:
            total: dict[str, int] = {"sessions": len(seats)}
            for seat in seats:
                if seat.report is not None:
                    for name, value in msgspec.to_builtins(seat.report.statistics).items():
                        # A worker may be anyone's by now: what it says must fit the answer.
                        total[name] = min(total.get(name, 0) + max(0, value), _MOST)
            reply(control.Answer(result=total))

        self._ask_all(then)

    def _figures(self, caller: _Caller, arguments: dict[str, Any]) -> None:
        name = arguments.get("session")
        if name and not self._daemon.seats.find(name):
            self._reply(caller, control.Answer(f"there is no session {name!r}", _LISTED))
            return
        descriptor = supervision.enclose(looking.seen(self._daemon, arguments, time.monotonic() - self._started))
        self._reply(caller, control.Answer(result={}), [descriptor])
        os.close(descriptor)

    def _ask_all(self, then: Callable[[list[Seat]], None]) -> None:
        seats = self._daemon.seats.mounted
        asked = [seat.reader for seat in seats if seat.reader is not None and not seat.reader.dead]
        waiting = {guest.session for guest in asked}

        def answered(session: str) -> None:
            waiting.discard(session)
            if not waiting:
                finish()

        def finish() -> None:
            if not done:
                done.append(True)
                timer.cancel()
                then([seat for seat in seats if seat.mounted])

        done: list[bool] = []
        timer = self._loop.after(_PATIENCE, finish)
        for guest in asked:
            self._daemon.ask(guest, answered)
        if not asked:
            finish()


def _shown(seat: Seat) -> dict[str, Any]:
    report = seat.report
    statistics = report.statistics if report is not None else None
    session = control.Session(
        session=seat.session,
        tenant=seat.tenant.name,
        export=seat.export,
        state=seat.state,
        driver=seat.driver,
        address=seat.address,
        since=seat.since,
        mount=seat.path,
        operations=statistics.operations if statistics is not None else 0,
        bytes_read=statistics.bytes_read if statistics is not None else 0,
        bytes_written=statistics.bytes_written if statistics is not None else 0,
        in_flight=report.in_flight if report is not None else 0,
        open_files=report.open_files if report is not None else 0,
        denied=statistics.denied if statistics is not None else 0,
        pid=seat.reader.child.pid if seat.reader is not None else 0,
        user_agent=seat.program,
    )
    result: dict[str, Any] = msgspec.to_builtins(session)
    return result
