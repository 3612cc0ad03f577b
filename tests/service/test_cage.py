"""The cage around a worker: what can be seen of it from outside, and what code that runs in its place cannot do."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import harness.server
import msgspec
import pytest
from harness import Mounted, Persona, Server, Stage, need_cage
from harness.hostile import HostileClient
from harness.parts import Parts
from harness.program import Program
from harness.server import token
from harness.taken_over import ATTEMPTS, ORDER, SAID
from harness.waiting import until

from fuse_gated import control
from fuse_gated.errors import OperatorError

NOBODY: Final = Persona(65534, 65534)
"""Whom the server runs as, and so all workers."""


@pytest.fixture
def caged() -> None:
    need_cage()


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    """fuse-gated, but for workers that do what their clients say (harness/taken_over.py)."""

    def taken_over(name: str, _module: str, *rest: Any, **keywords: Any) -> Program:
        return Program(name, "harness.taken_over", *rest, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), os.pathsep)
        patch.setattr(harness.server, "Program", taken_over)
        # Who is killed for its lies is not waited for.
        return stage.server(stage.tenant(exports={"max_sessions": 20}, outage={"grace": "0s"}))


@pytest.fixture(scope="module")
def other(stage: Stage, server: Server) -> Mounted:
    """Another session, which the taken one must not reach."""
    return stage.mount(server=server, name="other")


def worker_of(server: Server, export: str) -> int:
    return next(int(session["pid"]) for session in control.call(str(server.runtime), "sessions") if session["export"] == export)


class Captain(HostileClient):
    """A client whose worker does as it is told."""

    def __init__(self, server: Server, other: Mounted, export: str = "") -> None:
        super().__init__(server, export, "acme")
        self.said: list[Any] = []
        self.open()
        self.facts = {
            "daemon": Parts(server).daemon,
            "other": worker_of(server, "other"),
            "etc": str(server.etc),
            "runtime": str(server.runtime),
            "other mount": str(other.path),
            "token": token("acme"),
            "export": "another",
        }

    def on_message(self, data: bytes) -> None:
        if data.startswith(SAID):
            self.said.append(msgspec.msgpack.decode(data[len(SAID) :]))
        else:
            super().on_message(data)

    def order(self, name: str) -> Any:
        """How it went; None if the worker did not live to tell."""
        before = len(self.said)
        self.send(ORDER + msgspec.msgpack.encode([name, self.facts]))
        self.pump(lambda: len(self.said) > before)
        return self.said[before] if len(self.said) > before else None


@pytest.fixture(scope="module")
def captain(server: Server, other: Mounted) -> Iterator[Captain]:
    with Captain(server, other) as captain:
        yield captain
        captain.leave()


# From inside.


def test_code_runs_in_the_place_of_a_worker(server: Server, captain: Captain) -> None:
    """Else nothing that follows would prove anything."""
    assert captain.terms is not None
    assert captain.order("allowed") == f"{worker_of(server, captain.export)} {captain.terms.session}"


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_the_cage_forbids(caged: None, captain: Captain, name: str) -> None:
    assert captain.order(name) == "EPERM"


def test_nothing_of_it_has_done_any_harm(server: Server, captain: Captain, other: Mounted) -> None:
    (other.path / "still").write_text("here")
    assert (other.export / "still").read_text() == "here"
    assert len(control.call(str(server.runtime), "sessions")) == 2
    assert sorted(os.listdir(server.runtime)) == ["audit.jsonl", "control.sock", "mnt", "mountd.lock"]


def test_it_has_its_own_descriptors_and_no_others(server: Server, captain: Captain) -> None:
    pid = worker_of(server, captain.export)
    kinds = sorted(_kind(pid, number) for number in captain.order("descriptors") if number > 2)
    waiting = ["anon_inode:[eventfd]", "anon_inode:[eventpoll]"]
    memory = ["/memfd:fuse-gated-shares (deleted)", "/memfd:fuse-gated-state (deleted)"]
    # Its client's, the daemon's, and one between its threads.
    assert kinds == ["/dev/fuse", *memory, *waiting, "audit.jsonl", "socket", "socket", "socket"]


def _kind(pid: int, descriptor: int) -> str:
    target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
    return "socket" if target.startswith("socket:") else target if not target.startswith("/tmp") else os.path.basename(target)


# Towards the daemon, to which it may speak.


@pytest.mark.parametrize("order", ["login again", "open again", "nonsense"])
def test_a_daemon_that_is_lied_to_ends_the_worker(server: Server, other: Mounted, order: str) -> None:
    """It asks once for its login and once for its mount. Who asks again is not our code."""
    with Captain(server, other) as captain:
        pid = worker_of(server, captain.export)
        captain.order(order)
        captain.wait_closed()
        until(lambda: not Path(f"/proc/{pid}").exists(), "the worker has ended")
        until(lambda: captain.export not in os.listdir(server.runtime / "mnt" / "acme"), "its mount is gone")
    assert "another" not in os.listdir(server.runtime / "mnt" / "acme")
    (other.path / "still").write_text("here")


def test_what_a_worker_reports_cannot_hurt_the_daemon(server: Server, other: Mounted) -> None:
    with Captain(server, other) as captain:
        captain.order("vast report")
        for command in ("sessions", "stats", "status"):
            assert control.call(str(server.runtime), command)
        assert captain.order("allowed") is not None
        captain.leave()


# From outside.


def status(pid: int, task: int | None = None) -> dict[str, str]:
    path = Path(f"/proc/{pid}/status" if task is None else f"/proc/{pid}/task/{task}/status")
    return {name: value.strip() for name, _, value in (line.partition(":") for line in path.read_text().splitlines())}


def test_rights_of_a_worker(caged: None, server: Server, other: Mounted) -> None:
    pid = worker_of(server, "other")
    tasks = [int(task) for task in os.listdir(f"/proc/{pid}/task")]
    assert len(tasks) == 2, "the loop and the one that notifies"
    assert os.getsid(pid) == pid, "what it takes of the processors is nobody else's"
    for task in tasks:
        shown = status(pid, task)
        assert (shown["Seccomp"], shown["NoNewPrivs"]) == ("2", "1")
        assert {shown[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert shown["Uid"].split() == ["65534"] * 4
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.M), "it leaves no core"


def test_nobody_of_its_uid_looks_into_it(server: Server, other: Mounted) -> None:
    """Not dumpable: all that /proc shows of it is root's, and it cannot be traced."""
    pid = worker_of(server, "other")
    assert os.stat(f"/proc/{pid}/environ").st_uid == 0
    for name in ("mem", "environ", "maps", "fd/0"):
        assert NOBODY.outcome(os.open, f"/proc/{pid}/{name}", os.O_RDONLY) == "EACCES"
    assert NOBODY.outcome(os.listdir, f"/proc/{pid}/fd") == "EACCES"


def test_two_workers_share_no_descriptor(server: Server, captain: Captain) -> None:
    """But for what is nobody's secret: the input, the output, and the audit file, to which they can only append. These are of one
    tenant, and have what its sessions share (test_limits.py: others do not)."""
    mine, others = (_descriptors(worker_of(server, name)) for name in (captain.export, "other"))
    nameless = ("anon_inode:", "/dev/null", "/dev/fuse", "/memfd:fuse-gated-state", "/memfd:fuse-gated-shares")
    shared = {target for target in mine & others if not target.startswith(nameless)}
    assert {os.path.basename(target) for target in shared} == {"audit.jsonl", "server.stdout", "server.stderr"}
    (flags,) = [flags for target, flags in _opened(worker_of(server, "other")) if target.endswith("audit.jsonl")]
    assert flags & (os.O_ACCMODE | os.O_APPEND) == os.O_WRONLY | os.O_APPEND


def _opened(pid: int) -> Iterator[tuple[str, int]]:
    """What a process has open, and with which flags (open(2))."""
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        # Between the calls the process may have closed it.
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
            yield target, int(next(line.split()[1] for line in lines if line.startswith("flags:")), 8)


def _descriptors(pid: int) -> set[str]:
    return {target for target, _ in _opened(pid)}


def test_a_stranger_is_caged_before_its_first_byte(caged: None, server: Server, other: Mounted) -> None:
    parts = Parts(server)
    # Those of earlier tests may still be on their way out.
    until(lambda: len(parts.workers) == len(control.call(str(server.runtime), "sessions")), "nobody but the sessions' workers")
    before = parts.workers
    with HostileClient(server, tenant="acme"):
        (pid,) = until(lambda: set(parts.workers) - set(before), "a worker")
        until(lambda: status(pid)["Seccomp"] == "2", "it is caged")
        # It has read nothing: nothing was sent.
        assert status(pid)["NoNewPrivs"] == "1"
        assert "/dev/fuse" not in _descriptors(pid)


def test_the_daemon_and_the_keeper(server: Server, other: Mounted) -> None:
    """Who has the network cannot mount; who mounts has no network, and is root alone."""
    daemon, keeper = Parts(server).daemon, Parts(server).keeper
    assert status(daemon)["Uid"].split() == ["65534"] * 4
    assert status(daemon)["CapEff"] == "0" * 16
    listening = {target for target in _descriptors(daemon) if target.startswith("socket:")}
    channel = _descriptors(keeper) & listening
    assert channel == set(), "not even the channel between them is the same end"
    # One to the daemon, and one to the supervisor, which keeps its descriptors for the next keeper.
    assert len([target for target in _descriptors(keeper) if target.startswith("socket:")]) == 2


def test_the_runtime_directory(server: Server, other: Mounted) -> None:
    """What stands there is root's, and what others may do in it is written down here."""
    modes = {
        name: (os.lstat(server.runtime / name).st_uid, os.lstat(server.runtime / name).st_mode & 0o777)
        for name in os.listdir(server.runtime)
    }
    assert modes == {
        "audit.jsonl": (65534, 0o600),
        # Whom it serves it decides itself (desk.py).
        "control.sock": (65534, 0o666),
        "mnt": (0, 0o755),
        "mountd.lock": (0, 0o600),
    }
    stranger = Persona(61001, 62001)
    assert stranger.outcome(os.open, server.runtime / "audit.jsonl", os.O_RDONLY) == "EACCES"
    assert stranger.outcome(os.mkdir, server.runtime / "mnt" / "acme" / "x") == "EACCES"
    assert NOBODY.outcome(os.mkdir, server.runtime / "mnt" / "x") == "EACCES"
    with pytest.raises(OperatorError, match="'sessions' is for the operator"):
        stranger.call(control.call, str(server.runtime), "sessions")
