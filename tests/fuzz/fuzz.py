"""`make fuzz`: what a stranger may send, mutated by coverage (atheris) for so many seconds.

Four doors, the ones a peer's bytes come through: the HTTP upgrade and the WebSocket frames (websockets' protocol, as the
worker uses it), the hello, a message of a client that is logged in, and a message of a server. Each may raise ProtocolError and
nothing else. A crash leaves its input beside this script, and the exit status is not 0.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGETS = ("upgrade", "hello", "from_client", "from_server")


def run_target(name: str, seconds: int, corpus: Path) -> None:
    """In a process of its own: atheris ends its process."""
    import atheris

    with atheris.instrument_imports(include=["fuse_gated", "websockets"]):
        from websockets.http11 import Request
        from websockets.protocol import Protocol, Side
        from websockets.server import ServerProtocol

        from fuse_gated import operations
        from fuse_gated.errors import ProtocolError
        from fuse_gated.gate.gate import Gate
        from fuse_gated.gate.limiter import Limiter
        from fuse_gated.gate.tenant import Identity, Tenant
        from fuse_gated.gate.verdict import Rule
        from fuse_gated.turnstile import Limits, Turnstile
        from fuse_gated.wire import codec
        from fuse_gated.wire.messages import MAX_MESSAGE, SUBPROTOCOL, Asked
        from fuse_gated.wire.session import read_hello

    def upgrade(data: bytes) -> None:
        protocol = ServerProtocol(origins=[None], subprotocols=[SUBPROTOCOL], extensions=None, max_size=MAX_MESSAGE)
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Request):
                protocol.send_response(protocol.accept(event))
        opened = Protocol(Side.SERVER, max_size=MAX_MESSAGE)
        opened.receive_data(data)
        opened.events_received()

    def hello(data: bytes) -> None:
        read_hello(data)

    def from_client(data: bytes) -> None:
        tenant = Tenant(name="t", rules=(Rule("/**", allow=15),), audit="everything")
        identity = Identity(owner_uid=0, owner_gid=0, anyone=True)
        turnstile = Turnstile(Gate(tenant, identity), Limiter(tenant.limits, 0.0), Limits(), export_root=b"/x")
        caller = operations.Caller(1, 1, 1)
        requests: list[operations.Request] = [
            operations.Lookup(1, b"name"), operations.Getattr(1), operations.Readlink(1), operations.Opendir(1, 0),
            operations.Open(1, 2), operations.Statfs(1), operations.Getxattr(1, b"user.x", 100), operations.Listxattr(1, 100),
            operations.Create(1, b"new", 2, 0o644, 0), operations.Rename(1, b"a", 1, b"b", 0),
            operations.Mkdir(1, b"d", 0o755, 0),
        ]  # fmt: skip
        for number, request in enumerate(requests):
            turnstile.request(0.0, 2 * number + 2, caller, request)
        turnstile.received(0.1, data)
        # What a client could have made open is used once more, with the same bytes as answers.
        for number, handle in enumerate(list(turnstile.handles)):
            request = (
                operations.Readdir(1, handle.id, 0, 4096, True) if handle.directory else operations.Read(1, handle.id, 0, 4096)
            )
            turnstile.request(0.2, 1000 + 2 * number, caller, request)
        turnstile.received(0.3, data)

    def from_server(data: bytes) -> None:
        for frame in codec.decode_from_server(data):
            if isinstance(frame, Asked):
                codec.decode_arguments(frame)

    targets = {"upgrade": upgrade, "hello": hello, "from_client": from_client, "from_server": from_server}
    target = targets[name]

    def one(data: bytes) -> None:
        with contextlib.suppress(ProtocolError):
            target(data)

    flags = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=10", f"-artifact_prefix={HERE}/crash-{name}-"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
    atheris.Fuzz()


def seeds(corpus: Path) -> None:
    """Well-formed examples to start from."""
    from fuse_gated.operations import Attributes, Filesystem
    from fuse_gated.wire import codec, messages

    attributes = Attributes(1, 2, 0o100644, 1, 0, 0, 0, 5, 8, 4096, 10**18, 10**18, 10**18)
    replies = [
        messages.Reply(2, None, attributes), messages.Reply(4, "ENOENT"), messages.Reply(6, None, b"target"),
        messages.Reply(8, None, messages.OpenedFile(1, attributes)), messages.Reply(12, None, Filesystem(1, 1, 1, 1, 1, 1, 1, 1)),
        messages.Reply(1000, None, messages.Listed((messages.ListedEntry(b"a", 3, 0o100000, attributes),), True)),
        messages.Reply(16, None, (b"user.x",)), messages.Notice((b"a/b",)),
    ]  # fmt: skip
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: fuse-gate.v1\r\n\r\n"
    )
    examples = {
        "upgrade": [upgrade, b"\x82\x85\x00\x00\x00\x00hello"],
        "hello": [codec.encode(messages.Hello(messages.Offer(export="src", root=b"/x", capabilities=("chown",))))],
        "from_client": [codec.encode(*replies), *(codec.encode(reply) for reply in replies)],
        "from_server": [codec.encode(messages.Ask(2, "read", messages.Read(1, 0, 4096)), messages.Cancel(2))],
    }
    for name, data in examples.items():
        directory = corpus / name
        directory.mkdir(parents=True, exist_ok=True)
        for number, example in enumerate(data):
            (directory / f"seed{number}").write_bytes(example)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=150, help="for each of the four targets")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--target", choices=TARGETS)
    arguments = parser.parse_args()
    if arguments.target:
        run_target(arguments.target, arguments.seconds, arguments.corpus / arguments.target)
        return 0
    try:
        import atheris  # noqa: F401  # only whether it is there
    except ImportError:
        print("fuzz: atheris is missing: pip install atheris", file=sys.stderr)
        return 1
    seeds(arguments.corpus)
    worst = 0
    for name in TARGETS:
        print(f"fuzz: {name} for {arguments.seconds} s", flush=True)
        options = ["--target", name, "--seconds", str(arguments.seconds), "--corpus", str(arguments.corpus)]
        status = subprocess.run([sys.executable, __file__, *options], check=False).returncode
        print(f"fuzz: {name}: {'no fault found' if status == 0 else f'FAULT, exit {status}'}")
        worst = worst or status
    return worst


if __name__ == "__main__":
    sys.exit(main())
