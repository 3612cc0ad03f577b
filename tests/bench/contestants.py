"""What is measured: the product, and sshfs over its direct TCP port, each with an export of the same tree."""

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
from pathlib import Path
from typing import Final

SFTP_SERVER: Final = "/usr/lib/openssh/sftp-server"
_INETD: Final = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if os.fork() == 0:
        os.dup2(connection.fileno(), 0); os.dup2(connection.fileno(), 1)
        os.execv(sys.argv[2], [sys.argv[2]])
    connection.close()
"""


@contextlib.contextmanager
def sshfs(export: Path, mount: Path) -> Iterator[None]:
    """sshfs on a bare TCP connection to sftp-server: no encryption, nothing but the protocol and FUSE."""
    port = _free_port()
    listener = subprocess.Popen(
        [sys.executable, "-c", _INETD, str(port), SFTP_SERVER], start_new_session=True, stdout=subprocess.PIPE
    )
    assert listener.stdout is not None
    listener.stdout.readline()
    options = f"cache=no,attr_timeout=0,entry_timeout=0,negative_timeout=0,directport={port}"
    process = subprocess.Popen(["sshfs", "-f", "-o", options, f"127.0.0.1:{export}", str(mount)])
    _wait_for(lambda: os.path.ismount(mount))
    try:
        yield
    finally:
        subprocess.run(["fusermount3", "-u", str(mount)], check=True)
        process.wait(10)
        os.killpg(listener.pid, signal.SIGTERM)
        listener.wait(10)


@contextlib.contextmanager
def fuse_gated(export: Path, directory: Path, rules: int) -> Iterator[tuple[Path, dict[str, int]]]:
    """The product, with a policy of so many rules before the one that allows everything. Yields where it is mounted, and the
    pids of its processes by name."""
    etc, runtime, port = directory / "etc", directory / "run", _free_port()
    etc.mkdir(mode=0o755)
    token = "fg_" + secrets.token_urlsafe(24)
    (directory / "token").write_text(token)
    (directory / "token").chmod(0o600)
    digest = hashlib.sha256(token.encode()).hexdigest()
    lines = [f'      - {{path: "/some{number}/*.x", deny: [write]}}' for number in range(rules)]
    (etc / "policy.yaml").write_text(
        f'tenants:\n  bench:\n    tokens: [{{sha256: "{digest}"}}]\n    users: [root]\n    rules:\n'
        + "\n".join([*lines, '      - {path: "/**", allow: [read, write, execute, delete]}']) + "\n"
    )  # fmt: skip
    (etc / "policy.yaml").chmod(0o644)
    options = ["--etc", etc, "--runtime", runtime, "--listen", f"127.0.0.1:{port}"]
    server = subprocess.Popen([*_module("fuse_gated"), *options], stderr=subprocess.PIPE)
    assert server.stderr is not None
    while b"ready" not in (line := server.stderr.readline()):
        if not line:
            raise SystemExit("fuse-gated did not start")
    export_it = ["export", export, "--server", f"ws://127.0.0.1:{port}", "--token-file", directory / "token", "--name", "bench"]
    client = subprocess.Popen([*_module("fuse_gate"), *export_it, "--json"], stdout=subprocess.PIPE)
    assert client.stdout is not None
    while (event := json.loads(client.stdout.readline()))["event"] != "mounted":
        pass
    sessions = subprocess.run(
        [*_module("fuse_gatectl"), "--runtime", runtime, "sessions", "--json"], capture_output=True, check=True
    )
    worker = json.loads(sessions.stdout)[0]["pid"]
    try:
        yield Path(event["path"]), {"worker": worker, "client": client.pid}
    finally:
        client.send_signal(signal.SIGTERM)
        client.wait(10)
        server.send_signal(signal.SIGTERM)
        server.wait(15)


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"fuse_gated.commands.{name}"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(ready: Callable[[], bool]) -> None:
    for _ in range(200):
        if ready():
            return
        time.sleep(0.05)
    raise SystemExit("what was to be measured did not start")
