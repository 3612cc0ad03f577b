"""A turnstile without a kernel and a client: requests go in, effects come out, replies are encoded as a client would.

`Mount` keeps one turnstile and reads its effects.
"""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.gate.audit import Record
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import Limiter
from fuse_gated.gate.tenant import Cache, Identity, Tenant
from fuse_gated.gate.tenant import Limits as TenantLimits
from fuse_gated.gate.verdict import ALL, Rule
from fuse_gated.operations import Attributes, Caller
from fuse_gated.paths import shown, split
from fuse_gated.turnstile import effects
from fuse_gated.turnstile.turnstile import Limits, Turnstile
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire
from fuse_gated.wire.messages import Ask, Cancel, Gather, Gathered, ListedEntry, Notice, OpenedFile, Reply

DIRECTORY, REGULAR, LINK, FIFO = 0o040000, 0o100000, 0o120000, 0o010000
O_RDONLY, O_WRONLY, O_RDWR, O_TRUNC, O_APPEND, FMODE_EXEC = 0, 1, 2, 0o1000, 0o2000, 0x20
ROOT = 1
CALLER = Caller(1000, 1000, 4321)
STRANGER = Caller(6666, 6666, 13)
EVERYTHING = (Rule("/**", allow=ALL),)
OWNER = Identity(owner_uid=1000, owner_gid=1001, uids=(1000,))


class Errno(str):
    """A reply that is a failure."""


def attributes(inode: int, kind: int = REGULAR, **other: int) -> Attributes:
    values = {
        "device": 7, "inode": inode, "mode": kind | 0o644, "nlink": 1, "uid": 500, "gid": 501, "rdev": 0, "size": 5,
        "blocks": 8, "block_size": 4096, "atime": 1, "mtime": 2, "ctime": 3,
    }  # fmt: skip
    return Attributes(**{**values, **other})


def told(effect: effects.Effect) -> str:
    """One effect in a few words."""
    match effect:
        case effects.Tell(record):
            words = [record.kind, record.operation, *([shown(record.path)] if record.path is not None else []), record.errno]
            return " ".join(["tell", *filter(None, words)])
        case effects.Send(Ask(operation=operation)):
            return f"send {operation}"
        case effects.Send(Cancel()):
            return "cancel"
        case effects.Hold():
            return "hold"
        case effects.Keep():
            return "keep"
        case effects.Answer(answer=op.Failed(errno)):
            return f"answer {errno_name(errno)}"
        case effects.Answer(answer=answer):
            return f"answer {type(answer).__name__}"
        case effects.InvalidateEntry(parent, name):
            return f"{'expire' if effect.expire else 'forget'} {parent}/{name.decode()}"
        case effects.InvalidateInode(node, pages):
            return f"forget {node}" if pages else f"forget attributes of {node}"
    assert isinstance(effect, effects.Close)
    return f"close {effect.code}"


class Tree:
    """What a client has: content by path, None for a directory. A link's content is its target, and its path is in `links`."""

    def __init__(self, contents: dict[bytes, bytes | None], links: tuple[bytes, ...] = ()) -> None:
        self.contents: dict[bytes, bytes | None] = {b"": None, **contents}
        self.links = links
        self.changes = 2
        self._opened: dict[int, bytes] = {}

    def change(self, path: bytes, content: bytes | None) -> Attributes | None:
        """Others write it; what it is then."""
        self.contents[path] = content
        self.changes += 1
        return self.attributes(path)

    def attributes(self, path: bytes) -> Attributes | None:
        if path not in self.contents:
            return None
        content = self.contents[path]
        inode = crc32(path) % 10**6 + 10 if path else 1
        if content is None:
            return attributes(inode, DIRECTORY, nlink=2)
        return attributes(inode, LINK if path in self.links else REGULAR, size=len(content), mtime=self.changes, ctime=10**9)

    def gathered(self, asked: Gather, *, watched: bool = True) -> tuple[Gathered, ...]:
        return tuple(self._gathered(path, asked, watched) for path in asked.paths)

    def _names(self, path: bytes) -> list[bytes]:
        return sorted(other for other in self.contents if other and split(other)[0] == path)

    def _gathered(self, path: bytes, asked: Gather, watched: bool) -> Gathered:
        found = self.attributes(path)
        if found is None:
            return Gathered("ENOENT", None, watched)
        content = self.contents[path]
        if content is None:
            names = self._names(path)
            return Gathered(None, found, watched, tuple(map(self._entry, names[: asked.entries])), len(names) <= asked.entries)
        return Gathered(None, found, watched, content=content if len(content) <= asked.content or path in self.links else None)

    def _entry(self, path: bytes) -> ListedEntry:
        found = self.attributes(path)
        assert found is not None
        return ListedEntry(split(path)[1], found.inode, found.mode & 0o170000, found)

    def answer(self, arguments: Any, *, watched: bool = True) -> Any:
        """What the client answers, where nothing is changed by it. A handle is the inode's number."""
        match arguments:
            case wire.Gather():
                return self.gathered(arguments, watched=watched)
            case wire.Getattr(target) | wire.Open(target) | wire.Opendir(target):
                path = target if isinstance(target, bytes) else self._opened[target]
                found = self.attributes(path)
                if found is None:
                    return Errno("ENOENT")
                if isinstance(arguments, wire.Getattr):
                    return found
                self._opened[found.inode] = path
                return OpenedFile(found.inode, found)
            case wire.Read(handle, offset, size):
                return (self.contents[self._opened[handle]] or b"")[offset : offset + size]
            case wire.Readlink(path):
                return self.contents[path]
            case wire.Readdir(handle):
                path = self._opened[handle]
                entries, stop = tuple(map(self._entry, self._names(path))), arguments.cookie + arguments.count
                return wire.Listed(entries[arguments.cookie : stop], stop >= len(entries))
        assert isinstance(arguments, wire.Release | wire.Releasedir | wire.Unwatch | wire.Setlk | wire.Flush), arguments
        return None


class Mount:
    """One turnstile. The root's attributes are known; everything else comes by `lookup`."""

    def __init__(
        self,
        rules: Sequence[Rule] = EVERYTHING,
        *,
        bounds: Limits | None = None,
        limits: TenantLimits | None = None,
        identity: Identity = OWNER,
        read_only: bool = False,
        export_root: bytes = b"/home/me/src",
        watches: bool = False,
        orders: bool = False,
        ring: bytearray | None = None,
        **tenant: Any,
    ) -> None:
        """`ring` is where a process before this one has put what it owed."""
        self.now = 100.0
        self.identity = identity
        tenant.setdefault("cache", Cache("watched"))
        self.tenant = Tenant(name="acme", rules=tuple(rules), limits=limits or TenantLimits(), **tenant)
        gate = Gate(self.tenant, identity, read_only=read_only)
        limiter = Limiter(self.tenant.limits, self.now)
        self.t = Turnstile(gate, limiter, bounds or Limits(), export_root=export_root, watches=watches, orders=orders)
        self.ring = bytearray(2**20) if ring is None else ring
        self.t.ahead.room, self.t.ahead.read_back = len(self.ring), lambda at, size: bytes(self.ring[at : at + size])
        self.log: list[effects.Effect] = []
        """Every effect since the last `clear`."""
        self.number = 0
        self._served: list[Ask] = []
        self.t.inodes.root.identity = (7, 1, DIRECTORY)

    # What goes in.

    def ask(self, request: op.Request, caller: Caller = CALLER, number: int = 0) -> int:
        """A request of the kernel; its number: the next one, or that of one that is sent again."""
        if number:
            self.t.request(self.now, number, caller, request)
            self.gather()
            return number
        self.number += 2
        self.t.request(self.now, self.number, caller, request)
        self.gather()
        return self.number

    def reply(self, number: int, result: Any = None) -> None:
        """What the client answers."""
        self._served += [each for each in self.sent if each.id == number]
        frame = Reply(number, str(result)) if isinstance(result, Errno) else Reply(number, None, result)
        self.message(codec.encode(frame))

    def notice(self, *paths: bytes, attributes: tuple[Attributes | None, ...] = (), overflow: bool = False) -> None:
        self.message(codec.encode(Notice(paths, attributes, overflow)))

    def serve(self, tree: "Tree", *only: type, watched: bool = True) -> list[Any]:
        """The client answers what it was sent since the last `clear` (`only`: of these kinds), and what follows from that; what
        it was, as arguments."""
        served: list[Any] = []
        kinds = only or (object,)
        while due := [each for each in self.sent if isinstance(each.arguments, kinds) and not self._is_served(each)]:
            for frame in due:
                served.append(frame.arguments)
                self.reply(frame.id, tree.answer(frame.arguments, watched=watched))
        return served

    def _is_served(self, frame: Ask) -> bool:
        return any(frame is each for each in self._served)

    def see(self, tree: "Tree", request: op.Request, caller: Caller = CALLER) -> op.Answer:
        """A request, and what the kernel is answered while the client serves what is in the tree."""
        number = self.ask(request, caller)
        self.serve(tree)
        return self.answer(number)

    def walk(self, tree: "Tree", path: bytes) -> int:
        """The node of a path that is looked up while the client serves what is in the tree."""
        parent = ROOT
        for name in path.split(b"/"):
            entry = self.see(tree, op.Lookup(parent, name))
            assert isinstance(entry, op.Entry), entry
            parent = entry.node
        return parent

    def known(self, tree: "Tree", path: bytes = b"") -> int:
        """A directory's node, after it was listed; the log begins anew."""
        node = self.walk(tree, path) if path else ROOT
        opened = self.see(tree, op.Opendir(node, 0))
        assert isinstance(opened, op.Opened), opened
        self.see(tree, op.Releasedir(node, opened.handle))
        self.clear()
        return node

    def message(self, message: bytes) -> None:
        try:
            self.t.received(self.now, message)
        finally:
            self.gather()

    def interrupt(self, number: int) -> None:
        self.t.request(self.now, number + 1, Caller(0, 0, 0), op.Interrupt(number))
        self.gather()

    def tick(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds
        try:
            self.t.tick(self.now)
        finally:
            self.gather()

    def apply(self, rules: Sequence[Rule], **tenant: Any) -> None:
        """A new policy."""
        values = {"limits": self.tenant.limits, "audit": self.tenant.audit, "cache": self.tenant.cache, **tenant}
        self.t.apply(self.now, Gate(Tenant(name="acme", rules=tuple(rules), **values), self.identity))
        self.gather()

    def do(self, request: op.Request, *results: Any, caller: Caller = CALLER) -> op.Answer:
        """A request, answered by the client with `results`, one each time it is asked; what the kernel is answered."""
        number = self.ask(request, caller)
        for result in results:
            self.reply(number, result)
        return self.answer(number)

    # What comes out.

    def gather(self) -> None:
        for effect in self.t.effects:
            if isinstance(effect, effects.Hold):
                self.ring[effect.at : effect.at + len(effect.data)] = effect.data
        self.log += self.t.effects
        self.t.effects = []

    def clear(self) -> None:
        self.log = []

    @property
    def story(self) -> list[str]:
        """The effects since the last `clear`, in a few words each."""
        return [told(effect) for effect in self.log]

    @property
    def records(self) -> list[Record]:
        return [effect.record for effect in self.log if isinstance(effect, effects.Tell)]

    @property
    def sent(self) -> list[Ask]:
        return [e.frame for e in self.log if isinstance(e, effects.Send) and isinstance(e.frame, Ask)]

    @property
    def arguments(self) -> Any:
        """What the client was last asked."""
        return self.sent[-1].arguments

    def answers(self, number: int) -> list[op.Answer]:
        return [e.answer for e in self.log if isinstance(e, effects.Answer) and e.request == number]

    def answer(self, number: int) -> op.Answer:
        found = self.answers(number)
        assert len(found) == 1, f"request {number} was answered {len(found)} times: {self.story}"
        return found[0]

    # Ways to begin.

    def lookup(self, path: bytes, kind: int = REGULAR, inode: int = 0, parent: int = ROOT, **other: int) -> int:
        """The node of a path, looked up component by component."""
        *parents, name = path.split(b"/")
        for directory in parents:
            parent = self._one(parent, directory, attributes(crc32(directory) % 10**6 + 10**6, DIRECTORY))
        return self._one(parent, name, attributes(inode or crc32(path) % 10**6 + 10, kind, **other))

    def _one(self, parent: int, name: bytes, found: Attributes) -> int:
        entry = self.do(op.Lookup(parent, name), found)
        assert isinstance(entry, op.Entry), entry
        return entry.node

    def open(self, node: int, flags: int = O_RDWR, remote: int = 77, caller: Caller = CALLER) -> int:
        """A handle of a file that was looked up."""
        found = self.t.inodes.get(node)
        assert found is not None
        assert found.identity is not None
        device, inode, kind = found.identity
        result = OpenedFile(remote, attributes(inode, kind, device=device))
        opened = self.do(op.Open(node, flags), result, caller=caller)
        assert isinstance(opened, op.Opened), opened
        return opened.handle

    def opendir(self, node: int = ROOT, remote: int = 88) -> int:
        found = self.t.inodes.get(node)
        assert found is not None
        assert found.identity is not None
        opened = self.do(op.Opendir(node, 0), OpenedFile(remote, attributes(found.identity[1], DIRECTORY)))
        assert isinstance(opened, op.Opened), opened
        return opened.handle
