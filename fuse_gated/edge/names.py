"""The operations on names and attributes: the tree, permissions, times, extended attributes.

Each works on one name in a directory that was resolved for this request alone, or on one object through its descriptor, and
never follows a link. So a name that is swapped meanwhile makes an operation fail or act on the new object, which lies
beneath the export as well.
"""

import contextlib
import errno
import os
import stat

from fuse_gated.edge import syscalls
from fuse_gated.edge.attributes import attributes, decode_device
from fuse_gated.edge.beneath import Beneath, Node
from fuse_gated.edge.handles import Handles, OpenFile
from fuse_gated.edge.leases import Leases
from fuse_gated.edge.precautions import SETID, Precautions, clear_setid
from fuse_gated.operations import NOW, Attributes, Filesystem
from fuse_gated.wire import messages as wire

_MAX_ID = 2**32 - 2  # 2**32-1 means 'leave it' (chown(2)).
_MAX_SIZE = 2**63 - 1


class Names:
    """Methods are named after their operation and raise OSError."""

    def __init__(self, beneath: Beneath, handles: Handles, precautions: Precautions, leases: Leases | None = None) -> None:
        self._beneath = beneath
        self._handles = handles
        self._precautions = precautions
        self._leases = leases

    def node(self, target: wire.Target) -> Node:
        """The object that a path names or a handle stands for."""
        if isinstance(target, bytes):
            return self._beneath.node(target)
        return Node(self._handles.either(target).fd, owned=False)

    def getattr(self, arguments: wire.Getattr) -> Attributes:
        target = arguments.target
        if isinstance(target, bytes):
            return attributes(self._beneath.status(target))
        return attributes(os.fstat(self._handles.either(target).fd))

    def setattr_quickly(self, arguments: wire.Setattr) -> Attributes | None:
        """None, and nothing was done, if another process holds a lease on a file that is to be cut by its name."""
        try:
            return self.setattr(arguments, os.O_NONBLOCK)
        except BlockingIOError:
            return None

    def setattr(self, arguments: wire.Setattr, extra: int = 0) -> Attributes:
        """In an order in which nothing undoes what came before: the size changes times, a new owner clears setuid."""
        self._precautions.refuse_changes()
        uid, gid = _checked_id(arguments.uid), _checked_id(arguments.gid)
        with self.node(arguments.target) as fd:
            path = syscalls.proc_path(fd)
            if arguments.size is not None:
                self._truncate(arguments.target, fd, path, arguments.size, extra)
            if uid != -1 or gid != -1:
                os.chown(path, uid, gid)
            if arguments.clear_setid:
                clear_setid(fd)
            if arguments.mode is not None:
                os.chmod(path, self._precautions.mode(arguments.mode))
            if arguments.atime is not None or arguments.mtime is not None:
                syscalls.utimensat(path, arguments.atime, arguments.mtime, NOW)
            return attributes(os.fstat(fd))

    def readlink(self, arguments: wire.Readlink) -> bytes:
        with self._beneath.parent(arguments.path) as (directory, name):
            return os.readlink(name, dir_fd=directory)

    def symlink(self, arguments: wire.Symlink) -> Attributes:
        self._precautions.refuse_changes()
        if b"\0" in arguments.target:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        with self._beneath.parent(arguments.path) as (directory, name):
            os.symlink(arguments.target, name, dir_fd=directory)
            return self._made(directory, name, arguments.owner, stat.S_IFLNK)

    def mknod(self, arguments: wire.Mknod) -> Attributes:
        self._precautions.refuse_changes()
        kind = stat.S_IFMT(arguments.mode) or stat.S_IFREG
        self._precautions.refuse_device(kind)
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            raise OSError(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL, f"mknod of mode {arguments.mode:o}")
        if not 0 <= arguments.rdev < 2**32:
            raise OSError(errno.EINVAL, f"device {arguments.rdev}")
        mode = kind | self._precautions.mode(arguments.mode)
        with self._beneath.parent(arguments.path) as (directory, name):
            os.mknod(name, mode, decode_device(arguments.rdev), dir_fd=directory)
            return self._made(directory, name, arguments.owner, mode)

    def mkdir(self, arguments: wire.Mkdir) -> Attributes:
        self._precautions.refuse_changes()
        mode = self._precautions.mode(arguments.mode)
        with self._beneath.parent(arguments.path) as (directory, name):
            os.mkdir(name, mode, dir_fd=directory)
            # mkdir(2) drops setuid and setgid, so there is nothing to set again once the owner has changed.
            return self._made(directory, name, arguments.owner, stat.S_IFDIR)

    def unlink(self, arguments: wire.Unlink) -> None:
        self._precautions.refuse_changes()
        with self._beneath.parent(arguments.path) as (directory, name):
            os.unlink(name, dir_fd=directory)

    def rmdir(self, arguments: wire.Rmdir) -> None:
        self._precautions.refuse_changes()
        with self._beneath.parent(arguments.path) as (directory, name):
            os.rmdir(name, dir_fd=directory)

    def rename(self, arguments: wire.Rename) -> None:
        self._precautions.refuse_changes()
        flags = (syscalls.RENAME_NOREPLACE if arguments.no_replace else 0) | (
            syscalls.RENAME_EXCHANGE if arguments.exchange else 0
        )
        with (
            self._beneath.parent(arguments.path) as (directory, name),
            self._beneath.parent(arguments.new_path) as (new_directory, new_name),
        ):
            if flags:
                syscalls.renameat2(directory, name, new_directory, new_name, flags)
            else:
                os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory)

    def link(self, arguments: wire.Link) -> Attributes:
        self._precautions.refuse_changes()
        target = arguments.target
        with self._beneath.parent(arguments.new_path) as (new_directory, new_name):
            if isinstance(target, bytes):
                with self._beneath.parent(target) as (directory, name):
                    os.link(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory, follow_symlinks=False)
            else:
                path = syscalls.proc_path(self._handles.either(target).fd)
                os.link(path, new_name, dst_dir_fd=new_directory, follow_symlinks=True)
            return attributes(os.stat(new_name, dir_fd=new_directory, follow_symlinks=False))

    def statfs(self, _arguments: wire.Statfs) -> Filesystem:
        status = os.fstatvfs(self._beneath.root)
        return Filesystem(
            status.f_blocks,
            status.f_bfree,
            status.f_bavail,
            status.f_files,
            status.f_ffree,
            status.f_bsize,
            status.f_namemax,
            status.f_frsize,
        )

    def access(self, arguments: wire.Access) -> None:
        mask = arguments.mask
        if mask & ~(os.R_OK | os.W_OK | os.X_OK):
            raise OSError(errno.EINVAL, f"access mask {mask:#x}")
        with self.node(arguments.target) as fd:
            if self._precautions.read_only and mask & os.W_OK:
                mode = os.fstat(fd).st_mode
                if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
                    self._precautions.refuse_changes()
            syscalls.faccessat(syscalls.AT_FDCWD, syscalls.proc_path(fd), mask, syscalls.AT_EACCESS)

    def getxattr(self, arguments: wire.Getxattr) -> bytes:
        self._precautions.check_xattr(arguments.name)
        with self.node(arguments.target) as fd:
            return os.getxattr(syscalls.proc_path(fd), arguments.name)

    def setxattr(self, arguments: wire.Setxattr) -> None:
        self._precautions.refuse_changes()
        self._precautions.check_xattr(arguments.name)
        flags = (os.XATTR_CREATE if arguments.create else 0) | (os.XATTR_REPLACE if arguments.replace else 0)
        with self.node(arguments.target) as fd:
            os.setxattr(syscalls.proc_path(fd), arguments.name, arguments.value, flags)

    def listxattr(self, arguments: wire.Listxattr) -> tuple[bytes, ...]:
        with self.node(arguments.target) as fd:
            names = [os.fsencode(name) for name in os.listxattr(syscalls.proc_path(fd))]
        return tuple(name for name in names if self._precautions.shows_xattr(name))

    def removexattr(self, arguments: wire.Removexattr) -> None:
        self._precautions.refuse_changes()
        self._precautions.check_xattr(arguments.name)
        with self.node(arguments.target) as fd:
            os.removexattr(syscalls.proc_path(fd), arguments.name)

    def give_away(self, fd: int, directory: int, owner: wire.Owner, mode: int) -> None:
        """Make what `fd` stands for, just made in `directory` with `mode`, the property of `owner`: of `directory`'s group
        where that is setgid (mkdir(2), open(2)). Raises OSError EPERM where this client cannot."""
        if not self._precautions.can_chown:
            raise OSError(errno.EPERM, "this client gives nothing away")
        uid, gid = _checked_id(owner.uid), _checked_id(owner.gid)
        parent = os.fstat(directory)
        path = syscalls.proc_path(fd)
        os.chown(path, uid, parent.st_gid if parent.st_mode & stat.S_ISGID else gid)
        if mode & SETID and not stat.S_ISLNK(mode):
            os.chmod(path, stat.S_IMODE(mode))  # chown(2) has cleared them.

    def _made(self, directory: int, name: bytes, owner: wire.Owner | None, mode: int) -> Attributes:
        if owner is None:
            return attributes(os.stat(name, dir_fd=directory, follow_symlinks=False))
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            with Node(fd, owned=True):
                status = os.fstat(fd)
                _require_newly_made(status, mode)
                self.give_away(fd, directory, owner, mode)
                return attributes(os.fstat(fd))
        except OSError:
            with contextlib.suppress(OSError):
                (os.rmdir if stat.S_ISDIR(mode) else os.unlink)(name, dir_fd=directory)
            raise

    def _truncate(self, target: wire.Target, fd: int, path: bytes, size: int, extra: int) -> None:
        if not 0 <= size <= _MAX_SIZE:
            raise OSError(errno.EINVAL, f"a size of {size}")
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, "only files have a size to set")
        if self._precautions.must_disarm(status):
            os.chmod(path, stat.S_IMODE(status.st_mode) & ~SETID)
        handle = None if isinstance(target, bytes) else self._handles.either(target)
        if isinstance(handle, OpenFile) and handle.writable:
            # What was opened for writing can be cut even if its mode forbids writing by now (ftruncate(2)).
            handle.written = True
            os.ftruncate(fd, size)
        else:
            if self._leases:
                self._leases.give_way(status.st_dev, status.st_ino)
            # Not truncate(2), which cannot be told not to wait for a lease.
            writable = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | extra)
            try:
                os.ftruncate(writable, size)
            finally:
                os.close(writable)


def _checked_id(number: int | None) -> int:
    if number is None:
        return -1
    if not 0 <= number <= _MAX_ID:
        raise OSError(errno.EINVAL, f"id {number}")
    return number


def _require_newly_made(status: os.stat_result, mode: int) -> None:
    """A local program that may write to the directory could have put something else in the place of what was made, to have
    it given away: a hard link to another's file, or a file of another type. Raises OSError ESTALE."""
    same_type = stat.S_IFMT(status.st_mode) == stat.S_IFMT(mode)
    if not same_type or status.st_uid != os.geteuid() or (status.st_nlink != 1 and not stat.S_ISDIR(mode)):
        raise OSError(errno.ESTALE, "what was made was replaced before it could be given away")
