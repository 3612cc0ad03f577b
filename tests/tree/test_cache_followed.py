"""tree/cache.py against a client that changes under it: once every notice has come, what is claimed is what there is.

The client is modelled after edge/watching.py: a change is told later, with what is there by then, and in order with the replies,
which were found out at any earlier time. The kernel is modelled by what it was told that it may rely on.
"""

import math

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fuse_gated.operations import Attributes
from fuse_gated.paths import is_beneath, join, split
from fuse_gated.tree.cache import Cache
from fuse_gated.tree.known import MISSING, Missing, Name

DIRECTORY, REGULAR, TYPE = 0o040000, 0o100000, 0o170000
NAMES = (b"a", b"b", b"c")
CONTENTS = (b"", b"12345", b"67890")
OTHERS = ("make", "make", "mkdir", "write", "write", "chmod", "remove", "rename", "link")
PICK = st.integers(0, 99)
"""Which of those that there are, or might be."""


class Inode:
    def __init__(self, number: int, kind: int) -> None:
        self.number = number
        self.kind = kind
        self.names: dict[bytes, Inode] = {}
        self.links = 1
        self.mode = 0o644
        self.content = b""
        self.mtime = self.ctime = 0

    @property
    def attributes(self) -> Attributes:
        return Attributes(
            7, self.number, self.kind | self.mode, self.links, 500, 501, 0, len(self.content), 8, 4096, 1, self.mtime, self.ctime
        )


class Watch:
    def __init__(self, path: bytes, inode: Inode) -> None:
        self.path = path
        self.inode = inode
        self.alive = True


class Client:
    """Its files, and what it watches. The clock goes coarsely, so that two changes may have the same time."""

    def __init__(self) -> None:
        self.root = Inode(1, DIRECTORY)
        self.newest = 1
        self.clock = 0
        self.watches: dict[bytes, Watch] = {}
        self.changed: list[bytes] = []

    def find(self, path: bytes) -> Inode | None:
        inode: Inode | None = self.root
        for name in path.split(b"/") if path else ():
            inode = inode.names.get(name) if inode is not None else None
        return inode

    def paths(self) -> list[bytes]:
        found = [b""]
        for path in found:
            inode = self.find(path)
            assert inode is not None
            found += [join(path, name) for name in inode.names]
        return found

    def attributes(self, path: bytes) -> Attributes | None:
        inode = self.find(path)
        return inode.attributes if inode is not None else None

    # Changes.

    @property
    def now(self) -> int:
        self.clock += 1
        return self.clock // 4

    def touch(self, path: bytes, inode: Inode, *, content: bool) -> None:
        inode.ctime = self.now
        if content:
            inode.mtime = inode.ctime
        self.emit(inode, b"")
        parent = self.find(split(path)[0])
        if path and parent is not None:
            self.emit(parent, split(path)[1])

    def emit(self, inode: Inode, name: bytes) -> None:
        for watch in self.watches.values():
            if watch.inode is inode:
                self.changed.append(join(watch.path, name) if name else watch.path)

    def put(self, path: bytes, inode: Inode | None) -> bool:
        parent = self.find(split(path)[0])
        if parent is None or parent.kind != DIRECTORY or (inode is None and split(path)[1] not in parent.names):
            return False
        if inode is None:
            del parent.names[split(path)[1]]
        else:
            parent.names[split(path)[1]] = inode
        parent.mtime = parent.ctime = self.now
        self.emit(parent, b"")
        self.emit(parent, split(path)[1])
        return True

    def make(self, path: bytes, kind: int) -> bool:
        if self.find(path) is not None:
            return False
        self.newest += 1
        inode = Inode(self.newest, kind)
        inode.mtime = inode.ctime = self.now
        return self.put(path, inode)

    def write(self, path: bytes, content: bytes) -> bool:
        inode = self.find(path)
        if inode is None or inode.kind != REGULAR:
            return False
        inode.content = content
        self.touch(path, inode, content=True)
        return True

    def chmod(self, path: bytes, mode: int) -> bool:
        inode = self.find(path)
        if inode is None:
            return False
        inode.mode = mode
        self.touch(path, inode, content=False)
        return True

    def link(self, path: bytes, new: bytes) -> bool:
        inode = self.find(path)
        if inode is None or inode.kind != REGULAR or self.find(new) is not None or not self.put(new, inode):
            return False
        inode.links += 1
        inode.ctime = self.now  # No watch tells that of the old name.
        return True

    def remove(self, path: bytes) -> bool:
        inode = self.find(path)
        if not path or inode is None or inode.names:
            return False
        inode.links -= 1
        return self.put(path, None)

    def rename(self, path: bytes, new: bytes) -> bool:
        inode, parent = self.find(path), self.find(split(new)[0])
        if not path or not new or inode is None or parent is None or parent.kind != DIRECTORY or is_beneath(new, path):
            return False
        replaced = self.find(new)
        if replaced is inode or (replaced is not None and (replaced.names or is_beneath(path, new))):
            return False
        if replaced is not None:
            replaced.links -= 1
        self.put(path, None)
        self.put(new, inode)
        inode.ctime = self.now
        return True

    # Watching, as edge/watches.py does it.

    def watch(self, path: bytes) -> Watch | None:
        prefixes = [path[:end] for end in range(1, len(path)) if path[end : end + 1] == b"/"]
        for prefix in [b"", *prefixes, path] if path else [b""]:
            if prefix not in self.watches:
                inode = self.find(prefix)
                if inode is None or inode.kind != DIRECTORY or any(other.inode is inode for other in self.watches.values()):
                    return None
                self.watches[prefix] = Watch(prefix, inode)
        return self.watches[path]

    def drop(self, path: bytes) -> None:
        for other in [other for other in self.watches if is_beneath(other, path)]:
            self.watches.pop(other).alive = False

    def unwatch(self, path: bytes) -> None:
        """It goes unless it is needed for what lies beneath."""
        if path in self.watches and not any(is_beneath(other, path) and other != path for other in self.watches):
            self.drop(path)

    def notices(self) -> list[tuple[bytes, Attributes | None]]:
        found: list[tuple[bytes, Attributes | None]] = []
        changed, self.changed = dict.fromkeys(self.changed), []
        for path in changed:
            inode, watch = self.find(path), self.watches.get(path)
            if watch is not None and watch.inode is not inode:
                self.drop(path)
                found.append((path, None))
            if watch is None or watch.inode is inode or inode is not None:
                found.append((path, inode.attributes if inode is not None else None))
        return found


class Gathered:
    """A question, and what was found."""

    def __init__(self, path: bytes, since: int) -> None:
        self.path = path
        self.since = since
        self.above: Watch | None = None
        self.own: Watch | None = None
        self.attributes: Attributes | None = None
        self.names: list[Name] = []
        self.content: bytes | None = None
        self.complete = False

    def find(self, client: Client, most: int) -> None:
        self.above = client.watch(split(self.path)[0]) if self.path else None
        inode = client.find(self.path)
        if inode is None:
            return
        if inode.kind == DIRECTORY:
            watch = client.watch(self.path)
            self.own = watch if watch is not None and watch.inode is inode else None
            names = [Name(name, n.number, n.kind, n.attributes) for name, n in sorted(inode.names.items())]
            self.names, self.complete = names[:most], len(names) <= most
        else:
            self.content = inode.content
        self.attributes = inode.attributes


    @property
    def is_watched(self) -> bool:
        """By the time that it is sent."""
        watch = self.own if self.attributes is not None and self.attributes.mode & TYPE == DIRECTORY else self.above
        return watch is not None and watch.alive


class Cached(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.client = Client()
        self.cache = Cache(10**6)
        self.asked: list = []
        self.found: list = []
        self.stream: list = []
        self.kernel: dict[bytes, Attributes] = {}
        self.kernel_names: dict[bytes, int] = {}
        self.kernel_pages: dict[bytes, bytes] = {}
        for path, kind in ((b"a", DIRECTORY), (b"a/a", DIRECTORY), (b"a/a/a", REGULAR), (b"a/b", REGULAR), (b"b", DIRECTORY)):
            self.client.make(path, kind)
        for path in (b"a/a/a", b"a/b"):
            self.client.write(path, b"first")

    def there(self, pick: int) -> bytes:
        """One of what there is, or was not long ago."""
        found = self.client.paths() + list(self.cache._directories)
        return found[pick % len(found)]

    def free(self, pick: int) -> bytes:
        """A name that there might be."""
        places = [path for path in self.client.paths() if path.count(b"/") < 2 and self.client.find(path).kind == DIRECTORY]
        return join(places[pick % len(places)], NAMES[pick % len(NAMES)])

    # Others.

    @rule(what=st.sampled_from(OTHERS), one=PICK, other=PICK)
    def others(self, what: str, one: int, other: int) -> None:
        client, path = self.client, self.there(one)
        files = [path for path in client.paths() if client.find(path).kind == REGULAR]
        if what in ("write", "link") and files:
            path = files[one % len(files)]
        match what:
            case "make" | "mkdir":
                client.make(self.free(one), REGULAR if what == "make" else DIRECTORY)
            case "write":
                client.write(path, CONTENTS[other % 3])
            case "chmod":
                client.chmod(path, (0o600, 0o644)[other % 2])
            case "remove":
                client.remove(path)
            case "rename":
                client.rename(path, self.free(other))
            case "link":
                client.link(path, self.free(other))

    # Questions: asked, found out, sent, received.

    @rule(pick=PICK, kernel=st.booleans())
    def gather_at_once(self, pick: int, kernel: bool) -> None:
        path = self.there(pick)
        answer = Gathered(path, self.cache.tick)
        answer.find(self.client, 9)
        self.receive(len(self.stream))
        self.gathered(answer, answer.is_watched)
        self.settle()
        for name in NAMES if kernel else ():
            self.kernel_asks(join(path, name))
            self.kernel_asks(path)

    @rule(kernel=st.booleans())
    def gather_all_at_once(self, kernel: bool) -> None:
        """What a program does that walks the tree."""
        for pick in range(len(self.client.paths())):
            self.gather_at_once(pick, kernel)

    @rule(pick=PICK)
    def gather(self, pick: int) -> None:
        path = self.there(pick)
        self.asked.append(Gathered(path, self.cache.tick))

    @rule(pick=PICK)
    def getattr(self, pick: int) -> None:
        path = self.there(pick)
        self.asked.append([path, self.cache.tick])

    @rule(index=st.integers(0, 5), most=st.sampled_from((1, 9, 9)))
    def find(self, index: int, most: int) -> None:
        if self.asked:
            question = self.asked.pop(index % len(self.asked))
            if isinstance(question, Gathered):
                question.find(self.client, most)
            elif isinstance(question, list):
                question.append(self.client.attributes(question[0]))
            else:
                question = question()
            self.found.append(question)

    @rule(index=st.integers(0, 5))
    def reply(self, index: int) -> None:
        if self.found:
            answer = self.found.pop(index % len(self.found))
            if isinstance(answer, Gathered):
                answer = (answer, answer.is_watched)
            self.stream.append(answer)

    @rule()
    def tell(self) -> None:
        self.stream += [("notice", path, attributes) for path, attributes in self.client.notices()]

    @rule(count=st.integers(1, 6))
    def receive(self, count: int) -> None:
        for message in self.stream[:count]:
            if callable(message):
                message()
            elif isinstance(message, list):
                path, since, attributes = message
                self.cache.saw(path, attributes, since)
                self.told_kernel(path, attributes)
            elif message[0] == "notice":
                if self.cache.told(message[1], message[2]):
                    self.show_anew(message[1], message[2])
            else:
                self.gathered(*message)
            self.settle()
        del self.stream[:count]

    def gathered(self, answer: Gathered, watched: bool) -> None:
        """As turnstile/gathering.py."""
        path, attributes, since = answer.path, answer.attributes, answer.since
        if attributes is None:
            self.cache.saw(path, None, since)
        elif watched and attributes.mode & TYPE == DIRECTORY:
            self.cache.listed(path, attributes, answer.names, complete=answer.complete, since=since, until=math.inf)
        elif watched and attributes.nlink == 1:
            if split(path)[0] not in self.cache:
                self.cache.listed(split(path)[0], None, (), complete=False, since=since, until=math.inf)
            self.cache.saw(path, attributes, since)
            assert answer.content is not None
            self.cache.read(path, answer.content, since)

    # Our own changes.

    @rule(what=st.sampled_from(("make", "mkdir", "write", "chmod", "remove", "rename")), one=PICK, other=PICK)
    def ours(self, what: str, one: int, other: int) -> None:
        path = self.there(one)
        if what == "chmod":
            self.chmod(path, (0o600, 0o644)[other % 2])
        elif what in ("make", "mkdir"):
            self.make(self.free(one), REGULAR if what == "make" else DIRECTORY)
        elif what == "write":
            self.write(path, CONTENTS[other % 3])
        elif what == "remove" and path:
            self.remove(path)
        elif what == "rename" and path:
            self.rename(path, self.free(other))

    def own(self, change, *ended) -> None:
        def done():
            succeeded = change()
            answers = [(end, argument(), since) for end, argument, since in ended]

            def received():
                for end, attributes, since in answers:
                    if succeeded:
                        end(attributes, since)

            return received

        self.asked.append(done)

    def make(self, path: bytes, kind: int) -> None:
        since = self.cache.renames(path)
        self.settle()

        def ended(now, since):
            self.cache.changed(path, now, since)
            self.kernel_forgets(path)

        self.own(lambda: self.client.make(path, kind), (ended, lambda: self.client.attributes(path), since))

    def remove(self, path: bytes) -> None:
        since = self.cache.renames(path)
        self.settle()

        def ended(_now, since):
            self.cache.changed(path, None, since)
            self.kernel_forgets(path)

        self.own(lambda: self.client.remove(path), (ended, lambda: None, since))

    def rename(self, path: bytes, new: bytes) -> None:
        since = self.cache.renames(path), self.cache.renames(new)
        self.settle()

        def ended(_now, since):
            self.cache.changed(new, None, since[1])
            self.cache.renames(new)
            self.cache.changed(path, None, since[0])
            self.settle()
            for known in (self.kernel, self.kernel_names, self.kernel_pages):
                for other in [other for other in known if is_beneath(other, new)]:
                    del known[other]
                for other in [other for other in known if is_beneath(other, path)]:
                    known[new + other[len(path) :]] = known.pop(other)
            self.kernel.pop(new, None)
            self.kernel_names.pop(new, None)
            self.kernel_pages.pop(new, None)

        self.own(lambda: self.client.rename(path, new), (ended, lambda: None, since))

    def write(self, path: bytes, content: bytes) -> None:
        self.cache.changes(path)
        self.kernel.pop(path, None)
        self.kernel_pages.pop(path, None)

        def ended(_now, _since):
            self.cache.changes(path)
            self.kernel.pop(path, None)
            self.kernel_pages.pop(path, None)

        self.own(lambda: self.client.write(path, content), (ended, lambda: None, 0))

    def chmod(self, path: bytes, mode: int) -> None:
        since = self.cache.changes(path)
        self.kernel.pop(path, None)

        def ended(now, since):
            self.cache.changed(path, now, since)
            self.kernel.pop(path, None)

        self.own(lambda: self.client.chmod(path, mode), (ended, lambda: self.client.attributes(path), since))

    # The kernel.

    @rule(pick=PICK)
    def kernel_looks(self, pick: int) -> None:
        self.kernel_asks(self.there(pick))

    def kernel_asks(self, path: bytes) -> None:
        found = self.cache.attributes(path, 0.0)
        if isinstance(found, Attributes):
            self.told_kernel(path, found)
            content = self.cache.content(path)
            if content is not None:
                self.kernel_pages[path] = content

    def told_kernel(self, path: bytes, attributes: Attributes | None) -> None:
        if attributes is None:
            self.kernel_forgets(path)
            return
        named, own = self.cache.until(path, attributes)
        if self.kernel_names.get(path, attributes.inode) != attributes.inode:
            self.kernel_forgets(path)
        for known, value, until in ((self.kernel, attributes, own), (self.kernel_names, attributes.inode, named)):
            known.pop(path, None)
            if until:
                known[path] = value

    def kernel_forgets(self, path: bytes) -> None:
        for known in (self.kernel, self.kernel_names, self.kernel_pages):
            for other in [other for other in known if is_beneath(other, path)]:
                del known[other]

    def show_anew(self, path: bytes, attributes: Attributes | None) -> None:
        if attributes is None or self.kernel_names.get(path, attributes.inode) != attributes.inode:
            self.kernel_forgets(path)
        self.kernel.pop(path, None)
        self.kernel_pages.pop(path, None)

    def settle(self) -> None:
        """As turnstile/knowing.py."""
        if not self.cache.settle():
            assert not self.cache.evicted
            assert not self.cache.news
            return
        for path, attributes in self.cache.news:
            self.show_anew(path, attributes)
        for path, names in self.cache.evicted:
            self.kernel.pop(path, None)
            for name in names:
                for known in (self.kernel, self.kernel_names, self.kernel_pages):
                    known.pop(join(path, name), None)
            if path not in self.cache:
                self.asked.append(lambda path=path: self.unwatched(path))
        self.cache.evicted, self.cache.news = [], []

    def unwatched(self, path: bytes):
        self.client.unwatch(path)
        return lambda: self.cache.evict(path)

    @rule(room=st.sampled_from((0, *range(3000, 9000, 600))))
    def have_no_room(self, room: int) -> None:
        """For a moment."""
        self.cache.room = room
        self.cache._make_room()
        self.cache.room = 10**6
        self.settle()

    # What must be.

    @rule()
    def quiesce(self) -> None:
        # What is not watched any more is gone when that is said, and nothing is left to be looked at.
        while self.asked or self.found or self.client.changed or self.stream:
            while self.asked:
                self.find(0, 9)
            while self.found:
                self.reply(0)
            self.tell()
            self.receive(len(self.stream))
        self.all_is_true()

    @rule()
    def know_and_quiesce(self) -> None:
        self.gather_all_at_once(kernel=True)
        self.quiesce()

    def teardown(self) -> None:
        self.quiesce()

    def all_is_true(self) -> None:
        client, cache = self.client, self.cache
        for path in list(cache._directories):
            inode = client.find(path)
            assert inode is not None, path
            assert inode.kind == DIRECTORY, path
            names = cache.names(path, 0.0)
            if names is not None:
                assert {name.name: (name.inode, name.type) for name in names} == {
                    name: (other.number, other.kind) for name, other in inode.names.items()
                }
            for name in (*NAMES, *cache._directories[path].names):
                self.is_true(join(path, name))
            self.is_true(path)
        for path, content in cache._contents.items():
            known = cache.attributes(path, 0.0)
            found = client.find(path)
            assert isinstance(known, Attributes), path
            assert found is not None
            assert content == found.content, path
        for path, attributes in self.kernel.items():
            assert client.attributes(path) == attributes, f"the kernel goes on showing {path!r}"
        for path, number in self.kernel_names.items():
            found = client.find(path)
            assert found is not None, path
            assert found.number == number, f"the kernel takes {path!r} for another file"
        for path, content in self.kernel_pages.items():
            found = client.find(path)
            assert found is not None, path
            assert found.content == content, f"the kernel has old pages of {path!r}"

    def is_true(self, path: bytes) -> None:
        found = self.cache.attributes(path, 0.0)
        there = self.client.attributes(path)
        if isinstance(found, Missing):
            assert there is None, path
        elif found is not None:
            assert found == there, path

    @invariant()
    def is_counted(self) -> None:
        cache = self.cache
        if not cache._directories:
            assert cache.size == 0
            assert not cache._above
            assert not cache._contents


TestCached = Cached.TestCase
TestCached.settings = settings(max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


def test_missing_is_no_attributes() -> None:
    assert isinstance(MISSING, Missing)
