"""Targets without I/O: the parsers of what strangers, operators and the kernel write, and the turnstile with all its doors.

An input of several steps is cut at 0xC1, the one byte that MessagePack never uses.
"""

import datetime
import itertools
import struct
from collections.abc import Callable, Iterator

import msgspec
from harness.cases import Scene
from harness.sansio import Mount

from fuse_gated import operations as op
from fuse_gated.config.advice import warnings
from fuse_gated.config.policy_file import parse_policy
from fuse_gated.config.settings_file import parse_settings
from fuse_gated.edge import fuse_answers
from fuse_gated.edge.fuse_requests import OPCODES, decode
from fuse_gated.errors import ConfigurationError, ProtocolError
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.judgement import OPERATIONS
from fuse_gated.gate.tenant import Identity
from fuse_gated.gate.verdict import ALL, Rule
from fuse_gated.paths import is_safe_name
from fuse_gated.turnstile import effects
from fuse_gated.turnstile.table import TABLE
from fuse_gated.wire import codec
from fuse_gated.wire.messages import Asked
from fuse_gated.wire.session import read_hello

Target = Callable[[bytes], None]

CUT = b"\xc1"
MOST_STEPS = 24
RULES = (Rule("/.env*", hide=True), Rule("/d/**", deny=2), Rule("/**", allow=ALL))
_NARROW = (Rule("/f", allow=1), Rule("/d/**", allow=1))
_OPCODES = sorted(OPCODES)
_MOST_READ = 2**20
_TODAY = datetime.date(2026, 1, 31)


def pieces(data: bytes) -> list[bytes]:
    return data.split(CUT, MOST_STEPS)[:MOST_STEPS]


def hello(data: bytes) -> None:
    """The first message of somebody who may not have logged in."""
    try:
        read_hello(data)
    except ProtocolError:
        return


def from_server(data: bytes) -> None:
    """A message of a server, and the arguments of what it asks."""
    try:
        for frame in codec.decode_from_server(data):
            if isinstance(frame, Asked):
                codec.decode_arguments(frame)
    except ProtocolError:
        return


def policy(data: bytes) -> None:
    """A policy file; one without faults is advised on, and its gate asked about everything."""
    try:
        tenants = parse_policy([("policy.yaml", data)])
    except ConfigurationError as error:
        _check_faults(error)
        return
    warnings(tenants, _TODAY)
    for tenant in tenants:
        gate = Gate(tenant, Identity(owner_uid=0, owner_gid=0, anyone=True))
        for operation, path in itertools.product(OPERATIONS, (b"", b"a", b".env", b"a/\xff/c", b"a/b/c/d")):
            other = b"b/c" if operation in ("rename", "exchange", "link", "copy_file_range") else None
            verdict = gate.judge(operation, path, other, directory=True, replaces=True)
            assert verdict.allowed == (verdict.errno is None)


def settings(data: bytes) -> None:
    """The daemon's settings."""
    try:
        parse_settings(data, "fuse-gated.yaml")
    except ConfigurationError as error:
        _check_faults(error)


def _check_faults(error: ConfigurationError) -> None:
    assert error.faults, "a refusal that says nothing"


def kernel(data: bytes) -> None:
    """Requests of the kernel, whole or cut off: opcode, node, body. Cut off is struct.error or ValueError, never a hang."""
    for piece in pieces(data):
        if len(piece) < 3:
            continue
        opcode, node = struct.unpack_from("=HB", piece)
        for number in {opcode, _OPCODES[opcode % len(_OPCODES)]}:
            try:
                request = decode(number, node, memoryview(piece)[3:])
            except (struct.error, ValueError):
                continue
            assert isinstance(request, msgspec.Struct)


def session(data: bytes) -> None:
    """A mounted session: the kernel asks, the client answers, time passes, the policy changes, in any order.

    The first byte of a step says which; the client may answer what it was asked with any bytes. ProtocolError ends the
    session and nothing else may come out; every request is answered once, in a form that can be written to /dev/fuse.
    """
    play = _Session()
    try:
        for step in pieces(data):
            play.steps[step[0] % len(play.steps) if step else 0](step[1:])
            play.look()
    except ProtocolError:
        pass
    play.end()


class _Session:
    def __init__(self) -> None:
        self.mount = Mount(RULES)
        scene = Scene(self.mount)
        self.nodes = [scene.root, scene.f, scene.h, scene.l, scene.d, scene.e, 99]
        self.waiting: set[int] = set()
        self.steps = (self.kernel_asks, self.client_answers, self.client_says, self.time_passes, self.interrupt, self.new_policy)

    def look(self) -> None:
        """At what came out."""
        for effect in self.mount.log:
            if isinstance(effect, effects.Answer):
                parts = fuse_answers.encode(effect.request, effect.answer)
                assert fuse_answers.OUT_HEADER.unpack_from(parts[0])[0] == sum(len(part) for part in parts)
                self.waiting.remove(effect.request)
            elif isinstance(effect, effects.Send):
                codec.encode(effect.frame)
        self.mount.clear()

    def end(self) -> None:
        """Whoever waits is answered when the client is gone."""
        self.mount.t.lost(self.mount.now)
        self.mount.gather()
        self.look()
        assert not self.waiting, f"never answered: {self.waiting}"

    def kernel_asks(self, step: bytes) -> None:
        if len(step) < 2:
            return
        opcode, node = _OPCODES[step[0] % len(_OPCODES)], self.nodes[step[1] % len(self.nodes)]
        assert isinstance(node, int)
        # What the fuzzer has cut short goes on with zeros, and so its names end.
        body = step[2:].ljust(104, b"\0") + b"\0\0"
        try:
            request = decode(opcode, node, memoryview(body))
        except (struct.error, ValueError):
            return
        if isinstance(request, op.Destroy) or not all(map(is_safe_name, _names(request))):
            return
        if isinstance(request, op.Read | op.Readdir):
            request = msgspec.structs.replace(request, size=request.size % _MOST_READ)
        if type(request) in TABLE or isinstance(request, op.Unserved):
            self.waiting.add(self.mount.number + 2)
        self.mount.ask(request)

    def client_answers(self, step: bytes) -> None:
        """A reply to something that was asked, with whatever result."""
        asked = [number for number in range(1, self.mount.number + 2) if self.mount.t.session.get(number) is not None]
        if asked and step:
            number = asked[step[0] % len(asked)]
            self.mount.message(b"\x91\x94\xa5reply" + msgspec.msgpack.encode(number) + b"\xc0" + step[1:])

    def client_says(self, step: bytes) -> None:
        self.mount.message(step)

    def time_passes(self, step: bytes) -> None:
        self.mount.tick(step[0] / 8 if step else 31.0)

    def interrupt(self, step: bytes) -> None:
        self.mount.interrupt(2 * (step[0] if step else 1))

    def new_policy(self, step: bytes) -> None:
        rules = _NARROW if step[:1] == b"n" else RULES
        self.mount.apply(rules, audit="everything" if len(step) > 1 else "writes")


def _names(request: op.Request) -> Iterator[bytes]:
    """The names in a request that the kernel has made sure are single ones."""
    if isinstance(request, op.Getxattr | op.Setxattr | op.Removexattr):
        return
    for field in ("name", "new_name"):
        name = getattr(request, field, None)
        if name is not None:
            yield name


TARGETS: dict[str, Target] = {
    "hello": hello,
    "from_server": from_server,
    "session": session,
    "kernel": kernel,
    "policy": policy,
    "settings": settings,
}
