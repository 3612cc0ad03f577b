"""Where tree/cache.py keeps what it knows, and what that takes of the room."""

from collections import OrderedDict

from fuse_gated.paths import is_beneath, join, split
from fuse_gated.tree.happened import Happened
from fuse_gated.tree.known import PATH_SIZE, RECORD_SIZE, Directory, Name, content_size, name_size


class Store:
    """Directories and contents, at most `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.size = 0
        self.evicted: list[tuple[bytes, list[bytes]]] = []
        self._happened = Happened()
        self._directories: OrderedDict[bytes, Directory] = OrderedDict()
        self._above: dict[bytes, int] = {}
        """How many directories are kept at or beneath a path."""
        self._contents: OrderedDict[bytes, bytes] = OrderedDict()
        self._held: dict[int, int] = {}
        """Inode numbers of files of which nothing is to be believed, and how many times over."""
        self._linked: set[int] = set()
        """Inode numbers of files that were found to have several names."""

    def __contains__(self, path: bytes) -> bool:
        """Whether names of this directory are kept."""
        return path in self._directories

    def holds(self, path: bytes, now: float) -> bool:
        """Whether names of this directory are kept, and are to be believed."""
        directory = self._directories.get(path)
        return directory is not None and now < directory.until

    def unchanged(self, path: bytes, since: int) -> bool:
        """Whether nothing became of it since then, as far as we know."""
        return self._happened.is_same(path, since) and self._happened.is_in_place(path, since)

    def evict(self, path: bytes) -> None:
        """Nobody watches this directory any more, or nobody will: what is being asked about it is not to be kept either."""
        self._happened.moved(path)
        directory = self._drop(path)
        if directory is not None:
            self.evicted.append((path, list(directory.names)))

    def forget(self, path: bytes) -> None:
        """Nothing that is known of what lies in a directory, and beneath it."""
        if path in self._above:
            for other in [other for other in self._directories if is_beneath(other, path)]:
                self.evict(other)

    def has_links(self, inode: int) -> None:
        """A file whose names nobody may watch: what is known of any of them does not hold."""
        self._linked.add(inode)

    def hold(self, inode: int) -> None:
        """A file is being changed, and the client's word of it is about what has been done so far: to be disregarded until
        `let_go` has been called as often. By its number, because meanwhile it may get another name."""
        self._held[inode] = self._held.get(inode, 0) + 1

    def let_go(self, inode: int) -> None:
        """One change is done."""
        left = self._held.pop(inode) - 1
        if left:
            self._held[inode] = left

    def _is_held(self, path: bytes) -> bool:
        directory, name = self._parent(path)
        known = directory.names.get(name) if directory is not None else None
        return known is not None and known.inode in self._held

    def _parent(self, path: bytes) -> tuple[Directory | None, bytes]:
        if not path:
            return None, b""
        parent, name = split(path)
        return self._directories.get(parent), name

    def _begin(self, path: bytes, until: float) -> Directory:
        size = RECORD_SIZE + len(path)
        directory = self._directories[path] = Directory(size, until)
        self.size += size
        self._count(path, 1)
        return directory

    def _put(self, directory: Directory, name: bytes, entry: Name | None) -> None:
        change = name_size(name, entry)
        if name in directory.names:
            change -= name_size(name, directory.names[name])
        else:
            directory.in_order = False
        directory.size += change
        self.size += change
        directory.names[name] = entry

    def _remove(self, directory: Directory, name: bytes) -> None:
        size = name_size(name, directory.names.pop(name))
        directory.size -= size
        self.size -= size

    def _drop(self, path: bytes) -> Directory | None:
        directory = self._directories.pop(path, None)
        if directory is not None:
            self.size -= directory.size
            self._count(path, -1)
            for name in directory.names:
                self._drop_content(join(path, name))
        return directory

    def _keep_content(self, path: bytes, content: bytes) -> None:
        self._drop_content(path)
        self._contents[path] = content
        self.size += content_size(path, content)

    def _drop_content(self, path: bytes) -> None:
        content = self._contents.pop(path, None)
        if content is not None:
            self.size -= content_size(path, content)

    def _count(self, path: bytes, change: int) -> None:
        while True:
            before = self._above.get(path, 0)
            self.size += (len(path) + PATH_SIZE) * ((before + change > 0) - (before > 0))
            if before + change:
                self._above[path] = before + change
            else:
                del self._above[path]
            if not path:
                return
            path = split(path)[0]

    def _make_room(self) -> None:
        while self.size > self.room and self._contents:
            self._drop_content(next(iter(self._contents)))
        while self.size > self.room and self._directories:
            self.evict(next(iter(self._directories)))
