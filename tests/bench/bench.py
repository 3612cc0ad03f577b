"""Latency and throughput beside sshfs over its direct TCP port, on the same tree, in the same run: `make bench`.

Everything is pinned to one CPU, because the latency of one operation is what all its processes cost together. Caches are off
on both sides (sshfs: cache=no, no attribute, entry or negative timeout; fuse-gated has none yet). Each row is the median of
rounds that alternate between the two, so that a noisy machine hits both. Prints a table, writes JSON; fails nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SFTP_SERVER = "/usr/lib/openssh/sftp-server"
MIB = 2**20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def sshfs(export: Path, mount: Path) -> Iterator[None]:
    """sshfs on a bare TCP connection to sftp-server: no encryption, nothing but the protocol and FUSE."""
    port = free_port()
    listener = subprocess.Popen(
        [sys.executable, "-c", _INETD, str(port), SFTP_SERVER], start_new_session=True, stdout=subprocess.PIPE
    )
    assert listener.stdout is not None
    listener.stdout.readline()
    options = "cache=no,attr_timeout=0,entry_timeout=0,negative_timeout=0,directport=" + str(port)
    process = subprocess.Popen(["sshfs", "-f", "-o", options, f"127.0.0.1:{export}", str(mount)])
    _wait_for(lambda: os.path.ismount(mount))
    try:
        yield
    finally:
        subprocess.run(["fusermount3", "-u", str(mount)], check=True)
        process.wait(10)
        os.killpg(listener.pid, signal.SIGTERM)
        listener.wait(10)


_INETD = """
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
def fuse_gated(export: Path, directory: Path, rules: int) -> Iterator[tuple[Path, dict[str, int]]]:
    """The product, with a policy of so many rules before the one that allows everything."""
    etc, runtime, port = directory / "etc", directory / "run", free_port()
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
    module = [sys.executable, "-m", "fuse_gated.commands.fuse_gated"]
    options = ["--etc", etc, "--runtime", runtime, "--listen", f"127.0.0.1:{port}"]
    server = subprocess.Popen([*module, *options], stderr=subprocess.PIPE)
    assert server.stderr is not None
    while b"ready" not in (line := server.stderr.readline()):
        if not line:
            raise SystemExit("fuse-gated did not start")
    client = subprocess.Popen(
        [sys.executable, "-m", "fuse_gated.commands.fuse_gate", "export", export, "--server", f"ws://127.0.0.1:{port}",
         "--token-file", directory / "token", "--name", "bench", "--json"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert client.stdout is not None
    while True:
        event = json.loads(client.stdout.readline())
        if event["event"] == "mounted":
            break
    sessions = subprocess.run(
        [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", "--runtime", runtime, "sessions", "--json"],
        capture_output=True, check=True,
    )  # fmt: skip
    worker = json.loads(sessions.stdout)[0]["pid"]
    try:
        yield Path(event["path"]), {"client": client.pid, "worker": worker}
    finally:
        client.send_signal(signal.SIGTERM)
        client.wait(10)
        server.send_signal(signal.SIGTERM)
        server.wait(15)


def _wait_for(ready: Callable[[], bool]) -> None:
    for _ in range(200):
        if ready():
            return
        time.sleep(0.05)
    raise SystemExit("what was to be measured did not start")


def _timed(count: int, operation: Callable[[int], object]) -> float:
    """Microseconds for one operation."""
    start = time.perf_counter()
    for number in range(count):
        operation(number)
    return (time.perf_counter() - start) / count * 1e6


def _stat(root: Path, count: int) -> float:
    path = os.fsencode(root / "tree" / "f0")
    return _timed(count, lambda _: os.stat(path))


def _open_read_close(root: Path, count: int) -> float:
    def one(number: int) -> None:
        fd = os.open(root / "tree" / f"f{number % 100}", os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)

    return _timed(count, one)


def _create(root: Path, count: int) -> float:
    data = b"x" * 4096
    directory = root / f"made-{root.name}"
    directory.mkdir()

    def one(number: int) -> None:
        fd = os.open(directory / f"n{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, data)
        os.close(fd)

    return _timed(count, one)


def _unlink(root: Path, count: int) -> float:
    directory = root / f"made-{root.name}"
    names = sorted(os.listdir(directory))[:count]
    result = _timed(len(names), lambda number: os.unlink(directory / names[number]))
    shutil.rmtree(directory)
    return result


def _write_sequential(root: Path, size: int) -> float:
    """Milliseconds for the whole file."""
    data = os.urandom(MIB)
    start = time.perf_counter()
    with open(root / f"large-{root.name}", "wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(data)
        os.fsync(file.fileno())
    return (time.perf_counter() - start) * 1e3


def _read_sequential(root: Path, size: int) -> float:
    start = time.perf_counter()
    left = size
    with open(root / f"large-{root.name}", "rb", buffering=0) as file:
        while chunk := file.read(MIB):
            left -= len(chunk)
    assert left == 0, "the file came back with another length"
    elapsed = (time.perf_counter() - start) * 1e3
    os.unlink(root / f"large-{root.name}")
    return elapsed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256, help="MiB")
    parser.add_argument("--rules", type=int, default=50)
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    arguments = parser.parse_args()
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    results: dict[str, dict[str, list[float]]] = {}
    rows: list[tuple[str, Callable[[Path, int], float], int, str]] = [
        ("stat, uncached", _stat, arguments.count, "µs"),
        ("open, read 4 KiB, close", _open_read_close, arguments.count, "µs"),
        ("create, write 4 KiB, close", _create, arguments.count, "µs"),
        ("unlink", _unlink, arguments.count, "µs"),
        (f"write {arguments.size} MiB, fsync", _write_sequential, arguments.size * MIB, "ms"),
        (f"read {arguments.size} MiB", _read_sequential, arguments.size * MIB, "ms"),
    ]
    with tempfile.TemporaryDirectory(prefix="fuse-gated-bench-") as name, contextlib.ExitStack() as stack:
        base = Path(name)
        base.chmod(0o755)
        export, mount = base / "export", base / "sshfs"
        (export / "tree").mkdir(parents=True)
        mount.mkdir()
        for number in range(100):
            (export / "tree" / f"f{number}").write_bytes(os.urandom(4096))
        stack.enter_context(sshfs(export, mount))
        gated, _pids = stack.enter_context(fuse_gated(export, base, arguments.rules))
        for round_ in range(arguments.rounds + 1):
            for row, measure, amount, _unit in rows:
                for who, root in (("fuse-gated", gated), ("sshfs", mount), ("local", export)):
                    value = measure(root, amount)
                    if round_:  # the first one warms up
                        results.setdefault(row, {}).setdefault(who, []).append(value)
    table = {row: {who: statistics.median(values) for who, values in by.items()} for row, by in results.items()}
    units = {row: unit for row, _, _, unit in rows}
    print(f"{'':28} {'fuse-gated':>12} {'sshfs':>12} {'local':>12} {'ratio':>7}")
    for row, by in table.items():
        ratio = by["fuse-gated"] / by["sshfs"]
        figures = " ".join(f"{by[who]:>9.1f} {units[row]}" for who in ("fuse-gated", "sshfs", "local"))
        print(f"{row:28} {figures} {ratio:>6.2f}x")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"cpu": cpu, "rounds": arguments.rounds, "median": table, "all": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
