"""Two sides of a copy in memory, and people who work on both at any moment, also in the middle of a step."""

import itertools
from collections.abc import Callable, Iterator

import msgspec
import pytest

from fuse_gated.paths import split
from fuse_gated.replica.copying import Copy
from fuse_gated.replica.ledger import Book, Entry, Header, Ledger, encode, read
from fuse_gated.replica.names import is_temporary
from fuse_gated.replica.room import Room
from fuse_gated.replica.sides import Busy, Changed, Refused
from fuse_gated.replica.version import DIRECTORY, FILE, LINK, OTHER, Version

HEADER = Header("boot", (1, 1), (2, 2))


class Tree:
    """One side: names, versions and contents. `before` is called before each step."""

    def __init__(self, before: Callable[[], None], numbers: Iterator[int]) -> None:
        self.nodes: dict[bytes, tuple[Version, bytes]] = {}
        self.before = before
        self.numbers = numbers
        self.refuses: Callable[[str, bytes], str] = lambda _what, _path: ""

    # What people do, in one moment.

    def put(self, path: bytes, content: bytes, mode: int = 0o644) -> bool:
        """Write a file and close it; False where that cannot be."""
        if not self.is_free(path) or self.kind(path) not in (None, FILE):
            return False
        number = next(self.numbers)
        self.nodes[path] = (Version(FILE, len(content), number, number, 1, number, mode), content)
        return True

    def mkdir(self, path: bytes) -> bool:
        if path in self.nodes or not self.is_free(path):
            return False
        self.nodes[path] = (Version(DIRECTORY), b"")
        return True

    def store(self, path: bytes, content: bytes) -> None:
        """To a mapping of a file, of the same length: no time changes."""
        self.nodes[path] = (self.nodes[path][0], content)

    def symlink(self, path: bytes, target: bytes) -> None:
        self.nodes[path] = (Version(LINK, target=target), b"")

    def special(self, path: bytes) -> None:
        self.nodes[path] = (Version(OTHER), b"")

    def drop(self, path: bytes) -> bool:
        if path not in self.nodes or self.beneath(path):
            return False
        del self.nodes[path]
        return True

    def kind(self, path: bytes) -> str | None:
        return self.nodes[path][0].kind if path in self.nodes else None

    def is_free(self, path: bytes) -> bool:
        """Whether its directory is there."""
        parent = split(path)[0]
        return not parent or self.kind(parent) == DIRECTORY

    def beneath(self, path: bytes) -> list[bytes]:
        return [name for name in self.nodes if name.startswith(path + b"/")]

    def content(self, path: bytes) -> bytes:
        return self.nodes[path][1]

    # What the copy does (sides.py).

    def step(self, what: str, path: bytes) -> None:
        self.before()
        why = self.refuses(what, path)
        if why:
            raise Refused(why, passing="for now" in why)

    def look(self, path: bytes) -> Version | None:
        self.step("look", path)
        return self.nodes[path][0] if path in self.nodes else None

    def read(self, path: bytes) -> tuple[Version, Iterator[bytes]]:
        self.step("read", path)
        if self.kind(path) != FILE:
            raise Changed
        return self.nodes[path][0], self._pieces(path)

    def _pieces(self, path: bytes) -> Iterator[bytes]:
        """Not of one moment, as files are read."""
        for index in itertools.count():
            self.before()
            content = self.nodes.get(path, (None, b""))[1]
            if index >= len(content):
                return
            yield content[index : index + 1]

    def make(self, path: bytes, version: Version) -> Version:
        self.step("make", path)
        if path in self.nodes or not self.is_free(path):
            raise Changed
        self.nodes[path] = (version, b"")
        return version

    def _renamed(self, path: bytes, new_path: bytes) -> None:
        version, content = self.nodes.pop(path)
        self.nodes[new_path] = (self._touched(version), content)
        for inner in self.beneath(path):
            self.nodes[new_path + inner[len(path) :]] = self.nodes.pop(inner)

    def _touched(self, version: Version) -> Version:
        return msgspec.structs.replace(version, ctime=next(self.numbers)) if version.kind == FILE else version


class NearTree(Tree):
    """The copy."""

    def __init__(self, before: Callable[[], None], numbers: Iterator[int]) -> None:
        super().__init__(before, numbers)
        self.received: dict[str, bytes] = {}
        self.open: set[bytes] = set()
        """What programs have open for writing."""

    def read(self, path: bytes) -> tuple[Version, Iterator[bytes]]:
        if path in self.open:
            raise Busy
        return super().read(path)

    def receive(self, chunks: Iterator[bytes], version: Version) -> str:
        self.step("receive", b"")
        content = b"".join(chunks)
        if len(content) != version.size:
            raise Changed
        name = str(next(self.numbers))
        self.received[name] = content
        return name

    def discard(self, name: str) -> None:
        self.received.pop(name, None)

    def install(self, name: str, path: bytes, expected: Version | None) -> Version:
        self.step("install", path)
        if not self.is_free(path) or (self.nodes[path][0] if path in self.nodes else None) != expected:
            raise Changed
        if path in self.open:
            raise Busy
        self.nodes.pop(path, None)
        assert self.put(path, self.received.pop(name), 0o660)
        return self.nodes[path][0]

    def remove(self, path: bytes, expected: Version) -> None:
        self.step("remove", path)
        if path in self.open:
            raise Busy
        if self.nodes.get(path, (None,))[0] != expected or not self.drop(path):
            raise Changed

    def move(self, path: bytes, new_path: bytes) -> None:
        self.step("move", path)
        if path not in self.nodes or new_path in self.nodes:
            raise Changed
        self._renamed(path, new_path)


class FarTree(Tree):
    """The client. `remembered` is what somebody on the way to it takes for what is there."""

    def __init__(self, before: Callable[[], None], numbers: Iterator[int]) -> None:
        super().__init__(before, numbers)
        self.remembered: dict[bytes, Version] = {}

    exchanges = True

    def look_now(self, path: bytes) -> Version | None:
        self.step("look", path)
        return self.nodes[path][0] if path in self.nodes else None

    def look(self, path: bytes) -> Version | None:
        return self.remembered.get(path) or self.look_now(path)

    def write(self, path: bytes, chunks: Iterator[bytes], version: Version) -> Version:
        self.step("write", path)
        if path in self.nodes or not self.is_free(path):
            raise Changed
        content = b""
        for chunk in chunks:
            content += chunk
            self.nodes.pop(path, None)
            self.put(path, content, version.mode)
            self.before()
        self.nodes.pop(path, None)
        self.put(path, content, version.mode)
        return self.nodes[path][0]

    def rename(self, path: bytes, new_path: bytes) -> None:
        self.step("rename", path)
        self._check_new(path, new_path)
        if new_path in self.nodes:
            raise Changed
        self._renamed(path, new_path)

    def exchange(self, path: bytes, other: bytes) -> bool:
        self.step("exchange", other)
        if not self.exchanges:
            return False
        if path not in self.nodes or other not in self.nodes:
            raise Changed
        (one, content), (two, other_content) = self.nodes[path], self.nodes[other]
        self.nodes[path], self.nodes[other] = (self._touched(two), other_content), (self._touched(one), content)
        return True

    def replace(self, path: bytes, new_path: bytes) -> None:
        self.step("replace", path)
        self._check_new(path, new_path)
        self.nodes.pop(new_path, None)
        self._renamed(path, new_path)

    def remove(self, path: bytes, _version: Version) -> None:
        self.step("remove", path)
        if not self.drop(path):
            raise Changed

    def may_remove(self, path: bytes) -> None:
        self.step("remove", path)

    def _check_new(self, path: bytes, new_path: bytes) -> None:
        if path not in self.nodes or not self.is_free(new_path):
            raise Changed


class World:
    """Both sides, the log, and whoever keeps the copy. `before` may be set: it is called before each step of either side."""

    def __init__(self, size: int = 10**6, files: int = 1000) -> None:
        numbers = itertools.count(1)
        self.before: Callable[[], None] = lambda: None
        self.near = NearTree(lambda: self.before(), numbers)
        self.far = FarTree(lambda: self.before(), numbers)
        self.log = encode(HEADER)
        self.said: list[str] = []
        self.unknown: set[bytes] = set()
        """What the client cannot be asked for."""
        self._tokens = itertools.count(1)
        self._bounds = (size, files)
        self.start()

    def start(self) -> None:
        """A process begins, by what the last one wrote down."""
        ledger = read(self.log)
        assert ledger is not None
        self.near.received.clear()
        self.near.open.clear()
        self.copy = Copy(
            self.near, self.far, Book(ledger, self._write), room=Room(*self._bounds), session="5e551017abcdef",
            token=lambda: f"t{next(self._tokens)}", tell=self.said.append,
        )  # fmt: skip

    def _write(self, entry: Entry) -> None:
        self.before()
        self.log += encode(entry)

    @property
    def ledger(self) -> Ledger:
        return self.copy.ledger

    def round(self) -> None:
        """Everything is looked at once."""
        there = {path: version for path, (version, _) in self.far.nodes.items()}
        self.copy.round(list(self.near.nodes), there, self.unknown.__contains__)

    def settle(self) -> None:
        """Until nothing happens any more."""
        self.copy.recover()
        for _ in range(50):
            before = (dict(self.near.nodes), dict(self.far.nodes), self.log)
            self.round()
            if before == (self.near.nodes, self.far.nodes, self.log):
                return
        raise AssertionError(f"it never ends: {sorted(self.near.nodes)} and {sorted(self.far.nodes)}")

    def files(self, tree: Tree) -> dict[bytes, bytes]:
        return {path: content for path, (version, content) in tree.nodes.items() if version.kind == FILE}

    def temporaries(self) -> list[bytes]:
        return [path for path in self.far.nodes if is_temporary(path)]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def make_world() -> type[World]:
    return World
