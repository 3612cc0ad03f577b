"""The tree as handlers find their way in it: from the kernel's nodes to paths and open files, and what it is to forget."""

from typing import Final

from fuse_gated import operations
from fuse_gated.paths import join
from fuse_gated.tree.by_path import ByPath, is_hidden_name
from fuse_gated.tree.handles import Handle, Handles
from fuse_gated.tree.inodes import Inodes, Node
from fuse_gated.turnstile.call import Failure
from fuse_gated.turnstile.effects import InvalidateEntry, InvalidateInode
from fuse_gated.turnstile.limits import Limits
from fuse_gated.turnstile.telling import Telling
from fuse_gated.turnstile.unlocking import Unlocks

MAX_PATH: Final = 2**20
"""Bytes in a path: two of them fit a message. No file system stops directories from being nested deeper."""

_PRUNE: Final = 1000


class Naming(Telling):
    """The nodes and the open files of one mounted session."""

    def __init__(self, limits: Limits, level: str) -> None:
        super().__init__(limits, level)
        self.inodes = Inodes()
        self.handles = Handles(self.inodes)
        self.by_path = ByPath(self.handles)
        """What takes the nodes' part where the driver names them by path."""
        self.unlocks = Unlocks()
        """Locks that callers were told to have given up, and the client has not said so (unlocking.py)."""
        self.syncs_by_path = True
        """Whether the client is thought to sync a directory that it has not opened (directories.py)."""
        self.awaits_requests = False
        """Whether requests are yet to come that a process before this one had read."""
        self.expires_later = False
        """Whether the kernel is to ask for all attributes again once they are here (knowing.py)."""
        self._pruned_at = 0

    def node(self, number: operations.Node) -> Node | None:
        """The node of a number; None where the driver names nodes by path.

        Raises Failure(ESTALE) for a number that was never given out.
        """
        if isinstance(number, bytes):
            return None
        node = self.inodes.get(number)
        if node is None:
            raise Failure("ESTALE")
        return node

    def place(self, number: operations.Node) -> bytes:
        """The path of a node that must still have its name.

        Raises Failure when it has lost it (ENOENT, or ESTALE where the kernel is to look again), and Failure(ENAMETOOLONG)
        for a path longer than MAX_PATH.
        """
        if isinstance(number, bytes):
            return number
        node = self.inodes.get(number)
        if node is None:
            raise Failure("ESTALE")
        path, gone = self.inodes.where(node)
        if gone:
            raise Failure(gone)
        if len(path) > MAX_PATH:
            raise Failure("ENAMETOOLONG")
        return path

    def target(self, number: operations.Node, *, writable: bool = False) -> tuple[bytes | int, bytes, Node | None]:
        """(what to name to the client, the path to judge, the node). An open handle is named rather than the path: it is
        still the same file after the client's own programs moved or replaced it.

        Raises Failure as `place` does.
        """
        if isinstance(number, bytes):
            nameless = self.by_path.open_on(number, writable=writable)
            if nameless is not None:
                return nameless.remote, nameless.path, None
            if is_hidden_name(number.rpartition(b"/")[2]):
                raise Failure("ENOENT")
            # The root alone is a node all the same: its device is what other files' are compared with.
            return number, number, None if number else self.inodes.root
        node = self.inodes.get(number)
        if node is None:
            raise Failure("ESTALE")
        handle = self.handles.on(node, writable=writable) if node.handles else None
        path, gone = self.inodes.where(node)
        if len(path) > MAX_PATH:
            raise Failure("ENAMETOOLONG")
        held = self.handles.held_on(node, directory=False) if handle is None and self.handles.held else None
        if held is not None:
            return self.handles.releasing[held].remote, path, node
        if handle is not None:
            return handle.remote, path, node
        if gone:
            raise Failure(gone)
        return path, path, node

    def handle(self, number: int) -> Handle:
        """Raises Failure(EBADF) for a handle that was never given out."""
        handle = self.handles.get(number)
        if handle is None:
            raise Failure("EBADF")
        return handle

    def siblings(self, node: Node | None) -> list[int]:
        """The nodes of a file's other names."""
        return self.inodes.siblings(node) if node is not None else []

    def open_on(self, node: Node | None) -> list[Handle]:
        """What is open on a file, by whichever of its names."""
        nodes = (node, *map(self.inodes.get, self.siblings(node)))
        return [self.handle(number) for one in nodes if one is not None for number in one.handles]

    def path_of(self, request: operations.Request) -> bytes | None:
        """What a request is about, for the record of one that was refused unseen."""
        parent, number = getattr(request, "parent", None), getattr(request, "node", None)
        at = parent if parent is not None else number
        node = self.inodes.get(at) if isinstance(at, int) else None
        path = at if isinstance(at, bytes) else self.inodes.path(node) if node is not None else None
        handle = self.handles.get(getattr(request, "handle", None) or 0)
        if isinstance(at, bytes) and handle is not None:
            path = self.handles.path(handle)  # A driver without nodes names what is open by its handle alone.
        return path if path is None or parent is None else join(path, getattr(request, "name", b""))

    def forget_what_was_shown(self, node: Node, *, pages: bool = True) -> None:
        """The kernel is to look it up anew."""
        if node.parent is not None and not node.lost:
            self.effects.append(InvalidateEntry(node.parent.id, node.name))
        self.effects.append(InvalidateInode(node.id, pages=pages))

    def forget_all(self) -> None:
        """The policy may have changed while nobody served the mount: the kernel is to ask again for everything."""
        for node in self.inodes:
            self.forget_what_was_shown(node)

    def prune(self) -> None:
        """Too many nodes: ask the kernel to forget names."""
        if len(self.inodes) <= self.limits.inodes or self.inodes.newest - self._pruned_at < _PRUNE:
            return
        self._pruned_at = self.inodes.newest
        for parent, name in self.inodes.oldest(2 * _PRUNE):
            self.effects.append(InvalidateEntry(parent, name))
