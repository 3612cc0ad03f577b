"""The nodes that the kernel knows. A node is one name, never one file.

Two hard links are two nodes that show the same inode number; a directory that turns up elsewhere is a new node; only RENAME
moves one. So a verdict never depends on the name by which a file was looked up first. A node remembers which file its name
stood for (`Identity`): an answer about another file is ESTALE, and the kernel looks the name up again.
"""

from collections.abc import Iterator

from fuse_gated.operations import ROOT, Attributes
from fuse_gated.paths import join

_FORMAT = 0o170000
_DIRECTORY = 0o040000

Identity = tuple[int, int, int]
"""(device, inode number, file type): which file on the client."""


def identity_of(attributes: Attributes) -> Identity:
    return (attributes.device, attributes.inode, attributes.mode & _FORMAT)


class Node:
    """One name. `lookups` is how often the kernel was told of it; it may be dropped when that is back at zero and no
    child is left. A detached node has lost its name (unlinked, replaced); what is open on it lives on in `handles`."""

    __slots__ = ("_epoch", "_gone", "_path", "children", "detached", "handles", "id", "identity", "lookups", "name", "parent")

    def __init__(self, number: int, parent: "Node | None", name: bytes, identity: Identity | None) -> None:
        self.id = number
        self.parent = parent
        self.name = name
        self.identity = identity
        self.lookups = 0
        self.detached = False
        self.children: dict[bytes, Node] = {}
        self.handles: list[int] = []
        """Handles that are open on it, as given to the kernel."""
        self._path = b""
        self._gone = False
        self._epoch = -1


class Inodes:
    """All nodes of one mount."""

    def __init__(self) -> None:
        self.root = Node(ROOT, None, b"", None)
        self.root.lookups = 1
        self._nodes: dict[int, Node] = {ROOT: self.root}
        self._linked: dict[Identity, set[int]] = {}
        self._next = ROOT + 1
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def newest(self) -> int:
        """The number that the next new node gets; numbers are never used twice."""
        return self._next

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, number: int) -> Node | None:
        return self._nodes.get(number)

    def path(self, node: Node) -> bytes:
        """The node's path; for a detached node the last one that it had."""
        if node._epoch == self._epoch:
            return node._path
        parent = node.parent
        path = b"" if parent is None else join(self.path(parent), node.name)
        node._path, node._gone, node._epoch = path, node.detached or (parent is not None and parent._gone), self._epoch
        return path

    def is_gone(self, node: Node) -> bool:
        """Whether the node, or a directory above it, has lost its name: its path may be another file's by now."""
        self.path(node)
        return node._gone

    def known(self, parent: Node, name: bytes, attributes: Attributes) -> Node:
        """The node of a name that the client just answered for: the one there was, or a new one if it stands for another
        file now. The lookup is counted."""
        identity = identity_of(attributes)
        node = parent.children.get(name)
        if node is None or node.identity != identity:
            if node is not None:
                self._detach(node)
            node = Node(self._next, parent, name, identity)
            self._next += 1
            self._nodes[node.id] = node
            parent.children[name] = node
        node.lookups += 1
        self.has_links(node, attributes)
        return node

    def has_links(self, node: Node, attributes: Attributes) -> None:
        """Remember a name of a file that has several."""
        if attributes.nlink > 1 and node.identity is not None and node.identity[2] != _DIRECTORY:
            self._linked.setdefault(node.identity, set()).add(node.id)

    def forget(self, number: int, lookups: int) -> None:
        """The kernel dropped so many lookups. More than were counted is the kernel's affair: the node goes."""
        node = self._nodes.get(number)
        if node is None or number == ROOT:
            return
        node.lookups -= min(lookups, node.lookups)
        self.collect(node)

    def renamed(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, *, exchange: bool) -> None:
        """RENAME succeeded on the client: the node moves, with everything beneath it."""
        node = parent.children.pop(name, None)
        other = new_parent.children.pop(new_name, None)
        self._epoch += 1
        if other is not None and not exchange:
            self._mark_detached(other)
        if node is not None:
            self._attach(node, new_parent, new_name)
        if other is not None and exchange:
            self._attach(other, parent, name)
        for emptied in (parent, new_parent):
            self.collect(emptied)

    def removed(self, parent: Node, name: bytes) -> None:
        """UNLINK or RMDIR succeeded on the client."""
        node = parent.children.get(name)
        if node is not None:
            self._detach(node)

    def siblings(self, node: Node) -> list[int]:
        """The other nodes of a file with several hard links."""
        if node.identity is None or node.identity not in self._linked:
            return []
        return [number for number in self._linked[node.identity] if number != node.id]

    def _attach(self, node: Node, parent: Node, name: bytes) -> None:
        old = node.parent
        node.parent, node.name = parent, name
        parent.children[name] = node
        if old is not None and old is not parent:
            self.collect(old)

    def _detach(self, node: Node) -> None:
        if node.parent is not None:
            node.parent.children.pop(node.name, None)
        self._mark_detached(node)
        self.collect(node)

    def _mark_detached(self, node: Node) -> None:
        node.detached = True
        if node.children:
            self._epoch += 1
        else:
            node._epoch = -1

    def collect(self, node: Node) -> None:
        """Drop a node that neither the kernel nor a child nor an open handle needs, and then its parent likewise."""
        current: Node | None = node
        while current is not None and current.id != ROOT and not (current.lookups or current.children or current.handles):
            if self._nodes.pop(current.id, None) is None:
                return
            parent = current.parent
            if parent is not None and parent.children.get(current.name) is current:
                del parent.children[current.name]
            if current.identity in self._linked:
                linked = self._linked[current.identity]
                linked.discard(current.id)
                if not linked:
                    del self._linked[current.identity]
            current = parent
