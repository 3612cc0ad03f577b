"""What a session costs the server: memory, descriptors, and the time to open it. `make bench BENCH_FLAGS=--sessions`.

Memory is PSS (smaps_rollup of proc(5)): pages that several processes share count in parts, so the sum over all of the server's
processes is what it takes of the machine. Each session is one of `fuse-gate`, with a small export that was walked once. The
time to open one is that of a connection over loopback that logs in, says hello and has its welcome, when the mount is there;
one after the other, beside the sessions that are open.
"""

import os
import statistics
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from websockets.sync.client import connect

COUNTS: Final = (1, 10, 50, 100)
TIMED: Final = 20
_FILES: Final = 20
_STARTED_AT_ONCE: Final = 10


def measure(counts: tuple[int, ...] = COUNTS, timed: int = TIMED) -> list[dict[str, Any]]:
    """A row of figures for no session, and for each of `counts`, in ascending order."""
    from harness import ALLOW_ALL, Stage

    tenant = {"users": ["root"], "rules": ALLOW_ALL, "exports": {"max_sessions": max(counts) + 1}}
    rows = []
    with Stage("kernel") as stage:
        server = stage.server({"tenants": {"bench": tenant}}, {"seccomp": True})
        # What the first connection loads is not the first session's.
        _open_one(server, "first")
        rows.append({"sessions": 0, **_figures(server), "open": _times(server, timed)})
        there = 0
        for count in counts:
            while there < count:
                some = range(there, min(count, there + _STARTED_AT_ONCE))
                clients = [stage.export(server, _export(stage, number), f"work{number}", "bench") for number in some]
                for client in clients:
                    for path in sorted(client.mount_path().iterdir()):
                        path.read_bytes()
                there = some.stop
            rows.append({"sessions": count, **_figures(server), "open": _times(server, timed)})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """As a table."""
    print(f"{'':9} {'PSS of the':>11} {'of that, a':>11} {'a worker,':>10}   {'descriptors':^32}  {'time to open one':^22}")
    heads = ("sessions", "server", "session", "most", "supervisor", "keeper", "daemon", "worker", "median", "worst")
    print("{:>9} {:>11} {:>11} {:>10}   {:>10} {:>6} {:>7} {:>6}  {:>10} {:>10}".format(*heads))
    for row in rows:
        mine = (row["pss"] - rows[0]["pss"]) / row["sessions"] if row["sessions"] else 0
        print(
            f"{row['sessions']:>9} {row['pss']:>7.1f} MiB {mine:>7.1f} MiB {row['worker_pss']:>6.1f} MiB   "
            f"{row['supervisor']:>10} {row['keeper']:>6} {row['daemon']:>7} {row['worker']:>6}  "
            f"{statistics.median(row['open']):>7.1f} ms {max(row['open']):>7.1f} ms"
        )


def _export(stage: Any, number: int) -> Path:
    directory: Path = stage.directory / f"export.{number}"
    directory.mkdir()
    for file in range(_FILES):
        (directory / f"file{file}").write_bytes(os.urandom(1000))
    return directory


def _figures(server: Any) -> dict[str, Any]:
    from harness.parts import Parts
    from harness.waiting import until

    parts = Parts(server)
    # Those whose connection has just ended go by themselves.
    from fuse_gated import control

    until(lambda: len(parts.workers) == len(control.call(str(server.runtime), "sessions")), "no worker without a session")
    workers = parts.workers
    pss = {pid: _pss(pid) for pid in (parts.supervisor, parts.keeper, parts.daemon, *workers)}
    return {
        "pss": sum(pss.values()),
        "worker_pss": max((pss[pid] for pid in workers), default=0.0),
        "supervisor": _descriptors(parts.supervisor),
        "keeper": _descriptors(parts.keeper),
        "daemon": _descriptors(parts.daemon),
        "worker": max((_descriptors(pid) for pid in workers), default=0),
    }


def _pss(pid: int) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no PSS")


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _times(server: Any, number: int) -> list[float]:
    return [_open_one(server, f"timed{one}") for one in range(number)]


def _open_one(server: Any, name: str) -> float:
    """Milliseconds until a new session has its mount. It is ended before this returns."""
    from harness import token
    from harness.waiting import until

    hello = {"export": name, "program": "bench", "root": os.fsencode("/nonexistent"), "capabilities": ["read-only"]}
    headers = {"Authorization": f"Bearer {token('bench')}"}
    began = time.perf_counter()
    with connect(server.url, subprotocols=["fuse-gate.v1"], additional_headers=headers, compression=None) as connection:
        connection.send(msgspec.msgpack.encode([["hello", hello]]))
        message = connection.recv()
        took = (time.perf_counter() - began) * 1000
        assert isinstance(message, bytes)
        ((kind, terms),) = msgspec.msgpack.decode(message)
        assert kind == "welcome", kind
    until(lambda: not os.path.lexists(terms["mount"]), "its mount is gone")
    return took


__all__ = ["COUNTS", "TIMED", "measure", "show"]
