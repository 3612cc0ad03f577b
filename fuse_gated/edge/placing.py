"""Directories for copies: where a mount would be, with one beside for what belongs to it, and out of the way in the end.

Beside TENANT/EXPORT lies TENANT/EXPORT~copy, and what is put aside becomes TENANT/EXPORT~unsent-SESSION: '~' is in no export's
name. All of it is named by the descriptor of the tenant's directory, which belongs to who calls this.
"""

import contextlib
import errno
import os
from collections.abc import Collection
from typing import Final

from fuse_gated.edge import mounts
from fuse_gated.edge.copy_tree import BESIDE
from fuse_gated.errors import OperatorError

_MARK: Final = "~"
_CLOSED: Final = 0o700
_TRIES: Final = 1000


def beside(export: str) -> str:
    """The name of the directory beside a copy."""
    return f"{export}{_MARK}copy"


def is_copys(name: str, names: Collection[str]) -> bool:
    """Whether that name in a tenant's directory, which has these names, is a copy's, or belongs to one."""
    return _MARK in name or beside(name) in names


def place(
    tenant: int, export: str, *, owner: int, uids: Collection[int], gids: Collection[int], anyone: bool
) -> tuple[int, int]:
    """Make both in the directory `tenant`, or go on with those that are there: their descriptors. They are ours; `owner` (a uid)
    may do everything in both, these users and groups in the copy. No capability is needed for it.

    Raises OSError (EXDEV where something is mounted), and OperatorError where others cannot be let in; nothing new is there then.
    """
    opened: list[int] = []
    made: list[str] = []
    try:
        _void_without(tenant, export)
        for name in (export, beside(export)):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, _CLOSED, dir_fd=tenant)
                made.append(name)
            opened.append(mounts.open_beneath(tenant, name, os.O_RDONLY | os.O_DIRECTORY, same_mount=True))
        copy, aside = opened
        with contextlib.suppress(FileExistsError):
            os.mkdir(BESIDE, _CLOSED, dir_fd=aside)
            made.append(os.path.join(beside(export), BESIDE))
        incoming = mounts.open_beneath(aside, BESIDE, os.O_RDONLY | os.O_DIRECTORY, same_mount=True)
        opened.append(incoming)
        _let_in(aside, {owner}, (), anyone=False)
        # What comes is made over there, and must be as it would be if it were made in the copy.
        for directory in (copy, incoming):
            _let_in(directory, {*uids, owner}, gids, anyone=anyone)
        os.close(opened.pop())
    except BaseException:
        for directory in opened:
            os.close(directory)
        for name in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=tenant)
        raise
    return copy, aside


def displace(tenant: int, export: str, aside: str) -> None:
    """Take away what `place` made: what is not empty gets a name with `aside` in it. Raises OSError."""
    kept = f"{export}{_MARK}unsent-{aside}"
    # First: whoever is killed in between must not leave a ledger to a copy that is gone.
    _void(tenant, export)
    try:
        os.rmdir(export, dir_fd=tenant)
    except FileNotFoundError:
        pass
    except OSError:
        _put_aside(tenant, export, kept)
    with contextlib.suppress(FileNotFoundError):
        directory = mounts.open_beneath(tenant, beside(export), os.O_RDONLY | os.O_DIRECTORY, same_mount=True)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(BESIDE, dir_fd=directory)
            os.rmdir(beside(export), dir_fd=tenant)
        except OSError:
            # Something that a program has written lies there still.
            _put_aside(tenant, beside(export), f"{kept}{_MARK}beside")
        finally:
            os.close(directory)


def _void_without(tenant: int, export: str) -> None:
    """A ledger belongs to a copy that is there. Left to another one, which may even get the inode's number, it would say that all
    that it names was removed. Raises OSError."""
    # By its name: what is mounted there may be of somebody who never answers.
    if export not in os.listdir(tenant):
        _void(tenant, export)


def _void(tenant: int, export: str) -> None:
    """Remove the files beside a copy: what is known of it. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        directory = mounts.open_beneath(tenant, beside(export), os.O_RDONLY | os.O_DIRECTORY, same_mount=True)
        try:
            for name in os.listdir(directory):
                if name != BESIDE:
                    # What is no file is put aside with all that is beside.
                    with contextlib.suppress(IsADirectoryError):
                        os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)


def _put_aside(tenant: int, name: str, kept: str) -> None:
    """Under a name that is free, or is an empty directory's. Raises OSError."""
    for number in range(1, _TRIES):
        try:
            os.rename(name, kept if number == 1 else f"{kept}-{number}", src_dir_fd=tenant, dst_dir_fd=tenant)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), kept)


def _let_in(directory: int, uids: Collection[int], gids: Collection[int], *, anyone: bool) -> None:
    if not (anyone or gids or set(uids) - {os.geteuid()}):
        os.fchmod(directory, _CLOSED)
        return
    try:
        import posix1e
    except ImportError:
        raise OperatorError("ACLs cannot be set: no libacl binding for Python", "install python3-pylibacl") from None
    named = [f"u:{uid}:rwx" for uid in sorted(set(uids))] + [f"g:{gid}:rwx" for gid in sorted(set(gids))]
    text = ",".join(["u::rwx", "g::---", f"o::{'rwx' if anyone else '---'}", *named, "m::rwx"])
    path = f"/proc/self/fd/{directory}"
    try:
        acl = posix1e.ACL(text=text)
        acl.applyto(path)
        # What programs make in it is theirs and everybody's, whatever their umask is (acl(5)).
        acl.applyto(path, posix1e.ACL_TYPE_DEFAULT)
    except OSError as error:
        hint = "the runtime directory's filesystem must have ACLs, as tmpfs has"
        raise OperatorError(f"cannot set the ACL of {os.readlink(path)}: {error.strerror}", hint) from None
