"""The operations on what is open: data, holes, flushing, listings.

A file is opened only after its type was seen on an O_PATH descriptor, through /proc/self/fd, so that what is opened is what
was looked at: FIFOs, sockets and devices are never opened, because opening alone can block or act (open(2), fifo(7)).
"""

import contextlib
import errno
import os
import stat
import threading
import time
from typing import Final

import msgspec

from fuse_gated.edge import listing, syscalls
from fuse_gated.edge.attributes import attributes
from fuse_gated.edge.beneath import Beneath
from fuse_gated.edge.filesystems import Filesystems
from fuse_gated.edge.handles import Handles, OpenDirectory, OpenFile
from fuse_gated.edge.leases import Leases
from fuse_gated.edge.locks import Locks
from fuse_gated.edge.memory import make_buffer
from fuse_gated.edge.names import Names
from fuse_gated.edge.precautions import SETID, Precautions, clear_setid
from fuse_gated.operations import Attributes
from fuse_gated.wire import messages as wire

MAX_OFFSET: Final = 2**63 - 1
QUICK_WRITE: Final = 256 * 1024
"""Bytes that are written into the page cache in less time than a thread takes to be woken. A whole WRITE takes less than what a
thread costs besides (its own wake-ups and the loop's), so it is written as quickly, as long as the page cache takes it."""
_HELD_UP: Final = 0.01
"""Seconds for a longer write: the kernel makes it wait for the disk (too many pages are dirty)."""
_HELD_UP_FOR: Final = 1.0
"""Seconds for which longer writes are left to threads then."""
MOST_ENTRIES: Final = 2_000_000
"""Entries that open directories keep between them; beyond it no further one is read (ENOMEM)."""
_COPY_AT_ONCE: Final = 128 * 2**20
"""copy_file_range(2) cannot be interrupted, so a request ends after so much; the server asks for the rest."""
_CREATE_TRIES: Final = 16
_FALLOCATE_MODES: Final = 1 | 2 | 8 | 16 | 32


class Contents:
    """Everything that goes through a handle. Methods raise OSError; those named `…_quickly` give None where the call would
    wait for a disk, a network or another process, and have then done nothing."""

    def __init__(
        self,
        beneath: Beneath,
        handles: Handles,
        locks: Locks,
        names: Names,
        precautions: Precautions,
        filesystems: Filesystems,
        leases: Leases | None = None,
    ) -> None:
        self._beneath = beneath
        self._handles = handles
        self._locks = locks
        self._names = names
        self._precautions = precautions
        self._filesystems = filesystems
        self._leases = leases
        self._kept_entries = 0
        self._counting = threading.Lock()
        self._scratch = memoryview(make_buffer(wire.MAX_DATA))
        self._held_up_until = 0.0

    def open(self, arguments: wire.Open) -> wire.OpenedFile:
        return self._open(arguments, 0)

    def open_quickly(self, arguments: wire.Open) -> wire.OpenedFile | None:
        try:
            # Another process's lease (fcntl(2), F_SETLEASE) makes open(2) wait until it is given up.
            return self._open(arguments, os.O_NONBLOCK)
        except BlockingIOError:
            return None

    def create(self, arguments: wire.Create) -> wire.OpenedFile:
        self._precautions.refuse_changes()
        self._handles.require_room()
        flags = _open_flags(arguments.flags)
        mode = self._precautions.mode(arguments.mode)
        with self._beneath.parent(arguments.path) as (directory, name):
            for _ in range(_CREATE_TRIES):
                try:
                    # Always O_EXCL: without it, a FIFO or a device of that name would be opened.
                    fd = os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=directory)
                except FileExistsError:
                    if arguments.flags & wire.OPEN_EXCLUSIVE:
                        raise
                else:
                    return self._created(fd, directory, name, arguments, mode)
                with contextlib.suppress(FileNotFoundError):
                    return self._open(wire.Open(arguments.path, arguments.flags), 0)
        # Somebody makes and removes the name again and again.
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def read(self, arguments: wire.Read) -> bytes:
        file = self._readable(arguments)
        data = os.pread(file.fd, arguments.size, arguments.offset)
        if len(data) == arguments.size or not data:
            return data
        parts = [data]
        missing, offset = arguments.size - len(data), arguments.offset + len(data)
        while missing and (data := os.pread(file.fd, missing, offset)):
            parts.append(data)
            missing, offset = missing - len(data), offset + len(data)
        return b"".join(parts)

    def read_quickly(self, arguments: wire.Read) -> memoryview | None:
        """What the page cache holds (preadv2(2), RWF_NOWAIT). The view is overwritten by the next call."""
        file = self._readable(arguments)
        if not file.local:
            return None
        done = 0
        try:
            while done < arguments.size:
                count = os.preadv(file.fd, (self._scratch[done : arguments.size],), arguments.offset + done, os.RWF_NOWAIT)
                if count == 0:
                    break
                done += count
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise
        return self._scratch[:done]

    def write(self, arguments: wire.Write) -> int:
        self._precautions.refuse_changes()
        file = self._handles.file(arguments.handle)
        # msgspec 0.19 makes views whose shape is not their size; cast() makes them whole.
        data = arguments.data.cast("B")
        if len(data) > wire.MAX_DATA:
            raise OSError(errno.EINVAL, f"{len(data)} bytes in one write")
        _require_range(arguments.offset, len(data))
        file.written = True
        if arguments.append and arguments.most is not None and os.fstat(file.fd).st_size + len(data) > arguments.most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if arguments.clear_setid:
            clear_setid(file.fd)
        flags = os.RWF_APPEND if arguments.append else 0
        done = 0
        while True:
            try:
                done += os.pwritev(file.fd, (data[done:],), arguments.offset + done, flags)
            except OSError as error:
                if self._leases is not None and self._leases.makes_room(error, arguments.handle):
                    continue
                if done:
                    # What was written counts; the error, if it lasts, meets the next write (write(2)).
                    return done
                raise
            if done >= len(data):
                return done

    def write_quickly(self, arguments: wire.Write) -> int | None:
        file = self._handles.file(arguments.handle)
        if not file.local or file.synchronous:
            return None
        if arguments.data.nbytes <= QUICK_WRITE:
            return self.write(arguments)
        began = time.monotonic()
        if began < self._held_up_until:
            return None
        try:
            return self.write(arguments)
        finally:
            ended = time.monotonic()
            if ended - began > _HELD_UP:
                self._held_up_until = ended + _HELD_UP_FOR

    def flush(self, arguments: wire.Flush) -> None:
        file = self._handles.file(arguments.handle)
        self._locks.of(file).release_owner(file, arguments.owner)
        if file.written:
            file.written = False
            # Closing a duplicate tells what close(2) has to tell: write errors, on NFS also ENOSPC and EDQUOT.
            os.close(os.dup(file.fd))

    def flush_is_quick(self, arguments: wire.Flush) -> bool:
        file = self._handles.file(arguments.handle)
        return file.local or not file.written

    def release(self, arguments: wire.Release) -> None:
        """Must not be called while another operation on the handle runs: its descriptor's number is free afterwards."""
        file = self._handles.remove_file(arguments.handle)
        if file.leased and self._leases is not None:
            self._leases.give_up(arguments.handle)
        self._locks.of(file).closed(file, still_open=self._handles.is_open)
        os.close(file.fd)

    def unlease(self, arguments: wire.Unlease) -> None:
        self._handles.file(arguments.handle)
        if self._leases is not None:
            self._leases.give_up(arguments.handle)

    def fsync(self, arguments: wire.Fsync) -> None:
        fd = self._handles.file(arguments.handle).fd
        (os.fdatasync if arguments.data_only else os.fsync)(fd)

    def opendir(self, arguments: wire.Opendir) -> wire.OpenedFile:
        self._handles.require_room()
        fd = self._open_directory(arguments.path)
        try:
            status = os.fstat(fd)
            local = self._filesystems.is_local(fd, status.st_dev)
        except OSError:
            os.close(fd)
            raise
        return wire.OpenedFile(self._handles.add(OpenDirectory(fd, local=local)), attributes(status))

    def readdir(self, arguments: wire.Readdir) -> wire.Listed:
        directory = self._handles.directory(arguments.handle)
        anew = listing.starts(directory, arguments.cookie)
        if anew:
            self._keep(-len(directory.entries))
            directory.entries = []
            if self._kept_entries > MOST_ENTRIES:
                raise OSError(errno.ENOMEM, "too many entries of open directories are kept")
        try:
            covered = self._filesystems.mounted_in(directory.fd)
            return listing.read(directory, arguments.cookie, arguments.count, arguments.attributes, covered)
        finally:
            if anew:
                self._keep(len(directory.entries))

    def readdir_is_quick(self, arguments: wire.Readdir) -> bool:
        directory = self._handles.directory(arguments.handle)
        return listing.is_quick(directory, arguments.cookie, arguments.count, arguments.attributes)

    def releasedir(self, arguments: wire.Releasedir) -> None:
        """Must not be called while another operation on the handle runs."""
        directory = self._handles.remove_directory(arguments.handle)
        self._keep(-len(directory.entries))
        os.close(directory.fd)

    def fsyncdir(self, arguments: wire.Fsyncdir) -> Attributes | None:
        sync = os.fdatasync if arguments.data_only else os.fsync
        if arguments.path is None:
            sync(self._handles.directory(arguments.handle).fd)
            return None
        fd = self._open_directory(arguments.path)
        try:
            sync(fd)
            return attributes(os.fstat(fd))
        finally:
            os.close(fd)

    def require_near(self, path: bytes) -> None:
        """Raises OSError, or BeyondMount, where this directory cannot be opened within the root's mount (beneath.py)."""
        os.close(self._open_directory(path))

    def lseek(self, arguments: wire.Lseek) -> int:
        file = self._handles.file(arguments.handle)
        _require_range(arguments.offset, 0)
        # The descriptor's own position moves, and is used by nothing else.
        return os.lseek(file.fd, arguments.offset, os.SEEK_HOLE if arguments.hole else os.SEEK_DATA)

    def fallocate(self, arguments: wire.Fallocate) -> None:
        self._precautions.refuse_changes()
        file = self._handles.file(arguments.handle)
        if arguments.mode & ~_FALLOCATE_MODES:
            raise OSError(errno.EOPNOTSUPP, f"fallocate mode {arguments.mode:#x}")
        if arguments.length <= 0:
            raise OSError(errno.EINVAL, f"a length of {arguments.length}")
        _require_range(arguments.offset, 0)
        if arguments.length > MAX_OFFSET - arguments.offset:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        file.written = True
        if arguments.clear_setid:
            clear_setid(file.fd)
        syscalls.fallocate(file.fd, arguments.mode, arguments.offset, arguments.length)

    def copy_file_range(self, arguments: wire.CopyFileRange) -> int:
        self._precautions.refuse_changes()
        source, target = self._handles.file(arguments.handle), self._handles.file(arguments.to_handle)
        length = arguments.length
        _require_range(arguments.offset, length)
        _require_range(arguments.to_offset, length)
        target.written = True
        if arguments.clear_setid:
            clear_setid(target.fd)
        return os.copy_file_range(source.fd, target.fd, min(length, _COPY_AT_ONCE), arguments.offset, arguments.to_offset)

    def _open_directory(self, path: bytes) -> int:
        # O_DIRECTORY is tested before anything is opened, so no FIFO or device is.
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        if not path:
            return os.open(b".", flags, dir_fd=self._beneath.root)
        with self._beneath.parent(path) as (directory, name):
            return os.open(name, flags, dir_fd=directory)

    def _keep(self, entries: int) -> None:
        with self._counting:
            self._kept_entries += entries

    def _open(self, arguments: wire.Open, extra: int) -> wire.OpenedFile:
        flags = _open_flags(arguments.flags)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            self._precautions.refuse_changes()
        self._handles.require_room()
        with self._names.node(arguments.target) as node:
            status = os.fstat(node)
            _require_regular(status)
            if self._leases:
                self._leases.give_way(status.st_dev, status.st_ino)
            fd = os.open(syscalls.proc_path(node), flags | extra)
            if arguments.clear_setid and flags & os.O_TRUNC:
                clear_setid(node)
            return self._opened(fd, status if not flags & os.O_TRUNC else os.fstat(fd), arguments.flags)

    def _opened(self, fd: int, status: os.stat_result, flags: int) -> wire.OpenedFile:
        writable = bool(flags & wire.OPEN_WRITE)
        try:
            if (writable or flags & wire.OPEN_TRUNCATE) and self._precautions.must_disarm(status):
                os.fchmod(fd, stat.S_IMODE(status.st_mode) & ~SETID)
                status = os.fstat(fd)
            local = self._filesystems.is_local(fd, status.st_dev)
        except OSError:
            os.close(fd)
            raise
        file = OpenFile(
            fd,
            (status.st_dev, status.st_ino),
            readable=bool(flags & wire.OPEN_READ),
            writable=writable,
            synchronous=bool(flags & (wire.OPEN_SYNC | wire.OPEN_DSYNC)),
            local=local,
        )
        return wire.OpenedFile(self._handles.add(file), attributes(status), file.local)

    def _created(self, fd: int, directory: int, name: bytes, arguments: wire.Create, mode: int) -> wire.OpenedFile:
        try:
            if arguments.owner is not None:
                self._names.give_away(fd, directory, arguments.owner, mode)
            status = os.fstat(fd)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
            raise
        opened = self._opened(fd, status, arguments.flags)
        leased = 0
        if arguments.lease and self._leases is not None:
            leased = self._leases.take(opened.handle, self._handles.file(opened.handle), arguments.lease, self._beneath.root)
        return msgspec.structs.replace(opened, made=True, leased=leased)

    def _readable(self, arguments: wire.Read) -> OpenFile:
        file = self._handles.file(arguments.handle)
        if not 0 <= arguments.size <= wire.MAX_DATA:
            raise OSError(errno.EINVAL, f"a read of {arguments.size} bytes")
        _require_range(arguments.offset, arguments.size)
        return file


def _open_flags(asked: int) -> int:
    """The wire's open flags as this machine's. Raises OSError EINVAL where neither reading nor writing is asked for."""
    match asked & (wire.OPEN_READ | wire.OPEN_WRITE):
        case wire.OPEN_READ:
            flags = os.O_RDONLY
        case wire.OPEN_WRITE:
            flags = os.O_WRONLY
        case 0:
            raise OSError(errno.EINVAL, f"open flags {asked:#x}")
        case _:
            flags = os.O_RDWR
    if asked & wire.OPEN_TRUNCATE:
        flags |= os.O_TRUNC
    if asked & wire.OPEN_SYNC:
        flags |= os.O_SYNC
    if asked & wire.OPEN_DSYNC:
        flags |= os.O_DSYNC
    return flags | os.O_CLOEXEC | os.O_NOCTTY


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    raise OSError(errno.ENXIO, "special files are never opened")


def _require_range(offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset > MAX_OFFSET or length > MAX_OFFSET - offset:
        raise OSError(errno.EINVAL, f"offset {offset}, length {length}")
