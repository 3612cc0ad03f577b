"""One server, one client behind a proxy, the load on its mount, and what is looked at when all is over."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import faults
import loads
from harness import Stage
from harness.parts import WORKER, Parts, children, command
from harness.program import ROOT_OF_PROJECT
from harness.proxy import Proxy
from harness.stage import Export
from harness.waiting import records, until

RECOVERY: Final = 60.0
"""Seconds within which an operation must be answered after a fault."""
_END: Final = 90.0
_GRACE: Final = "600s"
_EXPORT: Final = "work"
_HERE: Final = Path(__file__).resolve().parent


class NotRecovered(Exception):
    """No operation was answered within RECOVERY."""


class PortableParts(Parts):
    """Of a server that an ordinary user has started: it is the daemon itself. libfuse's process runs beside the worker, and
    nobody takes its place."""

    @property
    def daemon(self) -> int:
        return self.supervisor

    @property
    def workers(self) -> list[int]:
        names = {pid: command(pid) for pid in children(self.daemon)}
        return [pid for pid, name in names.items() if name.startswith(WORKER) and name != f"{WORKER}{_EXPORT}"]


class Arena:
    """A mounted session. `reconnect` are the client's --reconnect-delay and --reconnect-max."""

    def __init__(self, stage: Stage, reconnect: tuple[float, float] = (0.2, 1.0), cache: str = "watched") -> None:
        self.stage = stage
        self.server = stage.server(Stage.tenant(outage={"mode": "wait", "grace": _GRACE}, cache={"mode": cache}))
        self.proxy = Proxy(self.server.port)
        self.export = stage.directory / "export"
        self.export.mkdir()
        loads.plant(self.export)
        delay, longest = reconnect
        options = ["--server", self.proxy.url, "--dead-after", str(faults.DEAD_AFTER)]
        options += ["--reconnect-delay", str(delay), "--reconnect-max", str(longest)]
        self.client: Export = stage.export(self.server, self.export, _EXPORT, options=options)
        self.mount = self.client.mount_path()
        if not os.path.ismount(self.mount):
            raise AssertionError(f"nothing is mounted: {self.client.events()}")
        portable = stage.driver == "libfuse"
        self.parts = PortableParts(self.server) if portable else Parts(self.server)
        self.locks = [name for name, kind in loads.LOCKED.items() if kind == "lockf" or not portable]
        """The files that are locked. flock(2) libfuse keeps to itself (edge/libfuse.py, LACKS)."""
        self.scene = faults.Scene(self.server, self.parts, self.proxy, faults.Pace())
        self.handles = self.client_files()
        self._resumed = self._heard = 0

    def client_files(self) -> list[str]:
        """What the client has open of the export."""
        found = []
        directory = Path(f"/proc/{self.client.program.process.pid}/fd")
        for entry in os.listdir(directory):
            with contextlib.suppress(OSError):
                found.append(os.readlink(directory / entry))
        return sorted(path for path in found if path.startswith(str(self.export)))

    @property
    def resumed(self) -> int:
        """How often the client has resumed its session."""
        with self.client.program.stdout.path.open("rb") as events:
            events.seek(self._heard)
            data = events.read()
        whole = data.rfind(b"\n") + 1
        self._heard += whole
        self._resumed += data[:whole].count(b'"event":"resumed"')
        return self._resumed

    # At the end.

    def faults_of_the_end(self) -> list[str]:
        """What is not as it should be of the session itself, once nobody uses the mount."""
        found = []
        with contextlib.suppress(AssertionError):
            until(lambda: self.client_files() == self.handles, "", 10.0)
        if self.client_files() != self.handles:
            found.append(f"the client still has open: {self.client_files()}")
        opened = records(self.server, kind="session-opened")
        if len(opened) != 1:
            found.append(f"{len(opened)} sessions were opened")
        for event in ("mounted", "protocol-violation"):
            told = len(records(self.server, kind=event)) if event == "protocol-violation" else self._events(event) - 1
            if told:
                found.append(f"{told} times {event} too many")
        verified = subprocess.run(
            [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", "audit", "--verify", "--json",
             "--session", opened[0]["FUSE_GATED_SESSION"], "--file", self.server.runtime / "audit.jsonl"],
            capture_output=True, text=True, cwd=ROOT_OF_PROJECT, check=False,
        )  # fmt: skip
        if verified.returncode:
            found.append(f"the audit chain is not whole: {verified.stdout[-2000:]}{verified.stderr[-500:]}")
        return found

    def _events(self, name: str) -> int:
        return sum(event["event"] == name for event in self.client.events())


@contextlib.contextmanager
def arena(reconnect: tuple[float, float] = (0.2, 1.0), cache: str = "watched", driver: str = "kernel") -> Iterator[Arena]:
    """One that is taken down at the end; raises AssertionError for what it leaves (processes, mounts)."""
    stage = Stage(driver)
    proxy: list[Proxy] = []
    try:
        made = Arena(stage, reconnect, cache)
        proxy.append(made.proxy)
        yield made
    finally:
        # The client says goodbye through the proxy.
        try:
            stage.close()
        finally:
            for one in proxy:
                one.close()


class Prober:
    """Asks for one operation at a time (prober.py)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.errors: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, _HERE / "prober.py", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._line(RECOVERY)

    def answered(self, patience: float = RECOVERY) -> float | None:
        """Begin one operation now, and wait: when it was answered, or None for an error. Raises NotRecovered."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        said = self._line(patience)
        try:
            return float(said)
        except ValueError:
            self.errors.append(said)
            return None

    def end(self) -> int:
        """How often it wrote."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        count = int(self._line(RECOVERY))
        self._process.wait()
        return count

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self, patience: float) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise NotRecovered(f"no operation was answered within {patience:g} s")
        line: str = self._process.stdout.readline().strip()
        return line


class Crowd:
    """The load: every program of loads.LOADS (or some of them)."""

    def __init__(self, arena: Arena, seed: int, names: list[str] | None = None) -> None:
        self._arena = arena
        self._directory = arena.stage.directory / "reports"
        self._directory.mkdir()
        self._stop = self._directory / "stop"
        self._processes = {
            name: subprocess.Popen(
                [sys.executable, _HERE / "loads.py", name, arena.mount, arena.export, str(seed), self._stop,
                 self._directory / name, *arena.locks],
                stderr=(self._directory / f"{name}.stderr").open("wb"),
            )
            for name in names or loads.LOADS
        }  # fmt: skip
        self.reports: dict[str, dict[str, Any]] = {}

    @property
    def fallen(self) -> list[str]:
        """Programs that have ended by themselves."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def stop(self) -> list[str]:
        """Let all of them come to their end; what was wrong with that."""
        self._stop.touch()
        end = time.monotonic() + _END
        found = []
        for name, process in self._processes.items():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                found.append(f"{name} never ended: {_where(process.pid)}")
                process.kill()
                continue
            if process.returncode:
                found.append(f"{name} fell: {(self._directory / f'{name}.stderr').read_text()[-1500:]}")
            else:
                self.reports[name] = json.loads((self._directory / name).read_text())
        return found

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


def _where(pid: int) -> str:
    with contextlib.suppress(OSError):
        return " ".join(Path(f"/proc/{pid}/{name}").read_text().strip() for name in ("wchan", "syscall"))
    return ""
