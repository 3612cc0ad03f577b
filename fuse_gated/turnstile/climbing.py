"""Links that lead upwards, beside directories that are moved upwards.

What `symlinks: inside` shows depends on how deep the link lies. A directory that moves to a lesser depth while a program has
been told a link beneath it, and has not yet gone where it leads, would take that program above the export: the kernel walks
'..' from where the directory is by then, and a client that holds its answers back can bring this about. So each directory
remembers how far above it shown links lead (`Node.climbs`); it does not move to where that is above the export (EXDEV, upon
which mv(1) copies), and while it is being moved no link beneath it is shown that would lead there.

A move is not over with its answer: the kernel moves the directory (d_move in fs/dcache.c) when the caller of rename(2) runs
again, and he may see to it that this takes long (sched(7), SCHED_IDLE). Until then '..' leads from the old place, so a link is
judged by that one too. Two locks tell when it is over: the kernel has one for all renames across directories, and holds those
of both directories (Documentation/filesystems/directory-locking.rst). So at most one move is unfinished, and it is not once
somebody lists or changes a directory that it went from or to.

Only the kernel driver's nodes are remembered: libfuse has its own, and moves them as it likes.
"""

from typing import Final

from fuse_gated import operations
from fuse_gated.gate.sandbox import levels_up
from fuse_gated.gate.verdict import Verdict
from fuse_gated.tree.inodes import Node
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.desk import Desk

LEADS_OUT: Final = Verdict("EXDEV", "symlinks", "a link in it would lead out of the export from its new place: copy it")

_IN_A_DIRECTORY: Final = (
    operations.Create, operations.Mkdir, operations.Mknod, operations.Rmdir, operations.Symlink, operations.Unlink,
)  # fmt: skip


def shows(t: Desk, link: Node | None, target: bytes) -> bool:
    """Whether a link may be shown that leads to `target`, wherever what is being moved may be by then; if so, it is
    remembered."""
    if link is None or t.gate.tenant.symlinks != "inside":
        return True
    levels = levels_up(target)
    if any(not t.is_answered(call) and _above(link.parent, moved, levels) > depth for call, moved, depth in t.moves):
        return False
    if any(_above(link.parent, moved, levels) > depth for moved, depth in t.ledger.unfinished):
        return False
    t.inodes.climbed(link.parent, levels)
    return True


def may_move(t: Desk, node: Node | None, new_path: bytes) -> bool:
    """Whether what lies at `node` may get this path."""
    return node is None or t.gate.tenant.symlinks != "inside" or node.climbs <= _depth(new_path)


def moves(t: Desk, call: Call, node: Node | None, new_path: bytes) -> None:
    """From now until the call is answered it may be here or there."""
    if node is not None:
        t.moves = [move for move in t.moves if not t.is_answered(move[0])]
        t.moves.append((call, node, _depth(new_path)))


def has_moved(t: Desk, request: operations.Rename, *moved: tuple[Node | None, bytes]) -> None:
    """The client has moved these nodes from these paths; the kernel is about to."""
    if request.parent != request.new_parent:
        unfinished = [(node, _depth(path)) for node, path in moved if node is not None]
        t.ledger.moving(unfinished, (request.parent, request.new_parent))


def look_for_end(t: Desk, request: operations.Request) -> None:
    """To be called with each new request while a move is unfinished: one that the kernel sends under a lock that the move held
    tells that it is over. (LOOKUP does not: a name that is known is looked up again without the lock.)"""
    if isinstance(request, operations.Readdir):
        locked: tuple[operations.Node, ...] = (request.node,)
    elif isinstance(request, operations.Rename):
        locked = (request.parent, request.new_parent)
    elif isinstance(request, operations.Link):
        locked = (request.new_parent,)
    elif isinstance(request, _IN_A_DIRECTORY):
        locked = (request.parent,)
    else:
        return
    if not set(t.ledger.moved_between).isdisjoint(locked):
        t.ledger.moving([], ())


def _depth(path: bytes) -> int:
    return path.count(b"/") + 1


def _above(directory: Node | None, moved: Node, levels: int) -> int:
    """How many levels above `moved` a way leads that begins with so many '..' in `directory`; 0 if it does not."""
    while directory is not None and levels > 0:
        if directory is moved:
            return levels
        directory, levels = directory.parent, levels - 1
    return 0
