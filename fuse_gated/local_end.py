"""What becomes of a copy when its session is over: what the client has goes, and what it has not is named."""

import contextlib
from collections.abc import Collection, Mapping

from fuse_gated.edge.copy_tree import CopyTree
from fuse_gated.replica.names import TOLD
from fuse_gated.replica.sides import Busy, Changed, Refused
from fuse_gated.replica.version import FILE, Base


def left(tree: CopyTree, bases: Mapping[bytes, Base], closed: Collection[bytes]) -> dict[bytes, str]:
    """What is here and not on the client, and why. Of what is in `closed` nobody has looked at what was written to it."""
    found: dict[bytes, str] = {}
    for path in tree.scan():
        try:
            local = tree.look(path)
            if local is None or path == TOLD:
                continue
            if path not in bases or bases[path].local != local or (path in closed and local.kind == FILE):
                found[path] = "the session ended before"
            elif local.kind == FILE and tree.is_open(path):
                found[path] = "a program has it open for writing"
        except Refused as refused:
            found[path] = refused.reason
    return found | tree.closed


def clear(tree: CopyTree, bases: Mapping[bytes, Base]) -> dict[bytes, str]:
    """Remove what the client has, as it has it; what is left then, because somebody works on it just now."""
    for path in sorted(tree.scan(), reverse=True):
        base = bases.get(path)
        with contextlib.suppress(Changed, Busy, Refused):
            if base is not None:
                tree.remove(path, base.local)
    with contextlib.suppress(OSError):
        tree.tell(b"")
    tree.end()
    return dict.fromkeys(tree.scan(), "it changed as the session ended")
