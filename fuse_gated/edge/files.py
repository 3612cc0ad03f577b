"""The export: a directory of this machine, and every operation of the wire carried out beneath it.

`Export` composes its siblings: `beneath` resolves paths, `names` and `contents` carry out, `locks` excludes, `precautions`
refuses. What the server sends is hostile until it is checked: whatever it sends ends in a result or in OSError, and touches
nothing outside the export.
"""

import enum
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fuse_gated.edge.beneath import Beneath, BeyondMount
from fuse_gated.edge.contents import Contents
from fuse_gated.edge.filesystems import Filesystems
from fuse_gated.edge.gathering import Gathering
from fuse_gated.edge.handles import Handles, OpenFile
from fuse_gated.edge.leases import Leases
from fuse_gated.edge.locks import Locks
from fuse_gated.edge.names import Names
from fuse_gated.edge.precautions import Precautions, effective_capabilities
from fuse_gated.edge.watches import Watches
from fuse_gated.errors import OperatorError
from fuse_gated.wire import messages as wire
from fuse_gated.wire.tables import OPERATION_OF


class Later(enum.Enum):
    """What `Export.attempt` answers for an operation that would wait: LATER, or ELSEWHERE if it concerns another filesystem
    than the root's, which may be that of a server that answers nothing."""

    LATER = enum.auto()
    ELSEWHERE = enum.auto()


LATER: Final = Later.LATER
ELSEWHERE: Final = Later.ELSEWHERE

_SLOW: Final = frozenset({wire.Fsync, wire.Fsyncdir, wire.Fallocate, wire.CopyFileRange, wire.Statfs})
"""What always may wait for a disk."""

_HANDLES: Final = {
    kind: tuple(name for name in ("handle", "to_handle", "target") if name in kind.__struct_fields__)
    for kind in OPERATION_OF
}
"""The fields that may hold a handle."""


class Export:
    """The directory `root`, served to a server.

    `perform` may be called from several threads at once, `attempt` from one. `max_handles` bounds what the server may hold
    open (default: by RLIMIT_NOFILE). The process's umask should be 0: the modes that the server asks for have passed their
    caller's umask already. With `watch` the server can be told of changes, where inotify(7) tells of them: on a local
    filesystem, and where openat2(2) says what lies on another. With `leases` the server may lease what it creates. Raises
    OperatorError if `root` is no directory that can be opened, or /proc is not there.
    """

    def __init__(
        self,
        root: Path | bytes,
        *,
        read_only: bool = False,
        trust_server: bool = False,
        max_handles: int | None = None,
        openat2: bool = True,
        watch: bool = True,
        leases: Leases | None = None,
    ) -> None:
        self.leases = leases
        """What is leased for the server; None where nothing is."""
        self.root = os.path.realpath(os.fsencode(root))
        """The directory's absolute path, without links."""
        try:
            capabilities = effective_capabilities()
        except OSError as error:
            hint = "mount /proc: files are reached through it"
            raise OperatorError(f"cannot read /proc/self/status: {error.strerror}", hint) from None
        self._precautions = Precautions(read_only=read_only, trust_server=trust_server, capabilities=capabilities)
        try:
            self._beneath = Beneath(self.root, openat2=openat2)
        except OSError as error:
            hint = "name a directory that you may enter"
            raise OperatorError(f"cannot open {os.fsdecode(self.root)}: {error.strerror}", hint) from None
        self._handles = Handles(max_handles)
        self._locks = Locks(self._handles.limit)
        self._filesystems = filesystems = Filesystems()
        names = Names(self._beneath, self._handles, self._precautions, leases)
        contents = Contents(self._beneath, self._handles, self._locks, names, self._precautions, filesystems, leases)
        self.local = filesystems.is_local(self._beneath.root, os.fstat(self._beneath.root).st_dev)
        """Whether the root's filesystem answers without a network; where it does not, no operation is quick."""
        self.unwatched = ""
        """Why nothing can be watched although it is wanted, where that can be changed."""
        self.watches = self._watches() if watch and self.local and self._beneath.uses_openat2 else None
        """What is watched for the server; None where nothing can be."""
        gathering = Gathering(self._beneath, filesystems, self.watches)
        self._perform = _table(names, contents, gathering, self._getlk, self._setlk)
        self._attempt: dict[type[wire.Arguments], Callable[[Any], Any]] = {
            wire.Open: contents.open_quickly,
            wire.Read: contents.read_quickly,
            wire.Gather: gathering.gather_quickly,
            # It waits for the disk all the same: only where that is.
            wire.Fsyncdir: lambda arguments: contents.require_near(arguments.path),
            wire.Setattr: names.setattr_quickly,
            wire.Write: contents.write_quickly,
        }
        self._is_quick: dict[type[wire.Arguments], Callable[[Any], bool]] = {
            wire.Flush: contents.flush_is_quick,
            wire.Readdir: contents.readdir_is_quick,
        }

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the client says of itself in its hello: 'chown', where it can give files away, 'read-only', 'watches', 'leases',
        and always 'after'."""
        more = (wire.WATCHES, wire.AFTER) if self.watches is not None else (wire.AFTER,)
        if self._precautions.read_only:
            return ("read-only", *more)
        if self.leases is not None:
            more = (*more, wire.LEASES)
        return ("chown", *more) if self._precautions.can_chown else more

    @property
    def open_handles(self) -> int:
        return len(self._handles)

    def perform(self, arguments: wire.Arguments) -> Any:
        """Carry out one operation, however long it takes (a lock is tried once, never waited for). The result is of the kind
        in `RESULTS`, but of a gather it is a Collected. Raises OSError, for arguments that make no sense with EINVAL or EBADF."""
        return _guarded(self._perform[type(arguments)], arguments)

    def attempt(self, arguments: wire.Arguments) -> Any:
        """Carry out one operation if that is a matter of microseconds; else LATER or ELSEWHERE, and nothing was done: `perform`
        it on another thread. The result is as `perform`'s, but of a read it is a memoryview that the next call overwrites.

        Whatever is not certain to be on the root's own local filesystem, or open on a local one, is not even looked at."""
        kind = type(arguments)
        by_handle = False
        for name in _HANDLES[kind]:
            handle = getattr(arguments, name)
            if type(handle) is int:
                by_handle = True
                if not self._handles.is_local(handle):
                    return ELSEWHERE if self.local else LATER
        by_path = isinstance(arguments, wire.Fsyncdir) and arguments.path is not None
        if (kind in _SLOW and not by_path) or not (self.local or by_handle):
            return LATER
        if by_handle and not by_path and kind is not wire.Link:
            return self._quickly(kind, arguments)
        within = self._beneath.within_mount
        within.on = True
        try:
            return self._quickly(kind, arguments)
        except BeyondMount:
            return ELSEWHERE if self.local else LATER
        finally:
            within.on = False

    def _quickly(self, kind: type[wire.Arguments], arguments: wire.Arguments) -> Any:
        attempt = self._attempt.get(kind)
        is_quick = self._is_quick.get(kind)
        try:
            if attempt is not None:
                result = attempt(arguments)
                return LATER if result is None else result
            if is_quick is not None and not is_quick(arguments):
                return LATER
            return self._perform[kind](arguments)
        except (ValueError, OverflowError, MemoryError) as error:
            raise _refused(error) from None

    def releases(self) -> list[wire.Arguments]:
        """What releases everything that is open."""
        return self._handles.releases()

    def forget_locks(self) -> Callable[[], None] | None:
        """Give up all POSIX locks but those on other filesystems, whose giving up may wait: it is returned if there are any."""
        return self._locks.forget()

    def close(self) -> None:
        """Give up locks, handles and the root. No operation may be running."""
        if self.leases is not None:
            self.leases.close()
        self._locks.close()
        self._handles.close()
        self._filesystems.close()
        if self.watches is not None:
            self.watches.close()
        self._beneath.close()

    def _watches(self) -> Watches | None:
        try:
            return Watches(self._beneath)
        except OSError as error:
            self.unwatched = error.strerror or str(error)
            return None

    def _getlk(self, arguments: wire.Getlk) -> wire.LockState:
        file = self._to_be_locked(arguments.handle)
        return self._locks.of(file).test(file, arguments.owner, arguments.start, arguments.end, arguments.type)

    def _to_be_locked(self, handle: int) -> OpenFile:
        """A POSIX lock takes a description of its own (locks.py), which would wait for a lease of ours."""
        file = self._handles.file(handle)
        if file.leased and self.leases is not None:
            self.leases.give_way(*file.key)
        return file

    def _setlk(self, arguments: wire.Setlk) -> None:
        file = self._to_be_locked(arguments.handle)
        if arguments.flock:
            self._locks.of(file).flock(file, arguments.type)
        else:
            self._locks.of(file).set(file, arguments.owner, arguments.start, arguments.end, arguments.type)


def _table(
    names: Names,
    contents: Contents,
    gathering: Gathering,
    getlk: Callable[[wire.Getlk], wire.LockState],
    setlk: Callable[[wire.Setlk], None],
) -> dict[type[wire.Arguments], Callable[[Any], Any]]:
    return {
        wire.Getattr: names.getattr,
        wire.Setattr: names.setattr,
        wire.Readlink: names.readlink,
        wire.Symlink: names.symlink,
        wire.Mknod: names.mknod,
        wire.Mkdir: names.mkdir,
        wire.Unlink: names.unlink,
        wire.Rmdir: names.rmdir,
        wire.Rename: names.rename,
        wire.Link: names.link,
        wire.Open: contents.open,
        wire.Create: contents.create,
        wire.Read: contents.read,
        wire.Write: contents.write,
        wire.Flush: contents.flush,
        wire.Release: contents.release,
        wire.Unlease: contents.unlease,
        wire.Fsync: contents.fsync,
        wire.Opendir: contents.opendir,
        wire.Readdir: contents.readdir,
        wire.Releasedir: contents.releasedir,
        wire.Gather: gathering.gather,
        wire.Unwatch: gathering.unwatch,
        wire.Fsyncdir: contents.fsyncdir,
        wire.Statfs: names.statfs,
        wire.Access: names.access,
        wire.Getxattr: names.getxattr,
        wire.Setxattr: names.setxattr,
        wire.Listxattr: names.listxattr,
        wire.Removexattr: names.removexattr,
        wire.Lseek: contents.lseek,
        wire.Fallocate: contents.fallocate,
        wire.CopyFileRange: contents.copy_file_range,
        wire.Getlk: getlk,
        wire.Setlk: setlk,
    }


def _guarded(operation: Callable[[Any], Any], arguments: wire.Arguments) -> Any:
    try:
        return operation(arguments)
    except (ValueError, OverflowError, MemoryError) as error:
        raise _refused(error) from None


def _refused(error: Exception) -> OSError:
    if isinstance(error, MemoryError):
        return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    # os refuses some arguments before the kernel sees them: a NUL in a name, a number that fits no C type.
    return OSError(errno.EINVAL, str(error))
