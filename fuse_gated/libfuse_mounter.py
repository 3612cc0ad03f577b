"""How the daemon gets mounts where there is no mount keeper: a process with libfuse for each. The daemon itself never waits.

It has the methods of `mounter.Mounter`. A mount that its process leaves behind (it was killed) is taken away by another
process of ours, and what an earlier server left, before the first mount.
"""

import os
import signal
import socket
from collections.abc import Callable
from typing import Final

from fuse_gated import libfuse_host
from fuse_gated.edge import hosting, keeping, libfuse, mounts, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Loop, Timer
from fuse_gated.edge.memory import make_state
from fuse_gated.errors import OperatorError, PeerError
from fuse_gated.gate.gate import Gate
from fuse_gated.mounter import Found, OnAnswer

_MOUNT_PATIENCE: Final = 15.0
_UNMOUNT_PATIENCE: Final = 3.0
_IGNORED: Final = (signal.SIGINT, signal.SIGHUP)
"""Ctrl-C and the end of a terminal are for the daemon, which ends its sessions in order."""
_MODE_PASSAGE: Final = 0o711
"""Others may go through, where a tenant's directory lets them, but learn no tenant's name."""


class _Hosted:
    """A mount and the process that serves it, or takes it away. `then` is who waits: for the mount, or after `unmount` for
    its end."""

    def __init__(
        self,
        order: libfuse_host.Order,
        child: process.Child,
        channel: Channel[hosting.ToDaemon],
        worker_end: socket.socket,
        then: OnAnswer,
    ) -> None:
        self.order = order
        self.child = child
        self.channel = channel
        self.worker_end = worker_end
        self.then: OnAnswer | None = then
        self.mounted = False
        self.left_behind = False
        self.reason = "libfuse's process ended"
        self._timer: Timer | None = None

    def set_timer(self, timer: Timer | None) -> None:
        """What is to happen if it takes too long; None: nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer


class LibfuseMounter:
    """Mounts beneath <runtime>/mnt. Raises OperatorError when an ordinary user cannot mount here, and when something that was
    left behind cannot be taken away; blocks meanwhile."""

    alive = True

    def __init__(self, loop: Loop, runtime: str) -> None:
        libfuse.check()
        self._loop = loop
        self._hosted: dict[tuple[str, str], _Hosted] = {}
        directory = mounts.open_runtime(runtime, owner=os.geteuid(), mode=mounts.MODE_CLOSED, keep_mode=True)
        try:
            shown = os.path.join(runtime, "mnt")
            mnt = mounts.open_own_directory(directory, "mnt", shown=shown, owner=os.geteuid(), mode=_MODE_PASSAGE)
            self._mnt = os.readlink(f"/proc/self/fd/{mnt}")
            os.close(mnt)
        finally:
            os.close(directory)
        for path in libfuse.clear(self._mnt):
            _tell(f"unmounted {path}, which was left behind")

    def mount(self, gate: Gate, export: str, then: OnAnswer) -> None:
        """Mount an export of the gate's tenant; `then` gets Mounted with the socket to libfuse's process and the state,
        or Refused."""
        key = (gate.tenant.name, export)
        if key in self._hosted:
            then(keeping.Refused(id=0, reason=f"{key[0]}/{export} is mounted already"), [])
            return
        order = self._order(gate, export)
        try:
            hosted = self._start(order, then)
        except OSError as error:
            then(keeping.Refused(id=0, reason=f"libfuse's process cannot be started: {error.strerror}"), [])
            return
        self._hosted[key] = hosted
        self._loop.watch(hosted.channel.fileno(), lambda _events: self._heard(hosted))
        self._loop.watch(hosted.child.fileno(), lambda _events: self._died(key, hosted))
        hosted.set_timer(self._loop.after(_MOUNT_PATIENCE, lambda: hosted.child.send_signal(signal.SIGKILL)))

    def unmount(self, tenant: str, export: str, then: OnAnswer) -> None:
        """Done when it is gone; what waited for it ends with an error at once."""
        hosted = self._hosted.get((tenant, export))
        if hosted is None:
            then(keeping.Done(id=0), [])
            return
        hosted.then = then
        if hosted.left_behind:
            return  # It is being taken away.
        hosted.child.send_signal(signal.SIGTERM)
        hosted.set_timer(self._loop.after(_UNMOUNT_PATIENCE, lambda: hosted.child.send_signal(signal.SIGKILL)))

    def note(self, _tenant: str, _export: str, _data: bytes) -> None:
        """Nobody could find it: the mounts of an ordinary user's server end with it."""

    def fetch(self, then: Callable[[list[Found]], None]) -> None:
        """What an earlier server left was taken away at the start."""
        then([])

    def apply(self, gate: Gate, exports: list[str]) -> None:
        """A new policy: who may enter the tenant's mounts. An ordinary user cannot change a mount's own options, so the
        rest comes with the next mount; the gate refuses what is no longer allowed, as always."""
        for export in exports:
            hosted = self._hosted.get((gate.tenant.name, export))
            if hosted is None:
                continue
            wanted = self._order(gate, export)
            if wanted.mount.noexec != hosted.order.mount.noexec or wanted.others != hosted.order.others:
                _tell(f"{hosted.order.point}: noexec and who may enter change when it is mounted anew")
            try:
                libfuse_host.set_entry(wanted)
            except (OSError, OperatorError) as error:
                _tell(f"{hosted.order.tenant}: {error}")

    def _order(self, gate: Gate, export: str) -> libfuse_host.Order:
        tenant, identity = gate.tenant, gate.identity
        mount = keeping.Mount(
            id=0,
            tenant=tenant.name,
            export=export,
            default_permissions=tenant.ownership == "passthrough",
            noexec=not gate.any_execute,
            nosymfollow=tenant.symlinks == "deny",
            uids=identity.uids,
            gids=identity.gids,
            anyone=identity.anyone,
        )
        others = bool(identity.anyone or identity.gids or set(identity.uids) - {os.geteuid()})
        allowed = libfuse.others_may_enter()
        if others and not allowed:
            _tell(f"{tenant.name}/{export}: only we ourselves may enter, because {libfuse.CONFIGURATION} lacks user_allow_other")
        return libfuse_host.Order(self._mnt, mount, others and allowed)

    def _start(self, order: libfuse_host.Order, then: OnAnswer) -> _Hosted:
        daemon = os.getpid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        worker_end, host_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (worker_end, host_end):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * hosting.MAX_PACKET)
        try:
            with theirs, host_end:
                child = process.spawn(
                    lambda: libfuse_host.run(theirs, host_end, order, daemon), program=libfuse_host.PROGRAM, ignored=_IGNORED
                )
        except OSError:
            ours.close()
            worker_end.close()
            raise
        return _Hosted(order, child, Channel(ours, hosting.TO_DAEMON, max_fds=0), worker_end, then)

    def _heard(self, hosted: _Hosted) -> None:
        try:
            received = hosted.channel.receive()
        except BlockingIOError:
            return
        except PeerError:
            received = None
        if received is None:
            self._loop.forget(hosted.channel.fileno())
        elif isinstance(received[0], hosting.Failed):
            hosted.reason = received[0].reason
        else:
            self._mounted(hosted, received[0])

    def _mounted(self, hosted: _Hosted, message: hosting.Mounted) -> None:
        then = hosted.then
        if hosted.mounted or then is None:
            hosted.child.send_signal(signal.SIGKILL)  # our code says it once
            return
        try:
            state = make_state()
        except OSError as error:
            hosted.reason = f"no memory for its state: {error.strerror}"
            hosted.child.send_signal(signal.SIGKILL)
            return
        hosted.mounted, hosted.then = True, None
        hosted.set_timer(None)
        if message.warning:
            _tell(f"{hosted.order.point}: {message.warning}")
        then(keeping.Mounted(id=0, path=message.path), [hosted.worker_end.detach(), state])

    def _died(self, key: tuple[str, str], hosted: _Hosted) -> None:
        # What it said last may still be unread.
        self._heard(hosted)
        self._loop.forget(hosted.channel.fileno())
        hosted.channel.close()
        self._loop.forget(hosted.child.fileno())
        status = hosted.child.wait()
        hosted.set_timer(None)
        if not status:
            self._finish(key, hosted, keeping.Done(id=0))
            return
        order, hosted.left_behind = hosted.order, True
        try:
            hosted.child = process.spawn(lambda: libfuse_host.clean_up(order), program=libfuse_host.PROGRAM, ignored=_IGNORED)
        except OSError as error:
            self._finish(key, hosted, keeping.Refused(id=0, reason=f"it stays mounted: {error.strerror}"))
            return
        self._loop.watch(hosted.child.fileno(), lambda _events: self._cleaned(key, hosted))

    def _cleaned(self, key: tuple[str, str], hosted: _Hosted) -> None:
        self._loop.forget(hosted.child.fileno())
        failed = hosted.child.wait()
        hosted.set_timer(None)
        self._finish(key, hosted, keeping.Refused(id=0, reason="it stays mounted") if failed else keeping.Done(id=0))

    def _finish(self, key: tuple[str, str], hosted: _Hosted, outcome: keeping.FromKeeper) -> None:
        del self._hosted[key]
        hosted.worker_end.close()
        if hosted.then is not None:
            hosted.then(outcome if hosted.mounted else keeping.Refused(id=0, reason=hosted.reason), [])


def _tell(message: str) -> None:
    process.tell(libfuse_host.PROGRAM, message)
