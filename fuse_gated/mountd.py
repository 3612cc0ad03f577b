"""The mount keeper: the only root process, which mounts, unmounts, and keeps every /dev/fuse descriptor alive.

It serves one peer, the daemon, and believes it nothing: names, ids and options are checked again here, and mount points lie
only at <runtime>/mnt/<tenant>/<export>. Entry to a tenant's mounts is the kernel's decision: <runtime>/mnt/<tenant> is
root's 0700 with an ACL for those whom the policy lets in.

Mounts outlive whoever serves them, the daemon and the keeper itself, as long as somebody comes in their place
(mountd_serving.py, mountd_store.py). What an earlier keeper left and nobody kept is unmounted at the start, so that no mount
point is ever left that hangs or says 'Transport endpoint is not connected'.
"""

import contextlib
import fcntl
import os
import resource
import time
from collections.abc import Mapping
from typing import Final

from fuse_gated.edge import mounts, placing
from fuse_gated.edge.keeping import (
    MAX_NOTE,
    Access,
    Displace,
    Done,
    Fetch,
    FromDaemon,
    FromKeeper,
    Held,
    Mount,
    Mounted,
    Note,
    Place,
    Placed,
    Refused,
    Remount,
    Sync,
    Unmount,
)
from fuse_gated.edge.memory import make_state
from fuse_gated.edge.process import tell
from fuse_gated.errors import GateError, OperatorError, RefusedError
from fuse_gated.mountd_store import Kept, Label, NoStore, Shelf, Store
from fuse_gated.paths import is_mount_name

PROGRAM: Final = "fuse-gated-mountd"
MAX_IDS: Final = 1000
"""Users, and groups, whom one tenant's mounts may let in."""
_LOCK_PATIENCE: Final = 5.0
"""Seconds in which a keeper that was told to end has unmounted everything."""
_NOBODY: Final = 2**32 - 1
"""(uid_t) -1, which is no user (setreuid(2))."""


class MountKeeper:
    """The mounts of one runtime directory. Raises OperatorError when that is not ours, or when another keeper has it.

    `passed` are the descriptors that an earlier keeper put into its `store`: where their mounts are still there, they go on."""

    def __init__(self, runtime: str, store: Store | None = None, passed: Mapping[str, int] | None = None) -> None:
        self._shelf = Shelf(store or NoStore())
        self._shown = os.path.join(os.path.abspath(runtime), "mnt")
        self._held: dict[tuple[str, str], Kept] = {}
        self._placed: set[tuple[str, str]] = set()
        self._given: list[int] = []
        """Descriptors that go with the last answer and are not ours to keep."""
        with contextlib.ExitStack() as undo:
            directory = mounts.open_runtime(runtime)
            try:
                self._lock = _lock(directory, runtime)
                undo.callback(os.close, self._lock)
                self._mnt = mounts.open_own_directory(directory, "mnt", shown=self._shown)
                undo.callback(os.close, self._mnt)
            finally:
                os.close(directory)
            useless = self._adopt(passed or {})
            self._clear()
            # Only now: what nobody goes on with was unmounted before its descriptor is closed, and so never looked dead.
            self._shelf.discard(useless)
            undo.pop_all()

    @property
    def holds(self) -> int:
        """How many mounts there are."""
        return len(self._held)

    def answer(self, request: FromDaemon) -> tuple[FromKeeper, list[int]]:
        """Do what is asked; the answer, and descriptors that go with it but stay ours. The one before has left by now."""
        self._let_go()
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
                case Place():
                    return self._place(request)
                case Displace():
                    self._displace(request)
                case Note():
                    self._shelf.note(self._find(request.tenant, request.export), request.data)
                case Fetch():
                    return self._fetch(request)
                case Sync():
                    pass
        except GateError as error:
            return Refused(id=request.id, reason=str(error)), []
        except OSError as error:
            return Refused(id=request.id, reason=f"{error.strerror}: {error.filename or request.tenant}"), []
        return Done(id=request.id), []

    def unmount(self, tenant: str, export: str) -> None:
        """Take a mount away, and the directories that were made for it."""
        held = self._find(tenant, export)
        directory = self._open_tenant(tenant)
        try:
            mounts.unmount(f"/proc/self/fd/{directory}/{export}")
            # Only now: our copy is what keeps the connection alive when every worker is gone.
            self._shelf.remove(held)
            del self._held[tenant, export]
            _remove_directory(directory, export)
        finally:
            os.close(directory)
        self._remove_unused(tenant)

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
            held.close()
        self._held.clear()
        self._let_go()
        os.close(self._mnt)
        os.close(self._lock)

    def _mount(self, request: Mount) -> tuple[Mounted, list[int]]:
        tenant, export = request.tenant, request.export
        if (tenant, export) in self._held:
            raise RefusedError(f"{tenant}/{export} is mounted already")
        # First: where there is no memory for it, nothing is to be undone.
        state = make_state()
        try:
            held = self._mount_anew(request, state)
        except BaseException:
            os.close(state)
            raise
        self._held[tenant, export] = held
        return Mounted(id=request.id, path=self._path(held)), [held.device, held.state]

    def _mount_anew(self, request: Mount, state: int) -> Kept:
        """A new mount, in directories of its own."""
        _make_directory(self._mnt, request.tenant)
        directory = self._open_tenant(request.tenant)
        try:
            mounts.set_entry(directory, request.uids, request.gids, anyone=request.anyone)
            _make_directory(directory, request.export)
            return self._mount_in(directory, request, state)
        except BaseException:
            _remove_directory(directory, request.export)
            self._remove_unused(request.tenant)
            raise
        finally:
            os.close(directory)

    def _mount_in(self, directory: int, request: Mount, state: int) -> Kept:
        # What somebody else mounted there must not be covered, so it is not entered either.
        point = mounts.open_beneath(directory, request.export, os.O_PATH | os.O_DIRECTORY, same_mount=True)
        try:
            device = mounts.mount_fuse(
                point,
                source=f"{request.tenant}:{request.export}",
                default_permissions=request.default_permissions,
                noexec=request.noexec,
                nosymfollow=request.nosymfollow,
            )
        finally:
            os.close(point)
        try:
            return self._shelf.add(Label(request.tenant, request.export, request.nosymfollow), device, state)
        except BaseException:
            mounts.unmount(f"/proc/self/fd/{directory}/{request.export}")
            os.close(device)
            raise

    def _place(self, request: Place) -> tuple[Placed, list[int]]:
        """A directory for a copy, and what lies beside it."""
        tenant, export = request.tenant, request.export
        if (tenant, export) in self._held:
            raise RefusedError(f"{tenant}/{export} is mounted")
        _make_directory(self._mnt, tenant)
        directory = self._open_tenant(tenant)
        try:
            mounts.set_entry(directory, request.uids, request.gids, anyone=request.anyone)
            given = placing.place(
                directory,
                export,
                owner=request.owner,
                uids=request.uids,
                gids=request.gids,
                anyone=request.anyone,
            )
        finally:
            os.close(directory)
        self._placed.add((tenant, export))
        self._given = [*given]
        return Placed(id=request.id, path=f"{self._shown}/{tenant}/{export}"), self._given

    def _let_go(self) -> None:
        for descriptor in self._given:
            os.close(descriptor)
        self._given = []

    def _displace(self, request: Displace) -> None:
        self._placed.discard((request.tenant, request.export))
        directory = self._open_tenant(request.tenant)
        try:
            placing.displace(directory, request.export, request.aside)
            left = os.listdir(directory)
        finally:
            os.close(directory)
        if not left:
            self._remove_unused(request.tenant)

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
            mounts.remount(root, noexec=request.noexec, nosymfollow=held.label.nosymfollow)
        finally:
            os.close(root)

    def _fetch(self, request: Fetch) -> tuple[FromKeeper, list[int]]:
        found = list(self._held.values())[request.index : request.index + 1]
        if not found:
            return Done(id=request.id), []
        (held,) = found
        label = held.label
        told = Held(
            id=request.id,
            tenant=label.tenant,
            export=label.export,
            path=self._path(held),
            note=label.note,
            nosymfollow=label.nosymfollow,
        )
        return told, [held.device, held.state]

    def _path(self, held: Kept) -> str:
        return f"{self._shown}/{held.label.tenant}/{held.label.export}"

    def _find(self, tenant: str, export: str) -> Kept:
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
        if not any(name == tenant for name, _ in (*self._held, *self._placed)):
            _remove_directory(self._mnt, tenant)

    def _adopt(self, passed: Mapping[str, int]) -> dict[str, int]:
        """Go on with what an earlier keeper held; the descriptors that are of no use, with the names they are kept under."""
        beneath = os.readlink(f"/proc/self/fd/{self._mnt}")
        ours = {mount.path for mount in mounts.mounts_beneath(beneath) if mount.filesystem == mounts.FILESYSTEM}
        found, useless = self._shelf.recover(passed)
        for held in found:
            tenant, export = held.label.tenant, held.label.export
            named = is_mount_name(tenant) and is_mount_name(export) and (tenant, export) not in self._held
            if named and f"{beneath}/{tenant}/{export}" in ours:
                self._held[tenant, export] = held
            else:
                self._shelf.remove(held)
        return useless

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
            copies: set[str] = set()
            with contextlib.suppress(NotADirectoryError):
                directory = self._open_tenant(tenant)
                found = os.listdir(directory)
                copies = {export for export in found if placing.is_copys(export, found)}
                for export in found:
                    if (tenant, export) not in self._held and export not in copies:
                        _remove_directory(directory, export)
                os.close(directory)
            if not copies:
                self._remove_unused(tenant)


def allow_descriptors() -> None:
    """As many as there may be: each session takes some, here and in the daemon, and the soft limit is often 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _check(request: FromDaemon) -> None:
    if isinstance(request, Sync):
        return
    if isinstance(request, Fetch):
        if request.index < 0:
            raise RefusedError(f"not a number of a mount: {request.index}")
        return
    if not is_mount_name(request.tenant):
        raise RefusedError(f"not a tenant's name: {request.tenant!r}")
    if not isinstance(request, Access) and not is_mount_name(request.export):
        raise RefusedError(f"not an export's name: {request.export!r}")
    if isinstance(request, Place) and not 0 < request.owner < _NOBODY:
        raise RefusedError(f"not a user to keep a copy: {request.owner}")
    if isinstance(request, Displace) and not is_mount_name(request.aside):
        raise RefusedError(f"not a name to put something aside under: {request.aside!r}")
    if isinstance(request, Mount | Access | Place):
        for ids in (request.uids, request.gids):
            if len(ids) > MAX_IDS or not all(0 <= number < _NOBODY for number in ids):
                raise RefusedError(f"not at most {MAX_IDS} users and groups")
    if isinstance(request, Note) and len(request.data) > MAX_NOTE:
        raise RefusedError(f"a note of more than {MAX_NOTE} bytes")


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
