"""The nodes that the kernel knows. A node is one name, never one file.

Two hard links are two nodes that show the same inode number; a directory that turns up elsewhere is a new node; only RENAME
moves one. So a verdict never depends on the name by which a file was looked up first. A node remembers which file its name
stood for (`Identity`): an answer about another file is ESTALE, and the kernel looks the name up again.
"""

from collections.abc import Iterator
from itertools import islice

from fuse_gated.operations import ROOT, Attributes
from fuse_gated.paths import components, join

_FORMAT = 0o170000
_DIRECTORY = 0o040000
_REMEMBERED = 1024
"""Bytes of a path that is remembered with its node. Longer ones are put together each time, because the paths of one chain of
nested directories, all remembered, take the square of its length."""

_MOST_SIBLINGS = 256
"""Names of one file that are told of a change."""

Identity = tuple[int, int, int]
"""(device, inode number, file type): which file on the client."""


def identity_of(attributes: Attributes) -> Identity:
    return (attributes.device, attributes.inode, attributes.mode & _FORMAT)


class Node:
    """One name. `lookups` is how often the kernel was told of it; it may be dropped when that is back at zero and no
    child is left. A detached node has lost its name; what is open on it lives on in `handles`."""

    __slots__ = (
        "_epoch", "_gone", "_path", "attributes", "children", "climbs", "handles", "id", "identity", "kept", "lookups", "lost",
        "name", "parent",
    )  # fmt: skip

    def __init__(self, number: int, parent: "Node | None", name: bytes, identity: Identity | None) -> None:
        self.id = number
        self.parent = parent
        self.name = name
        self.identity = identity
        self.lookups = 0
        self.lost = ""
        """How it lost its name, as the errno for whoever still uses it: ENOENT, it was removed; ESTALE, the name stands for
        another file now, and the kernel is to look it up again."""
        self.children: dict[bytes, Node] = {}
        self.handles: list[int] = []
        """Handles that are open on it, as given to the kernel."""
        self.attributes: Attributes | None = None
        """As the client told them last, where that is remembered (turnstile/outage.py)."""
        self.climbs = 0
        """Of a directory: how many levels above it a link lead that was shown, of those somewhere beneath it."""
        self.kept = -1
        """Since when (tree/cache.py's tick) what the kernel keeps of a directory's listing or of a file's content is what the
        client said; -1 where it keeps none."""
        self._path = b""
        self._gone = ""
        self._epoch = -1


class Inodes:
    """All nodes of one mount."""

    def __init__(self) -> None:
        self.root = Node(ROOT, None, b"", None)
        self.root.lookups = 1
        self._nodes: dict[int, Node] = {ROOT: self.root}
        self._linked: dict[Identity, set[int]] = {}
        self._next = ROOT + 1
        self.changed: set[int] = set()
        """Numbers of the nodes that changed, came or went since somebody emptied this (tree/journal.py)."""
        self.again: list[int] = []
        """The same of those that the kernel was told of once more, and that did not change else."""
        self._epoch = self.root._epoch = 0

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

    def find(self, path: bytes) -> Node | None:
        """The node that has this path, if the kernel was told of one."""
        node: Node | None = self.root
        for name in components(path):
            node = node.children.get(name) if node is not None else None
        return node

    def path(self, node: Node) -> bytes:
        """The node's path; for a detached node the last one that it had."""
        return node._path if node._epoch == self._epoch else self._locate(node)[0]

    def gone(self, node: Node) -> str:
        """How the node, or a directory above it, has lost its name (an errno's name); '' if it has one. The path of one that
        is gone may be another file's by now."""
        return node._gone if node._epoch == self._epoch else self._locate(node)[1]

    def where(self, node: Node) -> tuple[bytes, str]:
        """Both at once: `path` and `gone`."""
        return (node._path, node._gone) if node._epoch == self._epoch else self._locate(node)

    def _start_epoch(self) -> None:
        """Names have changed: no path that was remembered holds any more, but the root's."""
        self._epoch += 1
        self.root._epoch = self._epoch

    def _locate(self, node: Node) -> tuple[bytes, str]:
        # Not recursive: directories can be nested deeper than Python's stack.
        chain = []
        current = node
        while current.parent is not None and current._epoch != self._epoch:
            chain.append(current)
            current = current.parent
        path, gone = current._path, current._gone
        rest: list[bytes] = []
        for step in reversed(chain):
            gone = gone or step.lost
            if not rest and len(path) + len(step.name) < _REMEMBERED:
                path = join(path, step.name)
                step._path, step._gone, step._epoch = path, gone, self._epoch
            else:
                rest.append(step.name)
        return (b"/".join([path, *rest]) if rest else path), gone

    def known(self, parent: Node, name: bytes, attributes: Attributes) -> Node:
        """The node of a name that the client just answered for: the one there was, or a new one if it stands for another
        file now. The lookup is counted."""
        identity = identity_of(attributes)
        node = parent.children.get(name)
        if node is not None and node.identity == identity:
            node.lookups += 1
            self.again.append(node.id)
            if attributes.nlink > 1:
                self.has_links(node, attributes)
            return node
        old, node = node, Node(self._next, parent, name, identity)
        self._next += 1
        self._nodes[node.id] = node
        parent.children[name] = node
        if old is not None:
            # The kernel may hold the old one until it looks again, and move it as this name's.
            node.climbs = old.climbs
            self._detach(old, "ESTALE")
        node.lookups += 1
        self.changed.add(node.id)
        self.has_links(node, attributes)
        return node

    def has_links(self, node: Node, attributes: Attributes) -> None:
        """Remember a name of a file that has several."""
        if attributes.nlink > 1 and node.identity is not None and node.identity[2] != _DIRECTORY:
            linked = self._linked.setdefault(node.identity, set())
            if node.id not in linked:
                linked.add(node.id)
                self.changed.add(node.id)

    def is_linked(self, node: Node) -> bool:
        """Whether its file was seen to have several names."""
        return node.identity is not None and node.id in self._linked.get(node.identity, ())

    def identified(self, identity: Identity) -> None:
        """Which file the root is."""
        self.root.identity = identity
        self.changed.add(ROOT)

    def forget(self, number: int, lookups: int) -> None:
        """The kernel dropped so many lookups. More than were counted is the kernel's affair: the node goes."""
        node = self._nodes.get(number)
        if node is None or number == ROOT:
            return
        node.lookups -= min(lookups, node.lookups)
        self.changed.add(number)
        self.collect(node)

    def renamed(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, *, exchange: bool) -> None:
        """RENAME succeeded on the client: the node moves, with everything beneath it."""
        node = parent.children.pop(name, None)
        other = new_parent.children.pop(new_name, None)
        self._start_epoch()
        if node is not None:
            self._attach(node, new_parent, new_name)
        if other is not None and exchange:
            self._attach(other, parent, name)
        elif other is not None:
            self._detach(other, "ESTALE")
        self.collect(parent)
        self.collect(new_parent)

    def removed(self, node: Node) -> None:
        """UNLINK or RMDIR succeeded on the client, or the name is no longer there."""
        self._detach(node, "ENOENT")

    def siblings(self, node: Node) -> list[int]:
        """The other nodes of a file with several hard links."""
        if node.identity is None or node.identity not in self._linked:
            return []
        # Bounded: a client may say of every file that it is the same one.
        return sorted(islice((number for number in self._linked[node.identity] if number != node.id), _MOST_SIBLINGS))

    def oldest(self, count: int) -> list[tuple[int, bytes]]:
        """The names (parent, name) that the kernel may be asked to forget: leaves that nothing is open on, at most `count`,
        those first that were longest not returned here."""
        leaves = (
            (node, node.parent.id)
            for node in self._nodes.values()
            if node.parent is not None and not (node.children or node.handles or node.lost)
        )
        found = list(islice(leaves, count))
        for node, _parent in found:
            # What the kernel cannot forget must not be all that is ever asked for.
            self._nodes[node.id] = self._nodes.pop(node.id)
        return [(parent, node.name) for node, parent in found]

    def climbed(self, directory: Node | None, levels: int) -> None:
        """A link in `directory` was shown that leads so many levels up from there."""
        # What is above a directory has been told of all that is beneath it, so it ends where nothing new is said.
        while directory is not None and directory.climbs < levels:
            self.changed.add(directory.id)
            directory.climbs, directory, levels = levels, directory.parent, levels - 1

    def restore(
        self,
        number: int,
        parent: Node,
        name: bytes,
        identity: Identity | None,
        *,
        lookups: int,
        lost: str,
        climbs: int,
        linked: bool,
    ) -> Node:
        """A node that was there before, whose parent is. Raises ValueError for a number that is there already, and for a name
        that its directory has already."""
        if number in self._nodes or (not lost and name in parent.children):
            raise ValueError(f"node {number} is there twice")
        node = self._nodes[number] = Node(number, parent, name, identity)
        node.lookups, node.lost, node.climbs, node.kept = lookups, lost, climbs, 0
        if not lost:
            parent.children[name] = node
        if linked and identity is not None:
            self._linked.setdefault(identity, set()).add(number)
        self._next = max(self._next, number + 1)
        return node

    def never_again(self, number: int) -> None:
        """Numbers up to this one were given out before."""
        self._next = max(self._next, number + 1)

    def _attach(self, node: Node, parent: Node, name: bytes) -> None:
        node.parent, node.name = parent, name
        parent.children[name] = node
        self.changed.add(node.id)
        self.climbed(parent, node.climbs - 1)

    def _detach(self, node: Node, how: str) -> None:
        if node.parent is not None and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]
        node.lost = how
        self.changed.add(node.id)
        if node.children:
            self._start_epoch()
        else:
            node._epoch = -1
        self.collect(node)

    def collect(self, node: Node) -> None:
        """Drop a node that neither the kernel nor a child nor an open handle needs, and then its parent likewise."""
        current: Node | None = node
        while current is not None and current.id != ROOT and not (current.lookups or current.children or current.handles):
            if self._nodes.pop(current.id, None) is None:
                return
            self.changed.add(current.id)
            parent = current.parent
            if parent is not None and parent.children.get(current.name) is current:
                del parent.children[current.name]
            if current.identity in self._linked:
                linked = self._linked[current.identity]
                linked.discard(current.id)
                if not linked:
                    del self._linked[current.identity]
            current = parent
