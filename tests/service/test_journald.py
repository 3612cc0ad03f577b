"""systemd-journald, started again under live sessions: each caged worker is given a new socket, and no record is lost.

Under systemd its sockets are held by PID 1, and outlive it; here they go with it, which is the harder case.
"""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from harness import Export, Server, Stage, outcome
from harness.journald import Journald, running_journald
from harness.namespace import inside
from harness.waiting import until

from fuse_gated.edge.records import JournalSource, read
from fuse_gated.gate.audit_verify import verify

JOURNALD: Final = "/lib/systemd/systemd-journald"


class Restartable:
    """A server in the namespace of a journald that comes and goes."""

    def __init__(self, stage: Stage, journald: Journald) -> None:
        self._stage, self._first = stage, journald
        self._pid = int(Path(journald.socket).parts[2])
        self._running: subprocess.Popen[bytes] | None = None
        with inside(self._pid):
            self.server: Server = stage.server(stage.tenant(), {"audit": {"to": "auto"}})
        self._root = f"/proc/{self.server.program.process.pid}/root"

    def export(self, name: str) -> tuple[Export, Path]:
        with inside(self.server.program.process.pid):
            export = self._stage.export(self.server, name=name)
            return export, Path(f"{self._root}{export.mount_path()}")

    def stop_journald(self) -> None:
        if self._running is None:
            self._first.stop()
        else:
            self._running.terminate()
            self._running.wait(30)

    def start_journald(self) -> None:
        self._running = subprocess.Popen([*self._enter, JOURNALD], stderr=subprocess.DEVNULL)

    def records(self) -> list[dict[str, bytes]]:
        sync = [*self._enter, "journalctl", "--sync"]
        until(lambda: subprocess.run(sync, capture_output=True, check=False).returncode == 0, "all is in its files")
        return list(read(JournalSource(f"{self._root}/run/log/journal", None)))

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self.server.program.process.pid}/ns/mnt"]


@pytest.fixture
def restartable(own_stage: Stage) -> Iterator[Restartable]:
    with running_journald() as journald:
        restartable = Restartable(own_stage, journald)
        yield restartable
        restartable.server.stop()
        restartable.stop_journald()


def test_sessions_outlive_a_journald_that_is_started_again(restartable: Restartable) -> None:
    """A busy one, and one that has nothing to tell before its very end."""
    (busy, mount), (quiet, _) = restartable.export("busy"), restartable.export("quiet")
    done: list[str] = []
    for _round in range(3):
        for number in range(20):
            name = f"d{_round}-{number}"
            if number == 5:
                restartable.stop_journald()
                restartable.start_journald()
            # What fails meanwhile is told as failed; what was done is told before.
            if outcome(os.mkdir, mount / name) == "ok":
                done.append(f"/{name}")
    done.append(until(lambda: made_anew(mount), "it recovers"))
    restartable.stop_journald()
    restartable.start_journald()
    quiet.stop()
    done.append(until(lambda: made_anew(mount), "it recovers once more"))
    busy.stop()
    until(lambda: len(kinds(restartable.records(), "session-closed")) == 2, "both have told their ends")
    found = restartable.records()
    announced = [record["FUSE_GATED_PATH"].decode() for record in kinds(found, "operation")]
    failed = [record["FUSE_GATED_PATH"].decode() for record in kinds(found, "failed")]
    assert [path for path in announced if path not in failed] == done
    assert [session.faults for session in verify(found)] == [(), ()]


def made_anew(mount: Path) -> str:
    """The path of a directory of a name that nobody has tried before; '' if it could not be made."""
    name = os.urandom(8).hex()
    return f"/{name}" if outcome(os.mkdir, mount / name) == "ok" else ""


def kinds(found: list[dict[str, bytes]], kind: str) -> list[dict[str, Any]]:
    return [record for record in found if record["FUSE_GATED_KIND"] == kind.encode()]


def listens(path: str) -> bool:
    """Whether somebody has the other end of a name that may have been left behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(path) == 0


def test_who_comes_while_there_is_no_journald_is_told_so(restartable: Restartable) -> None:
    """And is let in afterwards: 'auto' was settled when the server started, so no record goes anywhere else."""
    restartable.stop_journald()
    with contextlib.ExitStack() as stack:
        stack.callback(restartable.start_journald)
        with inside(restartable.server.program.process.pid):
            refused = restartable._stage.export(restartable.server, name="refused")
        assert refused.program.wait() == 1
        assert "the server cannot write its audit records" in refused.program.stderr.text()
    until(lambda: listens(f"{restartable._root}/run/systemd/journal/socket"), "it is back")
    assert not (restartable.server.runtime / "audit.jsonl").exists()
    late, mount = restartable.export("late")
    os.mkdir(mount / "d")
    late.stop()
