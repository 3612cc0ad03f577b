"""Fetching ahead of a program that walks a tree (find, grep -r, tar, git status, a compiler).

Who has looked into a directory and then into one beside or beneath it goes on to look into the others: they are listed ahead, a
level at a time, and more of them the more turn out to be wanted. Who has opened a small file and then another one near it goes
on to open the next in the order of the listing, depth first: their contents are fetched, in a window that doubles when they are
used and halves when they are not. What is fetched in vain is so bounded by the window, and counted.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from fuse_gated.operations import Attributes
from fuse_gated.paths import join, split
from fuse_gated.tree.known import Missing, Name
from fuse_gated.turnstile import gathering
from fuse_gated.turnstile.call import Call

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk

FIRST_WINDOW: Final = 256 * 2**10
LARGEST_WINDOW: Final = 16 * 2**20
"""Bytes of content that are fetched ahead and not used yet: what a link of 1 Gbit/s carries in 120 ms."""
FIRST_DIRECTORIES: Final = 64
MOST_DIRECTORIES: Final = 4096
UNUSED: Final = 10.0
"""Seconds after which what was fetched is not expected to be used any more."""

_FILE_SIZE: Final = 1024
"""Bytes that a file counts for beside its content: there may be any number of empty ones."""
_LEFT_FREE: Final = 8 * 2**20
"""Bytes in flight that are left to those who wait."""
_FRONTIER: Final = 4096
_REMEMBERED: Final = 64
_CURSORS: Final = 4
_BATCH: Final = 256 * 2**10
_BATCH_PATHS: Final = 256
_TYPE: Final = 0o170000
_DIRECTORY: Final = 0o040000
_REGULAR: Final = 0o100000


class Cursor:
    """Where a program that opens file after file will go on: depth first, in the order of the listings."""

    def __init__(self, path: bytes) -> None:
        self.blocked = b""
        """A directory that must be listed first."""
        self._after: bytes | None = path
        self._stack: list[tuple[bytes, Iterator[Name]]] = []

    def next(self, t: "Desk") -> tuple[bytes, Name] | None:
        """The next entry that is a file. None: there is none, or it is not known yet (`blocked`)."""
        while True:
            if not self._stack and not self._ascend(t):
                return None
            directory, names = self._stack[-1]
            name = next(names, None)
            if name is None:
                self._stack.pop()
                if not self._stack:
                    self._after = directory or None
            elif name.type != _DIRECTORY:
                return directory, name
            elif gathering.may_be_listed(t, directory, name):
                self.enter(t, join(directory, name.name))
                if self.blocked:
                    return None

    def enter(self, t: "Desk", path: bytes) -> None:
        """Go on in this directory, now or once it is known."""
        names = t.cache.names(path, t.now)
        self.blocked = path if names is None else b""
        if names is not None:
            self._stack.append((path, iter(names)))

    def _ascend(self, t: "Desk") -> bool:
        if self._after is None:
            return False
        directory, last = split(self._after)
        names = t.cache.names(directory, t.now)
        if names is None:
            self._after = None
            return False
        rest = iter(names)
        for name in rest:
            if name.name == last:
                break
        self._stack.append((directory, rest))
        self._after = None
        return True


class Prefetch:
    """Of one session."""

    def __init__(self) -> None:
        self.bytes_fetched = 0
        self.bytes_used = 0
        self.directories_fetched = 0
        self.directories_used = 0
        self._window = FIRST_WINDOW
        self._fetched: OrderedDict[bytes, tuple[int, float, Cursor]] = OrderedDict()
        """What was asked for ahead and has not been used: its size, when, and by whom."""
        self._unused = 0
        self._opened: OrderedDict[bytes, None] = OrderedDict()
        """Directories in which a file was opened lately, and those that these lie in."""
        self._cursors: list[Cursor] = []
        self._visited: OrderedDict[bytes, None] = OrderedDict()
        """The same of those that were looked into."""
        self._ahead: OrderedDict[bytes, float] = OrderedDict()
        """Directories that were listed ahead and nobody has looked into, and when."""
        self._directories = FIRST_DIRECTORIES
        self._frontier: deque[bytes] = deque(maxlen=_FRONTIER)
        """Directories that are listed, and whose own directories may be wanted."""

    def forget(self) -> None:
        """What was fetched is not kept any more."""
        self._fetched.clear()
        self._unused = 0
        self._cursors.clear()
        self._ahead.clear()
        self._frontier.clear()

    # Directories.

    def missed(self, t: "Desk", parent: bytes) -> None:
        """A name was looked up that nothing is known of."""
        gathering.looked_up(t, parent)
        self.visited(t, parent)

    def visited(self, t: "Desk", path: bytes) -> None:
        """A program has looked into a directory."""
        if path in self._ahead:
            del self._ahead[path]
            self.directories_used += 1
            self._directories = min(2 * self._directories, MOST_DIRECTORIES)
        elif path in self._visited:
            return
        walks = _is_near(path, self._visited)
        _remember(path, self._visited)
        if walks:
            self._frontier += (split(path)[0], path)
        self._list_ahead(t)

    def _list_ahead(self, t: "Desk") -> None:
        while self._ahead and next(iter(self._ahead.values())) + UNUSED <= t.now:
            self._ahead.popitem(last=False)
            self._directories = max(self._directories // 2, FIRST_DIRECTORIES)
        wanted: list[bytes] = []
        while self._frontier and _has_room(t) and len(self._ahead) + len(wanted) < self._directories:
            directory = self._frontier.popleft()
            for name in t.cache.names(directory, t.now) or ():
                if name.type != _DIRECTORY:
                    continue
                path = join(directory, name.name)
                known = t.cache.holds(path, t.now) or path in t.gathering or path in self._ahead or path in self._visited
                if not known and gathering.may_gather(t, path) and gathering.may_be_listed(t, directory, name):
                    wanted.append(path)
        for path in wanted:
            self._ahead[path] = t.now
        self.directories_fetched += len(wanted)
        for start in range(0, len(wanted), _BATCH_PATHS):
            gathering.gather(t, wanted[start : start + _BATCH_PATHS])

    def arrived(self, t: "Desk", paths: list[bytes]) -> None:
        """The client has answered for these."""
        ahead = [path for path in paths if path in self._ahead and path in t.cache]
        if ahead:
            self._frontier.extend(ahead)
            self._list_ahead(t)
        for cursor in [cursor for cursor in self._cursors if cursor.blocked in paths]:
            path, cursor.blocked = cursor.blocked, b""
            if path in t.cache:
                cursor.enter(t, path)
                cursor.blocked = b""  # Where not all of it is known, what is known is passed over.
            self._fetch(t, cursor)

    # Contents.

    def brings(self, t: "Desk", call: Call, path: bytes) -> bool:
        """Whether the content of a file that is about to be opened comes, and the call waits for it."""
        if call.waited:
            return False
        if path not in t.gathering:
            attributes = t.cache.attributes(path, t.now)
            if not _is_small_file(attributes) or not gathering.may_gather(t, split(path)[0]):
                return False
            t.cache.misses += 1
            gathering.gather(t, [path], content=gathering.SMALL)
        gathering.wait(t, call, path)
        if path in self._fetched:
            self.used(t, path)
        else:
            self._opens(t, path)
        return True

    def used(self, t: "Desk", path: bytes) -> None:
        """A file was opened whose content was there."""
        fetched = self._fetched.pop(path, None)
        if fetched is None:
            return
        size, _when, cursor = fetched
        self._unused -= size + _FILE_SIZE
        self.bytes_used += size
        self._window = min(2 * self._window, LARGEST_WINDOW, max(FIRST_WINDOW, t.cache.room // 2))
        self._fetch(t, cursor)

    def _opens(self, t: "Desk", path: bytes) -> None:
        directory = split(path)[0]
        follows = directory in self._opened or _is_near(directory, self._opened)
        _remember(directory, self._opened)
        if follows:
            cursor = Cursor(path)
            self._cursors = [*self._cursors[1 - _CURSORS :], cursor]
            self._fetch(t, cursor)

    def _fetch(self, t: "Desk", cursor: Cursor) -> None:
        self._expire(t.now)
        while self._unused < self._window and not cursor.blocked and _has_room(t):
            batch: list[bytes] = []
            size = 0
            while size < _BATCH and len(batch) < _BATCH_PATHS and self._unused < self._window:
                found = cursor.next(t)
                if found is None:
                    break
                directory, name = found
                path = join(directory, name.name)
                known = path in self._fetched or path in t.gathering or t.cache.content(path) is not None
                if known or name.attributes is None or not gathering.may_be_read(t, directory, name):
                    continue
                batch.append(path)
                cost = name.attributes.size + _FILE_SIZE
                size += cost
                self._unused += cost
                self._fetched[path] = (name.attributes.size, t.now, cursor)
                self.bytes_fetched += name.attributes.size
            if batch:
                gathering.gather(t, batch, content=gathering.SMALL)
            if cursor.blocked:
                if cursor.blocked not in t.gathering:
                    gathering.gather(t, [cursor.blocked])
            elif not batch:
                return

    def _expire(self, now: float) -> None:
        while self._fetched:
            size, when, _cursor = next(iter(self._fetched.values()))
            if when + UNUSED > now:
                return
            self._fetched.popitem(last=False)
            self._unused -= size + _FILE_SIZE
            self._window = max(self._window // 2, FIRST_WINDOW)


def _has_room(t: "Desk") -> bool:
    """Whether anything may be fetched ahead: whoever waits for something goes first."""
    return gathering.may_gather(t, b"") and not t.session.would_wait(min(_LEFT_FREE, t.limits.max_bytes_in_flight // 2))


def _is_small_file(attributes: Attributes | Missing | None) -> bool:
    if not isinstance(attributes, Attributes) or attributes.mode & _TYPE != _REGULAR:
        return False
    return attributes.size <= gathering.SMALL


def _is_near(path: bytes, others: OrderedDict[bytes, None]) -> bool:
    """Whether one of the others lies beside it, above it or beneath it by one level."""
    return bool(path) and split(path)[0] in others


def _remember(path: bytes, others: OrderedDict[bytes, None]) -> None:
    for each in (path, split(path)[0]) if path else (path,):
        others.pop(each, None)
        others[each] = None
    while len(others) > 2 * _REMEMBERED:
        others.popitem(last=False)
