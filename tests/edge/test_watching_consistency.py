"""What a server makes of answers and notices, against what there is, while local programs change everything at random.

The server here keeps what it is told by the rules of docs/api/websocket-protocol.md, and nothing else; when all has been told
that is to be told, what it keeps must be the truth.
"""

import contextlib
import os
import random
import select
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fuse_gated.edge import syscalls
from fuse_gated.edge.answering import Answering
from fuse_gated.edge.attributes import attributes
from fuse_gated.edge.files import Export
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.pool import Pool
from fuse_gated.operations import Attributes
from fuse_gated.paths import is_beneath, join, split
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire

NAMES = [b"a", b"b", b"c", b"d"]
TERMS = wire.Terms(session="s", resume=b"", mount="/m", max_in_flight=64, max_bytes_in_flight=2**26)


class Server:
    """Keeps attributes by path (None: known not to be there), of what lies in directories that it takes for watched."""

    def __init__(self, root: Path) -> None:
        self.loop = Loop()
        self.export = Export(root)
        self.pool = Pool(self.loop, 3)
        self.answering = Answering(self.loop, self.export, self.pool, self._sent, lambda: 0)
        self.answering.begin(TERMS)
        self.known: dict[bytes, Attributes | None] = {}
        self.contents: dict[bytes, bytes] = {}
        self.complete: dict[bytes, set[bytes]] = {}
        self.watched: set[bytes] = set()
        self.kept = 0
        self.overflows = 0
        self._tick = 0
        self._touched: dict[bytes, int] = {}
        self._cleared = 0
        self._asked: dict[int, tuple[int, wire.Gather]] = {}
        self._number = 0

    def gather(self, *paths: bytes) -> None:
        self._number += 2
        self._tick += 1
        asked = self._asked[self._number] = (self._tick, wire.Gather(paths, 4096, 100, 2**20, True))
        [frame] = codec.decode_from_server(codec.encode(wire.Ask(self._number, "gather", asked[1])))
        assert isinstance(frame, wire.Asked)
        self.answering.asked(frame)

    def unwatch(self, path: bytes) -> None:
        self._forget(path)
        self.export.perform(wire.Unwatch((path,)))

    def turn(self) -> None:
        """Do what there is to be done now."""
        if self.loop._epoll.poll(0):
            self.loop.turn()

    def settle(self) -> None:
        """Until everything has been answered and told."""
        watching, watches = self.answering._watching, self.export.watches
        assert watching is not None
        assert watches is not None
        while self._asked or watching._timer is not None or select.select([watches], [], [], 0)[0]:
            self.loop.turn()

    def _sent(self, message: bytearray) -> None:
        for frame in codec.decode_from_client(bytes(message)):
            if isinstance(frame, wire.Notice):
                self._noticed(frame)
            elif isinstance(frame, wire.Replied) and frame.id in self._asked:
                since, asked = self._asked.pop(frame.id)
                assert frame.errno is None
                for path, found in zip(asked.paths, codec.decode_result("gather", frame.result), strict=True):
                    if found.watched and self._is_fresh(path, since):
                        self._learn(path, found, since)

    def _is_fresh(self, path: bytes, since: int) -> bool:
        return self._touched.get(path, 0) <= since and self._cleared <= since

    def _learn(self, path: bytes, found: wire.Gathered, since: int) -> None:
        self.kept += 1
        is_directory = found.attributes is not None and stat.S_ISDIR(found.attributes.mode)
        if is_directory:
            self.watched.add(path)
        elif split(path)[0] not in self.watched:
            return  # Nothing would be known of what becomes of its directory.
        self.known[path] = found.attributes
        if found.content is not None:
            self.contents[path] = found.content
        if found.complete:
            self.complete[path] = {entry.name for entry in found.entries}
        for entry in found.entries:
            inside = join(path, entry.name)
            if entry.attributes is not None and self._is_fresh(inside, since):
                self.known[inside] = entry.attributes
                self.contents.pop(inside, None)

    def _noticed(self, notice: wire.Notice) -> None:
        self._tick += 1
        if notice.overflow:
            self.overflows += 1
            self._cleared = self._tick
            for kept in (self.known, self.contents, self.complete, self.watched):
                kept.clear()
        for path, found in zip(notice.paths, notice.attributes, strict=True):
            self._touched[path] = self._tick
            self.contents.pop(path, None)
            self.complete.pop(path, None)
            if found is None:
                self._forget(path)
            self.known[path] = found

    def _forget(self, directory: bytes) -> None:
        self.watched -= {path for path in self.watched if is_beneath(path, directory)}
        for kept in (self.known, self.contents, self.complete):
            for path in [path for path in kept if is_beneath(path, directory)]:
                del kept[path]

    def check(self, root: Path) -> int:
        """Compare what is known with what there is. How much of it counted."""
        counted = 0
        for path, found in self.known.items():
            if not path or split(path)[0] not in self.watched:
                continue
            if found is not None and stat.S_ISDIR(found.mode) and path not in self.watched:
                continue  # Names in it come and go untold.
            if found is not None and not stat.S_ISDIR(found.mode) and found.nlink > 1:
                continue
            counted += 1
            try:
                now = attributes((root / os.fsdecode(path)).lstat())
            except (FileNotFoundError, NotADirectoryError):
                now = None
            assert same(found, now), (path, found, now)
            if path in self.contents and now is not None and stat.S_ISREG(now.mode):
                assert self.contents[path] == (root / os.fsdecode(path)).read_bytes()
        for path, names in self.complete.items():
            if path in self.watched:
                assert names == set(os.listdir(os.path.join(os.fsencode(root), path)))
        return counted

    def close(self) -> None:
        self.answering.stop()
        assert self.pool.close(10)
        self.export.close()
        self.loop.close()


def same(one: Attributes | None, other: Attributes | None) -> bool:
    """All but the time of access, and what a second name changes, of which nothing is told by the first."""
    if one is None or other is None:
        return one is other
    return msgspec.structs.replace(one, atime=0) == msgspec.structs.replace(other, atime=0)


class Locals:
    """The client's own programs. They make no hard links: what is written by another name is not told."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self._root = root
        self._chance = chance

    def path(self) -> bytes:
        return b"/".join(self._chance.choices(NAMES, k=self._chance.choice((1, 1, 2, 2, 3))))

    def act(self) -> None:
        chance = self._chance
        path, other = (os.path.join(os.fsencode(self._root), self.path()) for _ in range(2))
        with contextlib.suppress(OSError, shutil.Error):
            match chance.randrange(11):
                case 0 | 1:
                    os.makedirs(path, exist_ok=True)
                case 2 | 3:
                    with open(path, "wb") as file:
                        file.write(chance.randbytes(chance.randrange(100)))
                case 4:
                    os.unlink(path)
                case 5:
                    os.rmdir(path)
                case 6:
                    shutil.rmtree(path)
                case 7:
                    os.rename(path, other)
                case 8:
                    root = os.open(self._root, os.O_PATH)
                    try:
                        syscalls.renameat2(root, path, root, other, syscalls.RENAME_EXCHANGE)
                    finally:
                        os.close(root)
                case 9:
                    os.chmod(path, chance.choice((0o700, 0o755, 0o600)))
                case 10:
                    os.symlink(b"anywhere", path)


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    server = Server(root)
    yield server
    server.close()


@pytest.mark.parametrize("seed", range(12))
def test_what_is_known_is_the_truth(server: Server, root: Path, seed: int) -> None:
    chance = random.Random(seed)
    local = Locals(root, chance)
    counted = 0
    for _ in range(12):
        for _ in range(60):
            for _ in range(chance.randrange(4)):
                local.act()
            if chance.random() < 0.5 and len(server._asked) < 20:
                server.gather(*(local.path() for _ in range(chance.randrange(1, 5))), *([b""] if chance.random() < 0.3 else []))
            if chance.random() < 0.05:
                server.unwatch(local.path())
            if chance.random() < 0.6:
                server.turn()
        server.settle()
        counted += server.check(root)
    assert counted > 20
    assert server.kept > 50
    assert server.overflows == 0
