"""Operations by name: which of the gate's methods decides on which operation (`fuse-gatectl explain`, audit records)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from fuse_gated.gate.verdict import ALLOWED, Verdict

if TYPE_CHECKING:
    from fuse_gated.gate.gate import Gate

# access(2).
R_OK: Final = 4
W_OK: Final = 2
X_OK: Final = 1

_FMODE_EXEC: Final = 0x20


class Case(msgspec.Struct, frozen=True, gc=False):
    """What an operation is about, besides its name."""

    path: bytes
    other: bytes
    directory: bool
    replaces: bool
    flags: int
    mask: int


class Operation(msgspec.Struct, frozen=True):
    """One row of the table. `help` is for people."""

    help: str
    decide: Callable[[Gate, Case], Verdict]
    two_paths: bool = False


def _see(gate: Gate, case: Case) -> Verdict:
    return gate.see(case.path)


def _read(gate: Gate, case: Case) -> Verdict:
    return gate.read(case.path)


def _write(gate: Gate, case: Case) -> Verdict:
    return gate.write(case.path)


def _list(gate: Gate, case: Case) -> Verdict:
    return gate.list(case.path)


def _create(gate: Gate, case: Case) -> Verdict:
    return gate.create(case.path)


def _remove(gate: Gate, case: Case) -> Verdict:
    return gate.remove(case.path)


def _lock(gate: Gate, case: Case) -> Verdict:
    return gate.lock(case.path)


def _always(_gate: Gate, _case: Case) -> Verdict:
    """What is open can always be closed."""
    return ALLOWED


def _access(gate: Gate, case: Case) -> Verdict:
    return gate.access(case.path, case.mask, directory=case.directory)


def _link(gate: Gate, case: Case) -> Verdict:
    return gate.link(case.path, case.other)


def _rename(gate: Gate, case: Case) -> Verdict:
    return gate.rename(case.path, case.other, directory=case.directory, replaces=case.replaces)


def _exchange(gate: Gate, case: Case) -> Verdict:
    return gate.rename(case.path, case.other, directory=case.directory, exchange=True)


def _copy(gate: Gate, case: Case) -> Verdict:
    verdict = gate.read(case.path)
    return verdict if verdict.errno is not None else gate.write(case.other)


OPERATIONS: Final[dict[str, Operation]] = {
    "lookup": Operation("look a name up", _see),
    "getattr": Operation("its attributes (stat)", _see),
    "statfs": Operation("the filesystem's size (df)", _see),
    "access": Operation("may it be read, written, executed (access)", _access),
    "open": Operation("open a file with the given flags", lambda gate, case: gate.open(case.path, case.flags)),
    "open-read": Operation("open a file to read", _read),
    "open-write": Operation("open a file to write", _write),
    "open-execute": Operation("execute a file", lambda gate, case: gate.open(case.path, _FMODE_EXEC)),
    "read": Operation("read a file", _read),
    "readlink": Operation("read where a symbolic link leads", _read),
    "getxattr": Operation("read an extended attribute", _read),
    "listxattr": Operation("list the extended attributes", _read),
    "lseek": Operation("find data and holes", _read),
    "write": Operation("write to a file", _write),
    "fallocate": Operation("reserve or free a file's room", _write),
    "setattr": Operation("change attributes", _write),
    "chmod": Operation("change the mode", _write),
    "chown": Operation("change the owner", _write),
    "truncate": Operation("change the size", _write),
    "utimens": Operation("change the times", _write),
    "setxattr": Operation("set an extended attribute", _write),
    "removexattr": Operation("remove an extended attribute", _write),
    "copy_file_range": Operation("copy from one file to another", _copy, two_paths=True),
    "getlk": Operation("ask for a lock", _lock),
    "setlk": Operation("take a lock", _lock),
    "flush": Operation("close a file", _always),
    "release": Operation("close a file for good", _always),
    "fsync": Operation("make a file's contents last", _always),
    "create": Operation("make a file", _create),
    "mknod": Operation("make a special file", _create),
    "mkdir": Operation("make a directory", _create),
    "symlink": Operation("make a symbolic link", _create),
    "link": Operation("make a hard link: the file, its new name", _link, two_paths=True),
    "unlink": Operation("remove a file", _remove),
    "rmdir": Operation("remove a directory", _remove),
    "rename": Operation("rename: the old name, the new one", _rename, two_paths=True),
    "exchange": Operation("exchange two names", _exchange, two_paths=True),
    "opendir": Operation("open a directory", _list),
    "readdir": Operation("list a directory", _list),
    "releasedir": Operation("close a directory", _always),
    "fsyncdir": Operation("make a directory's names last", _always),
}
"""Every operation that can be asked about, by FUSE's names, and a few by what people call them."""
