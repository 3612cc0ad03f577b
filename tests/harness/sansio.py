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
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.gate.tenant import Limits as TenantLimits
from fuse_gated.gate.verdict import ALL, Rule
from fuse_gated.operations import Attributes, Caller
from fuse_gated.paths import shown
from fuse_gated.turnstile import effects
from fuse_gated.turnstile.turnstile import Limits, Turnstile
from fuse_gated.wire import codec
from fuse_gated.wire.messages import Ask, Cancel, Notice, OpenedFile, Reply

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
        case effects.Answer(answer=op.Failed(errno)):
            return f"answer {errno_name(errno)}"
        case effects.Answer(answer=answer):
            return f"answer {type(answer).__name__}"
        case effects.InvalidateEntry(parent, name):
            return f"forget {parent}/{name.decode()}"
        case effects.InvalidateInode(node, pages):
            return f"forget {node}" if pages else f"forget attributes of {node}"
    assert isinstance(effect, effects.Close)
    return f"close {effect.code}"


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
        **tenant: Any,
    ) -> None:
        self.now = 100.0
        self.identity = identity
        self.tenant = Tenant(name="acme", rules=tuple(rules), limits=limits or TenantLimits(), **tenant)
        gate = Gate(self.tenant, identity, read_only=read_only)
        self.t = Turnstile(gate, Limiter(self.tenant.limits, self.now), bounds or Limits(), export_root=export_root)
        self.log: list[effects.Effect] = []
        """Every effect since the last `clear`."""
        self.number = 0
        self.t.inodes.root.identity = (7, 1, DIRECTORY)

    # What goes in.

    def ask(self, request: op.Request, caller: Caller = CALLER) -> int:
        """A request of the kernel; its number."""
        self.number += 2
        self.t.request(self.now, self.number, caller, request)
        self.gather()
        return self.number

    def reply(self, number: int, result: Any = None) -> None:
        """What the client answers."""
        frame = Reply(number, str(result)) if isinstance(result, Errno) else Reply(number, None, result)
        self.message(codec.encode(frame))

    def notice(self, *paths: bytes) -> None:
        self.message(codec.encode(Notice(paths)))

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
        values = {"limits": self.tenant.limits, "audit": self.tenant.audit, **tenant}
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
