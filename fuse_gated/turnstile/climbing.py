"""Links that lead upwards, beside directories that are moved upwards.

What `symlinks: inside` shows depends on how deep the link lies. A directory that moves to a lesser depth while a program has
been told a link beneath it, and has not yet gone where it leads, would take that program above the export: the kernel walks
'..' from where the directory is by then, and a client that holds its answers back can bring this about. So each directory
remembers how far above it shown links lead (`Node.climbs`); it does not move to where that is above the export (EXDEV, upon
which mv(1) copies), and while it is being moved no link beneath it is shown that would lead there.

Only the kernel driver's nodes are remembered: libfuse has its own, and moves them as it likes.
"""

from typing import Final

from fuse_gated.gate.sandbox import levels_up
from fuse_gated.gate.verdict import Verdict
from fuse_gated.tree.inodes import Node
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.desk import Desk

LEADS_OUT: Final = Verdict("EXDEV", "symlinks", "a link in it would lead out of the export from its new place: copy it")


def shows(t: Desk, link: Node | None, target: bytes) -> bool:
    """Whether a link may be shown that leads to `target`, wherever what is being moved may be by then; if so, it is
    remembered."""
    if link is None or t.gate.tenant.symlinks != "inside":
        return True
    levels = levels_up(target)
    if any(not t.is_answered(call) and _above(link.parent, moved, levels) > depth for call, moved, depth in t.moves):
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


def _depth(path: bytes) -> int:
    return path.count(b"/") + 1


def _above(directory: Node | None, moved: Node, levels: int) -> int:
    """How many levels above `moved` a way leads that begins with so many '..' in `directory`; 0 if it does not."""
    while directory is not None and levels > 0:
        if directory is moved:
            return levels
        directory, levels = directory.parent, levels - 1
    return 0
