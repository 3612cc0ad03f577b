"""Run in the virtual machine, on a mount whose files lie on a machine of another architecture: every kind of open(2), errors by
their numbers, locks, offsets beyond 4 GiB. Prints one JSON object.
"""

import errno
import fcntl
import json
import mmap
import os
import struct
import sys

mount = sys.argv[1]
told = {}


def path(name):
    return os.path.join(mount, name)


def attempt(name, function, *arguments):
    try:
        told[name] = function(*arguments)
    except OSError as error:
        told[name] = errno.errorcode[error.errno]


def opened(name, flags, mode=0o640):
    """What the descriptor is, and what can be done with it."""
    fd = os.open(path(name), flags, mode)
    try:
        can = ""
        try:
            os.pread(fd, 1, 0)
            can += "r"
        except OSError:
            pass
        try:
            os.pwrite(fd, b"x", 0)
            can += "w"
        except OSError:
            pass
        return [can, os.fstat(fd).st_size]
    finally:
        os.close(fd)


def record_lock(name):
    with open(path(name), "r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 2**33, 10, 0))
        with open(path(name), "r+b") as other:
            asked = struct.pack("hhqqi0q", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, start, length, _ = struct.unpack("hhqqi0q", fcntl.fcntl(other, fcntl.F_OFD_GETLK, asked))
            return [kind == fcntl.F_WRLCK, start, length]


def direct(name):
    """O_DIRECT is another number on either architecture: here that of O_DIRECTORY there."""
    fd = os.open(path(name), os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 65536) as buffer:
            return os.preadv(fd, [buffer], 0)
    finally:
        os.close(fd)


def far(name):
    with open(path(name), "wb") as file:
        file.seek(5 * 2**30)
        file.write(b"end")
        file.flush()
        return os.fstat(file.fileno()).st_size


def in_sequence(name):
    """More than one request carries, by the largest there are."""
    data = os.urandom(2**20) * 3
    fd = os.open(path(name), os.O_RDWR | os.O_CREAT)
    written = os.write(fd, data)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    same = os.pread(fd, len(data), 0) == data[:written] and written == len(data)
    os.close(fd)
    return same


for access in ("O_RDONLY", "O_WRONLY", "O_RDWR"):
    attempt(access, opened, "file", getattr(os, access))
for flag in ("O_NOFOLLOW", "O_NOATIME", "O_NONBLOCK", "O_SYNC", "O_DSYNC", "O_CLOEXEC", "O_NOCTTY", "O_DIRECTORY"):
    attempt(flag, opened, "file", os.O_RDONLY | getattr(os, flag))
attempt("O_DIRECT", direct, "large")
attempt("O_TRUNC", opened, "short", os.O_RDWR | os.O_TRUNC)
attempt("O_APPEND", opened, "file", os.O_WRONLY | os.O_APPEND)
attempt("O_CREAT", opened, "new", os.O_CREAT | os.O_WRONLY)
attempt("O_EXCL", opened, "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
attempt("O_NOFOLLOW on a link", opened, "link", os.O_RDONLY | os.O_NOFOLLOW)
attempt("O_DIRECTORY on a directory", os.open, path("directory"), os.O_RDONLY | os.O_DIRECTORY)
told["O_DIRECTORY on a directory"] = isinstance(told["O_DIRECTORY on a directory"], int)
attempt("missing", os.stat, path("missing"))
attempt("not empty", os.rmdir, path("directory"))
attempt("exists", os.mkdir, path("directory"))
attempt("no attribute", os.getxattr, path("file"), "user.none")
attempt("too long", os.mkdir, path("n" * 256))
attempt("refused", opened, "secret", os.O_RDONLY)
attempt("lock", record_lock, "file")
attempt("far", far, "far")
attempt("in sequence", in_sequence, "sequence")
attempt("listing", lambda: sorted(os.listdir(mount)))
status = os.stat(path("large"))
told["status"] = [status.st_size, status.st_blocks * 512 >= status.st_size, status.st_mtime_ns]
told["machine"] = os.uname().machine
print(json.dumps(told))
