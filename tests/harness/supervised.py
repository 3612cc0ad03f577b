"""A real supervisor with a real mount keeper, and a stand-in for the daemon that tells the test what it does."""

import contextlib
import json
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuse_gated import standalone
from fuse_gated.config.settings import Audit, Settings
from fuse_gated.edge import mounts, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.keeping import ANSWERS, Fetch, FromDaemon, FromKeeper, Held, Mount, Note, Resumed, Unmount
from fuse_gated.errors import PeerError
from fuse_gated.standalone import DaemonParts
from harness.leftovers import mounts_beneath
from harness.needs import need

PATIENCE = 30.0
SETTINGS = Settings(user="nobody", audit=Audit(to="file"))


class Daemon:
    """It tells a line of JSON each, through a pipe."""

    def __init__(self, parts: DaemonParts, report: int) -> None:
        assert parts.mountd is not None
        self.parts = parts
        self.keeper = Channel(parts.mountd, ANSWERS)
        self.report = report

    def tell(self, event: str, **more: Any) -> None:
        os.write(self.report, json.dumps({"event": event, "pid": os.getpid(), **more}).encode() + b"\n")

    def ask(self, request: FromDaemon) -> FromKeeper | None:
        """The answer, also where the keeper is killed meanwhile; None where there is none any more."""
        try:
            self.keeper.send(request)
            while select.select([self.keeper], [], [], PATIENCE)[0]:
                received = self.keeper.receive()
                if received is None:
                    return None
                answer, fds = received
                for fd in fds:
                    os.close(fd)
                if isinstance(answer, Resumed):
                    self.keeper.send(request)
                elif answer.id == request.id:
                    return answer
        except PeerError:
            return None
        raise AssertionError("the mount keeper does not answer")

    def found(self) -> list[tuple[str, str]]:
        """Exports and notes of what an earlier daemon has left."""
        found: list[tuple[str, str]] = []
        while isinstance(held := self.ask(Fetch(id=100 + len(found), index=len(found))), Held):
            found.append((held.export, held.note.decode()))
        return found

    def mount(self) -> None:
        self.ask(Mount(id=1, tenant="acme", export="web", anyone=True))

    def serve(self) -> int:
        """Mount, or go on with what is there; tell of it, serve until SIGTERM, and unmount if nobody comes in its place."""
        with process.Signals(signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2) as signals:
            found = self.found()
            if not found:
                self.mount()
                self.ask(Note(id=2, tenant="acme", export="web", data=b"%d" % os.getpid()))
            who = {"uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "ppid": os.getppid()}
            self.tell("mounted", found=found, fds=self._descriptors(), **who)
            for_good = False
            while True:
                watched: list[Any] = [signals, self.keeper, *self.parts.listeners]
                ready = select.select(watched, [], [])[0]
                received = signals.received()
                for_good = for_good or signal.SIGUSR2 in received
                if signal.SIGHUP in received:
                    self.tell("reload")
                if signal.SIGTERM in received:
                    if for_good:
                        self.ask(Unmount(id=3, tenant="acme", export="web"))
                    self.tell("ended" if for_good else "left")
                    return 0
                if self.keeper in ready and self._is_resumed():
                    self.tell("resumed", found=self.found())
                for listener in self.parts.listeners:
                    if listener in ready:
                        listener.accept()[0].close()
                        self.tell("accepted")

    def _is_resumed(self) -> bool:
        """Not, where it is the second answer to what was asked again."""
        received = self.keeper.receive()
        for fd in received[1] if received is not None else ():
            os.close(fd)
        return received is not None and isinstance(received[0], Resumed)

    @staticmethod
    def _descriptors() -> list[str]:
        found = []
        for number in os.listdir("/proc/self/fd"):
            # One of them is gone again: that by which they are listed.
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/self/fd/{number}"))
        return sorted(found)


class Supervised:
    """A supervisor as a process, and what its daemons tell."""

    def __init__(self, runtime: Path, run: Callable[[Daemon], int] = Daemon.serve, settings: Settings = SETTINGS) -> None:
        self.runtime = runtime
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.reader, writer = os.pipe()
        self.lines = b""

        def main() -> int:
            os.close(self.reader)
            return standalone.supervise(settings, runtime, [self.listener], lambda parts: run(Daemon(parts, writer)))

        self.child = process.spawn(main)
        os.close(writer)

    def hear(self, event: str) -> dict[str, Any]:
        """The next thing that a daemon tells, which must be `event`."""
        told = self.hear_any(event)
        assert told["event"] == event
        return told

    def hear_any(self, event: str = "anything") -> dict[str, Any]:
        """The next thing that a daemon tells."""
        while b"\n" not in self.lines:
            assert select.select([self.reader], [], [], PATIENCE)[0], f"nobody told of: {event}"
            more = os.read(self.reader, 4096)
            assert more, f"everybody is gone, and nobody told of: {event}"
            self.lines += more
        line, _, self.lines = self.lines.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        return told

    def children(self) -> dict[str, int]:
        """The supervisor's children by their names."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                except OSError:
                    continue
                if int(rest.split()[1]) == self.child.pid:
                    found[name] = int(entry.name)
        return found

    @property
    def keeper(self) -> int:
        """The mount keeper's pid; a new one may not have its name yet."""
        end = time.monotonic() + PATIENCE
        while "fuse-gated-mnt" not in (children := self.children()):
            assert time.monotonic() < end
            time.sleep(0.01)
        return children["fuse-gated-mnt"]

    def close(self) -> None:
        self.child.end(PATIENCE)
        # Whoever still has the writing end lives.
        end = time.monotonic() + PATIENCE
        while True:
            assert select.select([self.reader], [], [], max(0.0, end - time.monotonic()))[0], "a daemon was left behind"
            if not os.read(self.reader, 4096):
                break
        os.close(self.reader)
        self.listener.close()


Supervise = Callable[..., Supervised]


@contextlib.contextmanager
def runtime_directory() -> Iterator[Path]:
    """One that everybody can reach, beneath which nothing may be left mounted."""
    need("root", "fuse")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        path = Path(place) / "run"
        yield path
        left = mounts_beneath(Path(place))
        for point in left:
            mounts.unmount(str(point))
        assert left == []
        assert not (path / "control.sock").exists()


@contextlib.contextmanager
def supervisors(runtime: Path) -> Iterator[Supervise]:
    """Started as Supervised is, and ended here."""
    started: list[Supervised] = []

    def start(*arguments: Any, **options: Any) -> Supervised:
        started.append(Supervised(runtime, *arguments, **options))
        return started[-1]

    yield start
    for supervised in started:
        supervised.close()


__all__ = ["PATIENCE", "SETTINGS", "Daemon", "Supervise", "Supervised", "runtime_directory", "supervisors"]
