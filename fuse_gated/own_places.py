"""Directories for copies, made by an ordinary user's server itself (edge/placing.py). Where there is a mount keeper, it makes
them."""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from fuse_gated.edge import mounts, placing
from fuse_gated.gate.gate import Gate

_MODE_PASSAGE: Final = 0o711
_NAME: Final = "mnt"


def place(runtime: str, gate: Gate, export: str) -> tuple[str, tuple[int, int]]:
    """The path of a directory for a copy, with its descriptor and that of one beside it. Raises OSError and OperatorError."""
    identity, tenant = gate.identity, gate.tenant.name
    with _tenant(runtime, tenant, make=True) as directory:
        if identity.anyone:
            os.fchmod(directory, mounts.MODE_OPEN)
        elif set(identity.uids) - {os.geteuid()} or identity.gids:
            mounts.set_entry(directory, identity.uids, identity.gids)
        given = placing.place(
            directory,
            export,
            owner=os.geteuid(),
            uids=identity.uids,
            gids=identity.gids,
            anyone=identity.anyone,
        )
        return os.path.join(os.path.abspath(runtime), _NAME, tenant, export), given


def displace(runtime: str, tenant: str, export: str, aside: str) -> None:
    """As placing.displace. Raises OSError and OperatorError."""
    with contextlib.suppress(FileNotFoundError):
        with _tenant(runtime, tenant, make=False) as directory:
            placing.displace(directory, export, aside)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(runtime, _NAME, tenant))


@contextlib.contextmanager
def _tenant(runtime: str, tenant: str, *, make: bool) -> Iterator[int]:
    directory = mounts.open_runtime(runtime, owner=os.geteuid(), mode=mounts.MODE_CLOSED, keep_mode=True)
    opened = [directory]
    try:
        opened.append(
            mounts.open_own_directory(
                directory, _NAME, shown=os.path.join(runtime, _NAME), owner=os.geteuid(), mode=_MODE_PASSAGE, keep_mode=True
            )
        )
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(tenant, mounts.MODE_CLOSED, dir_fd=opened[-1])
        opened.append(mounts.open_beneath(opened[-1], tenant, os.O_RDONLY | os.O_DIRECTORY, same_mount=True))
        yield opened[-1]
    finally:
        for descriptor in opened:
            os.close(descriptor)
