"""What a client does not let a server do: the rules for one export, in one place.

A server is not trusted with more than the files beneath the export. Unless `trust_server`, nothing that it makes or writes
can run with another's rights (setuid, setgid, file capabilities), it makes no device nodes, and of extended attributes it
sees those of programs alone (user.*; xattr(7)).
"""

import contextlib
import errno
import os
import stat
from typing import Final

SETID: Final = stat.S_ISUID | stat.S_ISGID
_CAP_CHOWN: Final = 1 << 0
_CAP_DAC_OVERRIDE: Final = 1 << 1
_CAP_FOWNER: Final = 1 << 3
_CAP_FSETID: Final = 1 << 4
_PASSING_OWNERSHIP: Final = _CAP_CHOWN | _CAP_DAC_OVERRIDE | _CAP_FOWNER


class Precautions:
    """`capabilities`: the process's effective ones, as bits (capabilities(7))."""

    def __init__(self, *, read_only: bool = False, trust_server: bool = False, capabilities: int = 0) -> None:
        self.read_only = read_only
        self.trust_server = trust_server
        self.can_chown = capabilities & _PASSING_OWNERSHIP == _PASSING_OWNERSHIP
        """This process may give files away, and so serve an export whose ownership is passed through."""
        self._writes_keep_setid = bool(capabilities & _CAP_FSETID)

    def refuse_changes(self) -> None:
        """Raises OSError EROFS where the export is read-only."""
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def mode(self, mode: int) -> int:
        """The permission bits that are set when a server asks for `mode`."""
        return mode & 0o7777 if self.trust_server else mode & 0o7777 & ~SETID

    def refuse_device(self, mode: int) -> None:
        """Raises OSError EPERM if `mode` is a device node's."""
        if not self.trust_server and (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            raise OSError(errno.EPERM, "a server makes no device nodes here")

    def check_xattr(self, name: bytes) -> None:
        """Raises OSError: EOPNOTSUPP for an attribute outside user.*, ERANGE or EINVAL for what is no name (xattr(7))."""
        if not name or len(name) > 255:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
        if b"\0" in name:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if not self.shows_xattr(name):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def shows_xattr(self, name: bytes) -> bool:
        return self.trust_server or name.startswith(b"user.")

    def must_disarm(self, status: os.stat_result) -> bool:
        """Whether a file that the server is about to change must lose setuid and setgid first. The kernel takes them away
        from what an ordinary user writes, but not from what root writes (CAP_FSETID)."""
        if not status.st_mode & SETID or not self._writes_keep_setid or self.trust_server:
            return False
        return stat.S_ISREG(status.st_mode)


def without_setid(mode: int) -> int:
    """The permission bits that are left when somebody without CAP_FSETID changes a file's contents: no setuid, and no setgid
    if its group may execute it (without, the bit marks mandatory locking: inode(7))."""
    dropped = SETID if mode & stat.S_IXGRP else stat.S_ISUID
    return stat.S_IMODE(mode) & ~dropped


def clear_setid(fd: int) -> None:
    """Take from a regular file what `without_setid` says. It is asked for by the server where its caller is not privileged,
    because this process may be, and the kernel then takes nothing away."""
    mode = os.fstat(fd).st_mode
    if mode & SETID and stat.S_ISREG(mode) and without_setid(mode) != stat.S_IMODE(mode):
        # A process that may not change the mode is one whose changes the kernel itself takes the bits for.
        with contextlib.suppress(PermissionError):
            # Not fchmod: the descriptor may be an O_PATH one.
            os.chmod(f"/proc/self/fd/{fd}", without_setid(mode))


def effective_capabilities() -> int:
    """This process's effective capabilities, as bits (proc(5), CapEff). Raises OSError where /proc is not mounted."""
    with open("/proc/self/status", "rb") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith(b"CapEff:"))
