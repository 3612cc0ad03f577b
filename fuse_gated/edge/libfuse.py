"""libfuse 2 through fusepy: what it lacks, what must be there for it, and what fusepy keeps from its callers.

fusepy is the module `fusepy` in Debian and `fuse` on PyPI. It passes text, which Latin-1 turns into the very bytes that the
kernel sent and back: a name need not be UTF-8.

Sources: fuse.h and fuse.c of libfuse 2.9, fusepy 3.0.1, fusermount3(1), fuse(8), proc(5).
"""

import contextlib
import ctypes
import functools
import importlib
import os
import shutil
import stat
import subprocess
from typing import Any, Final

import msgspec

from fuse_gated.edge import mounts
from fuse_gated.errors import OperatorError
from fuse_gated.operations import Caller

LACKS: Final[dict[str, str]] = {
    "flock": "flock(2) excludes only programs on the server from each other; the client's own do not see it (fcntl(2)'s "
    "record locks are taken on the client)",
    "fallocate": "fallocate(2) fails with EOPNOTSUPP; posix_fallocate(3) then writes zeros",
    "rename flags": "renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE fails with EINVAL",
    "readdirplus": "every listed name that is looked at costs a request of its own",
    "copy_file_range": "copy_file_range(2) carries the data through the server; nothing is copied on the client",
    "lseek": "SEEK_DATA and SEEK_HOLE (lseek(2)) find a file without holes, so copies fill them with zeros",
    "interrupt": "a signal ends a call that waits up to 0.2 s late, because libfuse is asked about signals and tells none",
    "invalidation": "of a file that is open, or mapped, pages that were read go on being shown when the client's own programs "
    "or another hard link change them, until its size changes or it is opened again, whatever locks are held: a database must "
    "not be written from both sides; a policy made narrower does not take back cached pages; whether a mount is noexec, and "
    "whether others can enter it at all, stays as it was when it was mounted",
    "takeover": "a mount ends with its session's process: no other takes it over",
    "nodes": "a file is known by its name alone: what the client's own programs move away under a program that has it open is "
    "not found by fstat(2) (read, write and close go on), nor is a directory that was removed, or a file whose directory was",
    "atomic replacement": "a name that another program replaces by rename(2) at this very moment may be missing (ENOENT); a file "
    "that is open on the server, or was until a moment ago, is removed before another takes its name, and stays removed if that "
    "is then refused",
    "hidden names": "names of .fuse_hidden and 16 hexadecimal digits are libfuse's own: they are not found and cannot be made",
    "combined changes": "one SETATTR of mode, owner, size and times arrives as several, of which the first may be done when the "
    "second fails",
    "large requests": "a READ or WRITE carries at most 128 KiB, and each costs two process switches more",
    "nosymfollow": "symlinks: deny refuses readlink(2), as with the kernel driver, but the mount has no flag nosymfollow",
}
"""What the libfuse driver cannot do and the kernel driver can, and what programs see of it. fusepy's table of operations is
that of libfuse 2, whose protocol is 7.19."""

ENCODING: Final = "latin-1"
PROTOCOL_MINOR: Final = 19
"""libfuse 2.9 answers every newer kernel with this minor version."""
DEVICE: Final = "/dev/fuse"
CONFIGURATION: Final = "/etc/fuse.conf"
TABLE: Final = "/etc/mtab"
"""By which fusermount knows whose a mount is: without it, it takes none away."""

_PATIENCE: Final = 5.0
_NO_NAME: Final = b"x" * 2**20
"""Longer than any buffer of a READDIR."""
_CONNECTION: Final = ctypes.c_uint * 4  # fuse_conn_info's beginning: proto_major, proto_minor, async_read, max_write


class Timespecs(msgspec.Struct, frozen=True):
    """utimensat(2)'s times: (seconds, nanoseconds), the latter perhaps UTIME_NOW or UTIME_OMIT."""

    atime: tuple[int, int]
    mtime: tuple[int, int]


@functools.cache
def library() -> Any:
    """fusepy's module, which has loaded libfuse.

    Importing it runs other programs (ctypes.util.find_library), so the daemon calls this before it forks. Raises
    OperatorError when it is not installed.
    """
    for name in ("fusepy", "fuse"):
        try:
            found = importlib.import_module(name)
        except ImportError:
            continue
        except OSError as error:
            raise OperatorError(f"fusepy cannot load libfuse 2: {error}", "install libfuse2 (Debian 13: libfuse2t64)") from None
        # python-fuse, another binding, calls its module `fuse` too.
        if hasattr(found, "FUSE") and hasattr(found, "fuse_get_context"):
            return found
    hint = "install python3-fusepy (pip: fusepy)"
    raise OperatorError("an ordinary user's server mounts by fusepy, which is not installed", hint)


def check() -> None:
    """Raises OperatorError where an ordinary user cannot mount, and says what is missing."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        hint = "as root: modprobe fuse; a container needs --device /dev/fuse"
        raise OperatorError(f"no mount can be made: there is no {DEVICE}", hint) from None
    except OSError as error:
        raise OperatorError(f"no mount can be made: {DEVICE}: {error.strerror}", f"as root: chmod 666 {DEVICE}") from None
    # The name by which libfuse 2 runs it; fuse3 has it as a link.
    program = shutil.which("fusermount")
    if program is None:
        advice = "install fuse3" if unmounter() is None else f"as root: ln -s {unmounter()} /usr/bin/fusermount"
        raise OperatorError("an ordinary user's server mounts by fusermount, which is not installed", advice)
    status = os.stat(program)
    if os.geteuid() and (status.st_uid != 0 or not status.st_mode & stat.S_ISUID):
        raise OperatorError(f"{program} is not setuid root, so it cannot mount for us", "as root: reinstall fuse3")
    if not os.path.exists(TABLE):
        hint = f"as root: ln -s /proc/self/mounts {TABLE}"
        raise OperatorError(f"there is no {TABLE}, without which fusermount takes no mount away", hint)
    library()


def others_may_enter() -> bool:
    """Whether the administrator lets users give others access to their mounts (user_allow_other in fuse.conf, fuse(8))."""
    try:
        with open(CONFIGURATION, encoding="utf-8", errors="replace") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False


def caller() -> Caller:
    """Who asked for the operation that this thread carries out."""
    return Caller(*library().fuse_get_context())


def is_interrupted() -> bool:
    """Whether the caller of the operation that this thread carries out got a signal. libfuse knows; fusepy does not ask."""
    return bool(library()._libfuse.fuse_interrupted())


def serve(operations: Any, point: str, options: dict[str, Any]) -> None:
    """Mount at `point` and serve `operations` until the mount is gone.

    Three operations have other arguments than fusepy's: `init(max_write)`, `readdir(handle, offset, fill)` and
    `utimens(path, times)`. Raises RuntimeError where it cannot be mounted; libfuse has then told why on stderr.
    """
    mount = type("Mount", (library().FUSE,), {"init": init, "readdir": _readdir, "utimens": _utimens})
    mount(operations, os.fsencode(point).decode(ENCODING), raw_fi=True, encoding=ENCODING, foreground=True, **options)


def init(mount: Any, connection: int) -> int:
    """fusepy's own does not tell its operations what was negotiated. (It knows this one by its name.)"""
    mount.operations("init", _CONNECTION.from_address(connection)[3])
    return 0


def _readdir(mount: Any, _path: bytes | None, buffer: int, filler: Any, offset: int, info: Any) -> int:
    """fusepy's own does not tell its operations where the listing goes on."""
    binding = library()

    def fill(name: bytes, inode: int, type_: int, following: int) -> bool:
        status = binding.c_stat(st_ino=inode, st_mode=type_)
        return bool(filler(buffer, name, status, following) == 0)

    if not mount.operations("readdir", info.contents.fh, offset, fill):
        # After an end without this, libfuse takes every position for the end, a smaller one that seekdir(3) goes to as well.
        fill(_NO_NAME, 0, 0, 1)
    return 0


def _utimens(mount: Any, path: bytes, times: Any) -> Any:
    """fusepy's own adds seconds and nanoseconds up, where UTIME_NOW and UTIME_OMIT are lost."""
    atime, mtime = times.contents.actime, times.contents.modtime
    given = Timespecs((atime.tv_sec, atime.tv_nsec), (mtime.tv_sec, mtime.tv_nsec))
    return mount.operations("utimens", path.decode(ENCODING), given)


def unmounter() -> str | None:
    """The program by which an ordinary user unmounts."""
    return shutil.which("fusermount3") or shutil.which("fusermount")


def unmount(path: str) -> str:
    """Take the mount at the absolute `path` away, whoever uses it; never asks the mount itself. Waits for fusermount.

    '' if nothing is mounted there any more, else what fusermount says.
    """
    arguments = [unmounter() or "fusermount3", "-u", "-z", "--", path]
    while is_mounted(path):
        try:
            done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode and is_mounted(path):
            return os.fsdecode(done.stderr).strip() or f"fusermount ended with {done.returncode}"
    return ""


def is_mounted(path: str) -> bool:
    """Whether something is mounted at the absolute `path`, by mountinfo: the mount itself is not asked."""
    return any(mount.path == path for mount in mounts.mounts_beneath(os.path.dirname(path)))


def remove_point(mnt: str, tenant: str, export: str) -> None:
    """Take the directories of a mount away that is gone. What others still need stays."""
    with contextlib.suppress(OSError):
        os.rmdir(os.path.join(mnt, tenant, export))
        os.rmdir(os.path.join(mnt, tenant))


def clear(mnt: str) -> list[str]:
    """Take away what an earlier server left beneath `mnt`: mounts that nobody serves, and their directories. The paths of
    the mounts.

    Raises OperatorError for one that stays.
    """
    cleared = []
    while left := mounts.mounts_beneath(mnt):
        path = min((mount.path for mount in left), key=len)
        told = unmount(path)
        if told:
            raise OperatorError(f"a mount that was left behind stays: {path}: {told}", f"fusermount3 -u -z {path}")
        cleared.append(path)
    for tenant in os.listdir(mnt):
        with contextlib.suppress(OSError):
            for export in os.listdir(os.path.join(mnt, tenant)):
                remove_point(mnt, tenant, export)
            os.rmdir(os.path.join(mnt, tenant))
    return cleared
