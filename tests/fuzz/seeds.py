"""Well-formed examples for the fuzzer to start from, by target."""

import struct
from pathlib import Path

from fuse_gated import operations as op
from fuse_gated.edge.fuse_requests import OPCODES
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire
from fuse_gated.wire.tables import OPERATION_OF

CUT = b"\xc1"
_TOP = Path(__file__).resolve().parents[2]
_NUMBERS = {name: index for index, name in enumerate(OPCODES[number][0] for number in sorted(OPCODES))}

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: fuse-gate.v1\r\nAuthorization: Bearer token\r\n\r\n"
)
HELLO = codec.encode(wire.Hello(wire.Offer(export="src", root=b"/x", capabilities=("chown",), program="fuzz/1")))
WELCOME = codec.encode(
    wire.Welcome(wire.Terms(session="s", resume=b"r" * 32, mount="/run/m", max_in_flight=64, max_bytes_in_flight=2**22))
)
_FILE = op.Attributes(7, 21, 0o100644, 1, 0, 0, 0, 5, 8, 4096, 10**18, 10**18, 10**18)
_RESULTS: dict[str, object] = {
    "LOOKUP": _FILE, "GETATTR": _FILE, "SETATTR": _FILE, "READLINK": b"target", "OPEN": wire.OpenedFile(80, _FILE),
    "CREATE": wire.OpenedFile(80, _FILE), "READ": b"hello", "WRITE": 5, "STATFS": op.Filesystem(9, 8, 7, 6, 5, 4096, 255, 4096),
    "READDIR": wire.Listed((wire.ListedEntry(b"a", 3, 0o100000),), True),
    "READDIRPLUS": wire.Listed((wire.ListedEntry(b"f", 21, 0o100000, _FILE),), True),
    "GETXATTR": b"value", "LISTXATTR": (b"user.x",), "LSEEK": 5, "GETLK": wire.LockState(1, 0, 10), "COPY_FILE_RANGE": 5,
}  # fmt: skip
_BODIES: dict[str, bytes] = {
    "LOOKUP": b"f\0", "READ": struct.pack("=QQII", 1, 0, 4096, 0), "WRITE": struct.pack("=QQII16x", 1, 0, 5, 0) + b"hello",
    "CREATE": struct.pack("=IIII", 2, 0o644, 0, 0) + b"new\0", "RENAME2": struct.pack("=QII", 1, 0, 0) + b"f\0g\0",
    "MKDIR": struct.pack("=II", 0o755, 0) + b"x\0", "SYMLINK": b"x\0target\0",
    "GETXATTR": struct.pack("=II", 100, 0) + b"user.x\0",
    "SETXATTR": struct.pack("=II", 1, 0) + b"user.x\0v", "LISTXATTR": struct.pack("=II", 100, 0),
    "READDIR": struct.pack("=QQII", 3, 0, 4096, 0), "READDIRPLUS": struct.pack("=QQII", 3, 0, 4096, 0), "UNLINK": b"f\0",
    "SETLKW": struct.pack("=QQQQIII", 1, 5, 0, 9, 1, 9, 0), "RELEASE": struct.pack("=QIIQ", 1, 0, 0, 0),
    "SETATTR": struct.pack("=II", 8, 0) + bytes(80), "OPEN": struct.pack("=II", 2, 0), "LINK": struct.pack("=Q", 1) + b"x\0",
    "LSEEK": struct.pack("=QqI", 1, 0, 3), "COPY_FILE_RANGE": struct.pack("=QQQQQQQ", 1, 0, 2, 1, 9, 5, 0),
    "BATCH_FORGET": struct.pack("=IIQQ", 1, 0, 2, 1), "INTERRUPT": struct.pack("=Q", 2),
}  # fmt: skip
_ASKS = (
    wire.Getattr(b"f"), wire.Readlink(b"escape"), wire.Open(b"f", 3), wire.Read(1, 0, 4096), wire.Write(1, 0, memoryview(b"x")),
    wire.Opendir(b""), wire.Readdir(2, 0, 100, True), wire.Mkdir(b"d/x", 0o755), wire.Rename(b"f", b"g"), wire.Unlink(b"g"),
    wire.Symlink(b"../..", b"l"), wire.Statfs(), wire.Setxattr(b"f", b"user.a", b"v"), wire.Release(1),
    wire.Getattr(b"escape/secret"), wire.Open(b"d/../../outside/secret", 1), wire.Link(b"f", b"h"),
    wire.Gather((b"", b"d", b"f", b"escape", b"../outside"), 4096, 100, 2**20, True), wire.Unwatch((b"d", b"..")),
)  # fmt: skip
"""What a server may ask for, and what it must not get."""

_POLICY = b"""tenants:
  acme:
    tokens: [{sha256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", expires: 2036-01-31, note: "ci"}]
    users: [root, "*"]
    ownership: mapped
    exports: {name: "work-*", max_sessions: 4}
    rules: [{path: "/.env*", hide: true}, {path: "/**/[!a-c]?/**", deny: [write]}, {path: "/**", allow: [read, execute]}]
    symlinks: inside
    limits: {operations: {read: 2000/s, "*": 60/min}, bytes: {write: 50MiB/s}, on_excess: refuse, file_size: 4GiB}
    outage: {mode: wait, grace: 60s}
    audit: writes
"""


def seeds() -> dict[str, list[bytes]]:
    """Examples for each target. For `server` and `client` the first byte says how far the connection has come."""
    asked = [bytes([0, number, number % 7]) + _BODIES.get(name, b"") for name, number in _NUMBERS.items()]
    told = [
        asking + CUT + bytes([1, 0]) + codec.encode(wire.Reply(1, None, result))[len(b"\x91\x94\xa5reply\x01\xc0") :]
        for name, result in _RESULTS.items()
        for asking in asked
        if asking[1] == _NUMBERS[name]
    ]
    replies = [
        codec.encode(wire.Reply(2, None, _FILE)),
        codec.encode(wire.Reply(4, "ENOENT")),
        codec.encode(wire.Notice((b"f",)), wire.Broken(1)),
        codec.encode(wire.Notice((b"f", b"d", b"d"), (_FILE, None, _FILE)), wire.Notice((), (), True)),
    ]
    asks = [codec.encode(wire.Ask(n, OPERATION_OF[type(a)], a)) for n, a in enumerate(_ASKS, 1)]
    asks += [codec.encode(*(wire.Ask(n, OPERATION_OF[type(a)], a, (n - 1, n)) for n, a in enumerate(_ASKS, 2)))]
    frame = b"\x82\x85\x00\x00\x00\x00hello"
    ping, close = b"\x89\x81\x00\x00\x00\x00x", b"\x88\x82\x00\x00\x00\x00\x03\xe8"
    parts = [b"\x02\x82\x01\x02\x03\x04he", b"\x00\x81\x00\x00\x00\x00l", b"\x80\x82\x00\x00\x00\x00lo"]
    long = b"\x82\xff" + struct.pack("!Q", 66_000) + b"\x05\x06\x07\x08LONG"
    return {
        "hello": [HELLO],
        "from_server": [WELCOME, *asks, codec.encode(wire.Cancel(2))],
        "session": [*asked, *told, CUT.join(told[:6]), b"\x03", b"\x04\x02", b"\x05n", CUT.join([asked[0], b"\x03", b"\x05ne"])],
        "kernel": [struct.pack("=HB", number, 1) + _BODIES.get(entry[0], b"") for number, entry in OPCODES.items()],
        "policy": [_POLICY, (_TOP / "etc/policy.yaml").read_bytes()],
        "settings": [(_TOP / "etc/fuse-gated.yaml").read_bytes(), b'listen: "[::]:7433"\naudit: {to: file}\ndrivers: [kernel]\n'],
        "server": [b"\0" + UPGRADE, b"\x01" + HELLO, *(b"\x02" + reply for reply in replies), b"\x03" + frame],
        "framing": [
            *(b"\x01" + size + said for size in (b"\0", b"\x06", b"\xff") for said in (
                frame * 3, frame + ping + frame, parts[0] + ping + parts[1] + parts[2] + frame, frame + close + frame,
                long + frame, parts[0] + frame, b"\x82\xfe\x00\x05\x00\x00\x00\x00hello", b"\x82\x05hello", b"\xc2" + frame[1:],
            )),
            b"\0\x03\x82\x05hello\x82\x00\x89\x00\x02\x01a\x80\x01b", b"\0\xff\x82\x7f" + struct.pack("!Q", 66_000) + b"LONG",
        ],
        "client": [b"\0HTTP/1.1 401 No\r\nContent-Length: 3\r\n\r\nno\n", b"\x01" + WELCOME, *(b"\x02" + one for one in asks),
                   b"\x02" + CUT.join(asks), b"\x03\x82\x05hello"],
    }  # fmt: skip


def words() -> list[str]:
    """What the grammars are made of."""
    keys = {word for word in _POLICY.decode().replace("{", " ").split() if word.endswith(":") and '"' not in word}
    headers = ["Upgrade: websocket", "Content-Length: ", "Transfer-Encoding: chunked", "Authorization: Bearer ", "Origin: "]
    frames = ["reply", "ask", "cancel", "notice", "welcome", "hello", "ENOENT", "EAGAIN"]
    names = ["../", "/", "..", "escape", "absolute", "outside", "secret", "user.a", "**", "[!a]"]
    escapes = ["\\x00", "\\xc0", "\\xc1", "\\xff\\xff\\xff\\xff"]
    return [*sorted(keys), *headers, *frames, *OPERATION_OF.values(), *names, *escapes]
