"""Mounts: made on descriptors, taken away by force, and never looked into.

Everything here happens beneath directories that root alone can change, and is named by descriptors of theirs, so that
nobody can put another directory in the place of one that was checked. A mount point is never stat'ed: the answer would have
to come from the process that serves the mount, which may be gone, hung or hostile.

Sources: mount(2), umount2(2), openat2(2), proc(5) for mountinfo, acl(5), linux/fuse.h and Documentation/filesystems/fuse.rst.
"""

import contextlib
import ctypes
import errno
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from fuse_gated.errors import KernelError, OperatorError

FILESYSTEM: Final = "fuse.fuse-gated"
"""The type that mount(8) and df(1) show."""
MAX_READ: Final = 2**20
"""Bytes in one READ."""
MODE_OPEN: Final = 0o755
MODE_CLOSED: Final = 0o700

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_OPENAT2: Final = 437  # the same number on every architecture (syscalls(2))
# linux/openat2.h
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
# linux/mount.h
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_REMOUNT: Final = 32
_MS_NOSYMFOLLOW: Final = 256
_MS_BIND: Final = 4096
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class MountPoint(msgspec.Struct, frozen=True):
    """A line of mountinfo (proc(5)): where, of what type, and what is mounted."""

    path: str
    filesystem: str
    source: str


def open_beneath(directory: int, name: str | bytes, flags: int, *, mode: int = 0, same_mount: bool = False) -> int:
    """openat2(2): a descriptor, close-on-exec, of what `name` is beneath the descriptor `directory`, reached without any
    symbolic link and without leaving it. With `same_mount` nothing that is mounted is entered either (EXDEV).

    Raises OSError and ValueError, as os.open does.
    """
    path = os.fsencode(name)
    if b"\0" in path:
        raise ValueError("embedded null byte")
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS | (_RESOLVE_NO_XDEV if same_mount else 0)
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    while True:
        found: int = _LIBC.syscall(ctypes.c_long(_OPENAT2), ctypes.c_int(directory), path, ctypes.byref(how), size)
        if found >= 0:
            return found
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), os.fsdecode(name))


def open_own_directory(
    parent: int, name: str, *, shown: str, owner: int = 0, mode: int = MODE_OPEN, keep_mode: bool = False
) -> int:
    """A descriptor of the directory `name` in `parent`, made if it is missing, with `mode`. One that was there is given that
    mode too, unless `keep_mode`. `shown` is its path for people.

    Raises OperatorError when it is a symbolic link, no directory, a mount, not `owner`'s, or writable by others.
    """
    made = True
    try:
        os.mkdir(name, MODE_CLOSED, dir_fd=parent)
    except FileExistsError:
        made = False
    except OSError as error:
        raise OperatorError(f"cannot make the runtime directory {shown}: {error.strerror}", _ELSEWHERE) from None
    try:
        directory = open_beneath(parent, name, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        reason = "it is a symbolic link or no directory" if error.errno in (errno.ELOOP, errno.ENOTDIR) else error.strerror
        raise OperatorError(f"runtime directory not ours: {shown}: {reason}", _ELSEWHERE) from None
    try:
        status = os.fstat(directory)
        if status.st_uid != owner:
            raise OperatorError(f"runtime directory not ours: {shown} belongs to uid {status.st_uid}", _ELSEWHERE)
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OperatorError(f"runtime directory not ours: {shown} is writable by others", f"chmod go-w {shown}")
        if made or not keep_mode:
            os.fchmod(directory, mode)
    except BaseException:
        os.close(directory)
        raise
    return directory


def open_runtime(runtime: str, *, owner: int = 0, mode: int = MODE_OPEN, keep_mode: bool = False) -> int:
    """A descriptor of the runtime directory, made if it is missing (`open_own_directory`).

    Raises OperatorError too when somebody else could put another directory in its place.
    """
    parent, name = os.path.split(os.path.abspath(runtime))
    if not name:
        raise OperatorError("runtime directory not ours: /", _ELSEWHERE)
    try:
        parent = os.path.realpath(parent, strict=True)
        _check_ancestors(Path(parent), owner)
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        hint = f"make {parent}, or choose another with --runtime"
        raise OperatorError(f"cannot make the runtime directory {runtime}: {parent}: {error.strerror}", hint) from None
    try:
        return open_own_directory(directory, name, shown=runtime, owner=owner, mode=mode, keep_mode=keep_mode)
    finally:
        os.close(directory)


_ELSEWHERE: Final = "choose another with --runtime, or remove it if nothing uses it"


def _check_ancestors(parent: Path, owner: int) -> None:
    for ancestor in (parent, *parent.parents)[:-1]:
        status = ancestor.stat()
        # The group's bits are the mask of an ACL too, so they count whatever the group is.
        others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
        if others or status.st_uid not in (0, owner):
            hint = f"chmod go-w {ancestor}, or choose another with --runtime" if others else _ELSEWHERE
            raise OperatorError(f"runtime directory not ours: others can replace what is in {ancestor}", hint)


def mount_fuse(
    directory: int, *, source: str, default_permissions: bool = False, noexec: bool = False, nosymfollow: bool = False
) -> int:
    """Mount on the directory whose descriptor is given; the new descriptor of /dev/fuse through which it is served.

    nosuid and nodev always; everybody may enter (allow_other), as far as the directories above it let them. `source` is what
    df shows in its first column. Raises OperatorError without a usable /dev/fuse, KernelError when mount(2) is refused.
    """
    device = _open_device()
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={MAX_READ}"
    options += ",default_permissions" if default_permissions else ""
    try:
        _mount(source, _by_descriptor(directory), FILESYSTEM, _flags(noexec, nosymfollow), options)
    except BaseException:
        os.close(device)
        raise
    _read_ahead(os.readlink(_by_descriptor(directory)))
    return device


def remount(directory: int, *, noexec: bool, nosymfollow: bool) -> None:
    """Change the flags of the mount whose root's descriptor (O_PATH is enough) is given. Raises KernelError."""
    flags = _MS_REMOUNT | _MS_BIND | _flags(noexec, nosymfollow)
    _mount("none", _by_descriptor(directory), "none", flags, "")


def unmount(path: str) -> bool:
    """Take the topmost mount at `path` away: what waits for it ends with an error, what has it open keeps a dead file.

    False when nothing is mounted there. Follows no symbolic link at the path's end. Raises KernelError.
    """
    if _LIBC.umount2(ctypes.c_char_p(os.fsencode(path)), ctypes.c_int(_MNT_FORCE | _MNT_DETACH | _UMOUNT_NOFOLLOW)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOENT):
        return False
    raise KernelError(f"umount2(2) of {path} was refused: {os.strerror(number)}", _hint(number))


def mounts_beneath(directory: str) -> list[MountPoint]:
    """The mounts beneath (not at) an absolute path without symbolic links, in this mount namespace, oldest first."""
    prefix, found = directory.rstrip("/") + "/", []
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.rstrip(b"\n").partition(b" - ")
            path = _unescaped(before.split(b" ")[4])
            if path.startswith(prefix):
                filesystem, source = after.split(b" ")[:2]
                found.append(MountPoint(path, _unescaped(filesystem), _unescaped(source)))
    return found


def set_entry(directory: int | str, uids: Sequence[int], gids: Sequence[int], *, anyone: bool = False) -> None:
    """Who may enter and list a directory of root's: these users and groups, by an ACL over 0700, or `anyone`, which is 0755.

    In one step, so that no moment lets in more than the old or the new rule. Raises OperatorError where the filesystem has no
    ACLs, or has no room for so many.
    """
    try:
        # Here, because an ordinary user's server sets no ACL and needs no such library.
        import posix1e
    except ImportError:
        raise OperatorError("ACLs cannot be set: no libacl binding for Python", "install python3-pylibacl") from None
    if anyone:
        text = "u::rwx,g::r-x,o::r-x"
    else:
        named = [f"u:{uid}:r-x" for uid in sorted(set(uids))] + [f"g:{gid}:r-x" for gid in sorted(set(gids))]
        text = ",".join(["u::rwx", "g::---", "o::---", *named, *(["m::r-x"] if named else [])])
    try:
        posix1e.ACL(text=text).applyto(directory)
    except OSError as error:
        shown = directory if isinstance(directory, str) else os.readlink(_by_descriptor(directory))
        raise OperatorError(
            f"cannot set the ACL of {shown}: {error.strerror}", "the runtime directory's filesystem must have ACLs, as tmpfs has"
        ) from None


def _read_ahead(path: str) -> None:
    """Let the kernel read ahead as much as one READ may bring, eight times its default (sysfs-class-bdi in the kernel's
    Documentation/ABI). INIT can only lower it, so this comes first. Where /sys is read-only, as in containers, reading in
    sequence is slower, and nothing else."""
    with open("/proc/self/mountinfo", "rb") as lines:
        fields = [line.split(b" ", 5) for line in lines]
    device = [os.fsdecode(number) for _, _, number, _, point, _ in fields if _unescaped(point) == path][-1:]
    with contextlib.suppress(OSError, IndexError), open(f"/sys/class/bdi/{device[0]}/read_ahead_kb", "w") as setting:
        setting.write(str(MAX_READ // 1024))


def _open_device() -> int:
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = "modprobe fuse; a container needs --device /dev/fuse"
        raise OperatorError(f"cannot open /dev/fuse: {error.strerror}", hint) from None


def _flags(noexec: bool, nosymfollow: bool) -> int:
    return _MS_NOSUID | _MS_NODEV | (_MS_NOEXEC if noexec else 0) | (_MS_NOSYMFOLLOW if nosymfollow else 0)


def _by_descriptor(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _mount(source: str, target: str, filesystem: str, flags: int, options: str) -> None:
    texts = [ctypes.c_char_p(os.fsencode(text)) for text in (source, target, filesystem, options)]
    if _LIBC.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]) != 0:
        number = ctypes.get_errno()
        raise KernelError(f"mount(2) of {source} was refused: {os.strerror(number)}", _hint(number))


def _hint(number: int) -> str:
    return {
        errno.EPERM: "mounting needs root with CAP_SYS_ADMIN; a container needs --cap-add SYS_ADMIN",
        errno.EACCES: "mounting needs root with CAP_SYS_ADMIN; look for a refusal by AppArmor or SELinux in the journal",
        errno.ENODEV: "this kernel has no FUSE: modprobe fuse",
        errno.ENOENT: "/proc must be mounted",
        errno.ENOSPC: "the limit of mounts is reached: sysctl fs.mount-max",
    }.get(number, "")


def _unescaped(text: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), text))
