"""Who is measured: the product and sshfs, each with an export on the client's end of a link and a mount on the server's."""

import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from link import Link

SFTP_SERVER: Final = "/usr/lib/openssh/sftp-server"
CHECKOUT: Final = Path(__file__).resolve().parents[2]

UNCACHED: Final = "cache=no,attr_timeout=0,entry_timeout=0,negative_timeout=0"
"""sshfs when each operation is to reach the other side."""
BEST: Final = (
    "kernel_cache,dcache_max_size=1000000,dcache_timeout=3600,entry_timeout=3600,attr_timeout=3600,negative_timeout=3600,max_conns=4"
)
"""sshfs at its fastest: it keeps all that it has seen for an hour, whatever the client does, and has four connections."""

_DEADLINE: Final = 60.0
_INETD: Final = """
import os, socket, sys
listener = socket.create_server(("0.0.0.0", 0))
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if os.fork() == 0:
        os.dup2(connection.fileno(), 0); os.dup2(connection.fileno(), 1)
        os.execv(sys.argv[1], [sys.argv[1]])
    connection.close()
"""


@dataclass(frozen=True)
class Mounted:
    """Where it is mounted, and the pids of its processes by their part."""

    path: Path
    processes: Callable[[], dict[str, list[int]]]


@contextlib.contextmanager
def sshfs(export: Path, mount: Path, link: Link, options: str = "") -> Iterator[Mounted]:
    """sshfs on a bare TCP connection to sftp-server: no encryption, nothing but the protocol and FUSE."""
    listener = subprocess.Popen(
        [*link.client, sys.executable, "-c", _INETD, SFTP_SERVER], start_new_session=True, stdout=subprocess.PIPE
    )
    process = None
    try:
        assert listener.stdout is not None
        port = int(listener.stdout.readline())
        mount.mkdir(exist_ok=True)
        given = f"directport={port}" + (f",{options}" if options else "")
        process = subprocess.Popen(
            [*link.server, "sshfs", "-f", "-o", given, f"{link.client_address}:{export}", str(mount)],
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        _wait_for(lambda: os.path.ismount(mount), process)
        pid = process.pid
        yield Mounted(mount, lambda: {"sshfs": [pid], "sftp-server": _children(listener.pid)})
    finally:
        subprocess.run(["fusermount3", "-u", "-z", "-q", str(mount)], check=False)
        if process is not None:
            _end(process)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(listener.pid, signal.SIGTERM)
        listener.wait(10)


@contextlib.contextmanager
def fuse_gated(
    export: Path,
    directory: Path,
    link: Link,
    *,
    tls: bool = False,
    rules: int = 50,
    tenant: str = "",
    checkout: Path = CHECKOUT,
) -> Iterator[Mounted]:
    """The product as it is in `checkout`, with a policy of so many rules before the one that allows everything. `tenant`: more of
    the tenant's policy, in YAML's flow style; else it has what it remembers watched."""
    etc, runtime = directory / "etc", directory / "run"
    etc.mkdir(mode=0o755)
    port = _free_port()
    address = f"{link.server_address}:{port}"
    secret, more = _certified(directory, etc, link) if tls else ("ws", [])
    token = "fg_" + secrets.token_urlsafe(24)
    (directory / "token").write_text(token)
    (directory / "token").chmod(0o600)
    if not tenant and knows_caches(checkout):
        tenant = "cache: {mode: watched}"
    _write_policy(etc / "policy.yaml", token, rules, tenant)
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    run: dict[str, Any] = {"cwd": checkout, "env": environment, "start_new_session": True}
    said, warned = (directory / "server.stderr").open("w+b"), (directory / "client.stderr").open("w+b")
    server = client = None
    try:
        options = ["--etc", etc, "--runtime", runtime, "--listen", address]
        server = subprocess.Popen([*link.server, *_module("fuse_gated"), *options], stderr=said, **run)
        _wait_for(lambda: b"ready" in (directory / "server.stderr").read_bytes(), server)
        where = ["export", export, "--server", f"{secret}://{address}", "--token-file", directory / "token", "--name", "bench"]
        command = [*link.client, *_module("fuse_gate"), *where, *more, "--json"]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=warned, **run)
        assert client.stdout is not None
        while (event := _event(client.stdout.readline()))["event"] != "mounted":
            pass
        list_them = [*_module("fuse_gatectl"), "--runtime", runtime, "sessions", "--json"]
        listed = subprocess.run(list_them, capture_output=True, check=True, cwd=checkout, env=environment)
        (worker,) = (session["pid"] for session in json.loads(listed.stdout))
        pids = {"worker": [worker], "client": [client.pid]}
        yield Mounted(Path(event["path"]), lambda: pids)
    finally:
        for process in (client, server):
            if process is not None:
                _end(process)
        said.close()
        warned.close()


def knows_caches(checkout: Path) -> bool:
    """Whether that version's policy can say how much is cached."""
    return "class Cache" in (checkout / "fuse_gated" / "gate" / "tenant.py").read_text()


def _write_policy(file: Path, token: str, rules: int, tenant: str) -> None:
    digest = hashlib.sha256(token.encode()).hexdigest()
    lines = [f'      - {{path: "/some{number}/*.x", deny: [write]}}' for number in range(rules)]
    file.write_text(
        f'tenants:\n  bench:\n    tokens: [{{sha256: "{digest}"}}]\n    users: [root]\n'
        + (f"    {tenant}\n" if tenant else "")
        + "    rules:\n" + "\n".join([*lines, '      - {path: "/**", allow: [read, write, execute, delete]}']) + "\n"
    )  # fmt: skip
    file.chmod(0o644)


def _certified(directory: Path, etc: Path, link: Link) -> tuple[str, list[str | Path]]:
    """The scheme of the server's URL, and what the client is told besides."""
    from harness.certificates import Authority

    certificates = directory / "tls"
    certificates.mkdir(mode=0o755)
    authority = Authority(certificates)
    pair = authority.issue("server", names=f"IP:{link.server_address}")
    (etc / "fuse-gated.yaml").write_text(f"tls: {{certificate: {pair.certificate}, key: {pair.key}}}\n")
    (etc / "fuse-gated.yaml").chmod(0o644)
    return "wss", ["--ca", authority.certificate]


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"fuse_gated.commands.{name}"]


def _event(line: bytes) -> dict[str, Any]:
    if not line:
        raise RuntimeError("fuse-gate ended before it was mounted")
    event: dict[str, Any] = json.loads(line)
    return event


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _DEADLINE
    while not ready():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("what was to be measured did not start")
        time.sleep(0.02)
