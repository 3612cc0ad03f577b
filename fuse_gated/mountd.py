"""The mount keeper: the only root process, which mounts, unmounts, and keeps every /dev/fuse descriptor alive.

It serves one peer, the daemon, and believes it nothing: names, ids and options are checked again here, and mount points lie
only at <runtime>/mnt/<tenant>/<export>. Entry to a tenant's mounts is the kernel's decision: <runtime>/mnt/<tenant> is
root's 0700 with an ACL for those whom the policy lets in.

When the daemon is gone everything is unmounted, and what an earlier keeper left is unmounted at the start, so that no mount
point is ever left that hangs or says 'Transport endpoint is not connected'.
"""

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from fuse_gated.edge import mounts
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.keeping import (
    REQUESTS,
    Access,
    Done,
    FromDaemon,
    FromKeeper,
    Mount,
    Mounted,
    Refused,
    Remount,
    Resumed,
    Sync,
    Unmount,
)
from fuse_gated.edge.process import Signals, tell
from fuse_gated.errors import GateError, OperatorError, PeerError, ProtocolError, RefusedError
from fuse_gated.paths import is_mount_name

PROGRAM: Final = "fuse-gated-mountd"
MAX_IDS: Final = 1000
"""Users, and groups, whom one tenant's mounts may let in."""
_LOCK_PATIENCE: Final = 5.0
"""Seconds in which a keeper that was told to end has unmounted everything."""
_NOSYMFOLLOW: Final = "nosymfollow"
_NOBODY: Final = 2**32 - 1
"""(uid_t) -1, which is no user (setreuid(2))."""


class Held(msgspec.Struct):
    """A mount that is there. `device` is our copy of its /dev/fuse descriptor: while it is open, no death of a worker ends
    the connection, and the mount can be handed on."""

    device: int
    nosymfollow: bool


class Store(Protocol):
    """Keeps copies of descriptors for whoever is started in our place (edge/systemd.py, Manager)."""

    def keep(self, name: str, descriptor: int, /) -> None: ...

    def drop(self, name: str, /) -> None: ...


class NoStore:
    """What is not kept ends with us."""

    def keep(self, _name: str, _descriptor: int, /) -> None:
        return

    def drop(self, _name: str, /) -> None:
        return


class MountKeeper:
    """The mounts of one runtime directory. Raises OperatorError when that is not ours, or when another keeper has it.

    `kept` are the devices that an earlier keeper put into its `store`: where their mounts are still there, they go on."""

    def __init__(self, runtime: str, store: Store | None = None, kept: Mapping[str, int] | None = None) -> None:
        self._store = store or NoStore()
        self._shown = os.path.join(os.path.abspath(runtime), "mnt")
        self._held: dict[tuple[str, str], Held] = {}
        with contextlib.ExitStack() as undo:
            directory = mounts.open_runtime(runtime)
            try:
                self._lock = _lock(directory, runtime)
                undo.callback(os.close, self._lock)
                self._mnt = mounts.open_own_directory(directory, "mnt", shown=self._shown)
                undo.callback(os.close, self._mnt)
            finally:
                os.close(directory)
            self._adopt(kept or {})
            self._clear()
            undo.pop_all()

    def answer(self, request: FromDaemon) -> tuple[FromKeeper, list[int]]:
        """Do what is asked; the answer, and descriptors that go with it but stay ours."""
        try:
            _check(request)
            match request:
                case Mount():
                    return self._mount(request)
                case Unmount():
                    self.unmount(request.tenant, request.export)
                case Access():
                    self._access(request)
                case Remount():
                    self._remount(request)
                case Sync():
                    pass
        except GateError as error:
            return Refused(id=request.id, reason=str(error)), []
        except OSError as error:
            return Refused(id=request.id, reason=f"{error.strerror}: {error.filename or request.tenant}"), []
        return Done(id=request.id), []

    def unmount(self, tenant: str, export: str) -> None:
        """Take a mount away, and the directories that were made for it."""
        held = self._held.get((tenant, export))
        if held is None:
            raise RefusedError(f"{tenant}/{export} is not mounted")
        directory = self._open_tenant(tenant)
        try:
            mounts.unmount(f"/proc/self/fd/{directory}/{export}")
            # Only now: our copy is what keeps the connection alive when every worker is gone.
            os.close(held.device)
            self._store.drop(_stored_name(tenant, export, held))
            del self._held[tenant, export]
            _remove_directory(directory, export)
        finally:
            os.close(directory)
        if not any(name == tenant for name, _ in self._held):
            _remove_directory(self._mnt, tenant)

    def close(self) -> None:
        """Unmount everything, the newest first, and let another keeper have the runtime directory."""
        for tenant, export in reversed(list(self._held)):
            try:
                self.unmount(tenant, export)
            except (GateError, OSError) as error:
                tell(PROGRAM, f"{tenant}/{export} was not unmounted in order: {error}")
        self.leave()

    def leave(self) -> None:
        """Give everything up as it is, mounts and all, and let another keeper have the runtime directory."""
        for held in self._held.values():
            os.close(held.device)
        self._held.clear()
        os.close(self._mnt)
        os.close(self._lock)

    def _mount(self, request: Mount) -> tuple[Mounted, list[int]]:
        tenant, export = request.tenant, request.export
        if (tenant, export) in self._held:
            raise RefusedError(f"{tenant}/{export} is mounted already")
        _make_directory(self._mnt, tenant)
        directory = self._open_tenant(tenant)
        try:
            mounts.set_entry(directory, request.uids, request.gids, anyone=request.anyone)
            _make_directory(directory, export)
            device = self._mount_in(directory, request)
        except BaseException:
            _remove_directory(directory, export)
            self._remove_unused(tenant)
            raise
        finally:
            os.close(directory)
        held = self._held[tenant, export] = Held(device, request.nosymfollow)
        self._store.keep(_stored_name(tenant, export, held), device)
        return Mounted(id=request.id, path=f"{self._shown}/{tenant}/{export}"), [device]

    def _mount_in(self, directory: int, request: Mount) -> int:
        # What somebody else mounted there must not be covered, so it is not entered either.
        point = mounts.open_beneath(directory, request.export, os.O_PATH | os.O_DIRECTORY, same_mount=True)
        try:
            return mounts.mount_fuse(
                point,
                source=f"{request.tenant}:{request.export}",
                default_permissions=request.default_permissions,
                noexec=request.noexec,
                nosymfollow=request.nosymfollow,
            )
        finally:
            os.close(point)

    def _access(self, request: Access) -> None:
        directory = self._open_tenant(request.tenant)
        try:
            mounts.set_entry(directory, request.uids, request.gids, anyone=request.anyone)
        finally:
            os.close(directory)

    def _remount(self, request: Remount) -> None:
        held = self._find(request.tenant, request.export)
        directory = self._open_tenant(request.tenant)
        try:
            # O_PATH enters the mount without asking whoever serves it.
            root = mounts.open_beneath(directory, request.export, os.O_PATH | os.O_DIRECTORY)
        finally:
            os.close(directory)
        try:
            mounts.remount(root, noexec=request.noexec, nosymfollow=held.nosymfollow)
        finally:
            os.close(root)

    def _find(self, tenant: str, export: str) -> Held:
        held = self._held.get((tenant, export))
        if held is None:
            raise RefusedError(f"{tenant}/{export} is not mounted")
        return held

    def _open_tenant(self, tenant: str) -> int:
        try:
            return mounts.open_beneath(self._mnt, tenant, os.O_RDONLY | os.O_DIRECTORY, same_mount=True)
        except FileNotFoundError:
            raise RefusedError(f"{tenant} has no mounts") from None

    def _remove_unused(self, tenant: str) -> None:
        if not any(name == tenant for name, _ in self._held):
            _remove_directory(self._mnt, tenant)

    def _adopt(self, kept: Mapping[str, int]) -> None:
        """Go on with what an earlier keeper held. A device whose mount is gone is let go."""
        beneath = os.readlink(f"/proc/self/fd/{self._mnt}")
        ours = {mount.path for mount in mounts.mounts_beneath(beneath) if mount.filesystem == mounts.FILESYSTEM}
        for name, device in kept.items():
            path, _, flag = name.partition(" ")
            tenant, _, export = path.partition("/")
            if is_mount_name(tenant) and is_mount_name(export) and f"{beneath}/{path}" in ours:
                self._held[tenant, export] = Held(device, flag == _NOSYMFOLLOW)
            else:
                os.close(device)
                self._store.drop(name)

    def _clear(self) -> None:
        """Take away what an earlier keeper left: mounts that nobody serves, and their directories."""
        beneath = os.readlink(f"/proc/self/fd/{self._mnt}")
        held = {f"{beneath}/{tenant}/{export}" for tenant, export in self._held}
        while left := _outermost([mount.path for mount in mounts.mounts_beneath(beneath) if mount.path not in held]):
            for path in left:
                if not mounts.unmount(path):
                    raise OperatorError(f"a mount that was left behind stays: {path}", f"umount --force --lazy {path}")
                tell(PROGRAM, f"unmounted {path}, which was left behind")
        for tenant in os.listdir(self._mnt):
            with contextlib.suppress(NotADirectoryError):
                directory = self._open_tenant(tenant)
                for export in os.listdir(directory):
                    if (tenant, export) not in self._held:
                        _remove_directory(directory, export)
                os.close(directory)
            self._remove_unused(tenant)


def run(channel_socket: socket.socket, runtime: str) -> int:
    """Serve the daemon at the other end of `channel_socket` until it is gone or SIGTERM comes, then unmount everything.

    The exit status: 0, or 1 when what came was no message. Raises OperatorError when the runtime directory is not ours.
    """
    allow_descriptors()
    with (
        channel_socket,
        Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
        contextlib.closing(MountKeeper(runtime)) as keeper,
    ):
        return serve(channel_socket, keeper, signals) or 0


def allow_descriptors() -> None:
    """As many as there may be: each session takes some, here and in the daemon, and the soft limit is often 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(connected: socket.socket, keeper: MountKeeper, signals: Signals, *, resumed: bool = False) -> int | None:
    """Answer the daemon until it is gone: 0 then, or 1 when what came was no message. None when a signal told us to end.

    `resumed`: an earlier keeper has answered it before, and it is told.
    """
    # The daemon has no descriptor to give us.
    channel = Channel(connected, REQUESTS, max_fds=0)
    try:
        return _answer(channel, keeper, signals, (Resumed(id=0), []) if resumed else None)
    except PeerError as error:
        tell(PROGRAM, f"the daemon is gone: {error}")
        return 1 if isinstance(error, ProtocolError) else 0


def _answer(
    channel: Channel[FromDaemon], keeper: MountKeeper, signals: Signals, waiting: tuple[FromKeeper, list[int]] | None
) -> int | None:
    poll = select.poll()
    poll.register(signals, select.POLLIN)
    while True:
        # One request at a time: a daemon that does not read its answers is asked for no more.
        poll.register(channel, select.POLLIN if waiting is None else select.POLLOUT)
        poll.poll()
        told_to_end = not {signal.SIGTERM, signal.SIGINT}.isdisjoint(signals.received())
        with contextlib.suppress(BlockingIOError):
            if waiting is None:
                received = channel.receive()
                if received is None:
                    return 0
                waiting = keeper.answer(received[0])
            channel.send(*waiting)
            waiting = None
        if told_to_end:
            return None


def _check(request: FromDaemon) -> None:
    if isinstance(request, Sync):
        return
    if not is_mount_name(request.tenant):
        raise RefusedError(f"not a tenant's name: {request.tenant!r}")
    if not isinstance(request, Access) and not is_mount_name(request.export):
        raise RefusedError(f"not an export's name: {request.export!r}")
    if isinstance(request, Mount | Access):
        for ids in (request.uids, request.gids):
            if len(ids) > MAX_IDS or not all(0 <= number < _NOBODY for number in ids):
                raise RefusedError(f"not at most {MAX_IDS} users and groups")


def _lock(directory: int, runtime: str) -> int:
    """The lock that is held for as long as a keeper has mounts beneath the runtime directory. Only root can open it."""
    lock = mounts.open_beneath(directory, "mountd.lock", os.O_RDWR | os.O_CREAT, mode=0o600)
    end = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(lock)
                raise OperatorError(
                    f"another {PROGRAM} keeps the mounts of {runtime}", "stop it, or choose another directory with --runtime"
                ) from None
        # flock(2) has no waiting with an end, and an earlier keeper is about to be done.
        time.sleep(0.02)


def _stored_name(tenant: str, export: str, held: Held) -> str:
    """What a device is kept under: all that its next keeper has to know. Without ':' (FDNAME= of sd_notify(3))."""
    return f"{tenant}/{export} {_NOSYMFOLLOW}" if held.nosymfollow else f"{tenant}/{export}"


def _outermost(paths: list[str]) -> list[str]:
    """Those beneath no other. To reach an inner one would mean to walk through a mount, and ask whoever serves it."""
    outer: list[str] = []
    for path in sorted(set(paths), key=len):
        if not any(path.startswith(above + "/") for above in outer):
            outer.append(path)
    return outer


def _make_directory(parent: int, name: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mounts.MODE_CLOSED, dir_fd=parent)


def _remove_directory(parent: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        # Nothing of ours lies beneath a mount, and what is not ours is not ours to remove.
        tell(PROGRAM, f"{name} stays: {error.strerror}")
