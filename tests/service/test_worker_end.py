"""How a worker ends while one of its notifications waits in the kernel.

One mkdir holds the directory's lock and waits for the client, another waits for the lock, and after it the notification about
a name in that directory, which no signal ends. A process whose main thread has gone meanwhile stays, and with it its descriptor
of /dev/fuse, so that the kernel goes on waiting for an answer to the second mkdir that nobody will give: unless somebody aborts
the connection.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from harness import Server, Stage, mounts_beneath, processes_marked
from harness.hostile import SILENCE, Child, HostileClient, honest
from harness.leftovers import unmount
from harness.parts import thread_states
from harness.program import ROOT_OF_PROJECT
from harness.waiting import allowed, until

from fuse_gated import control
from fuse_gated.wire import codec
from fuse_gated.wire.messages import Notice

GONE: Final = r"not connected|connection abort|No such device|Input/output error"
RECOVERY: Final = 5.0


class Knot:
    """A session whose notification waits for a caller, who waits for the client."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = HostileClient(server, "knot", tenant="acme")
        mount = self.client.open(lambda name, arguments, ask: SILENCE if name == "mkdir" else honest(name, arguments, ask))
        self.client.during(os.stat, mount / "f")
        self.pid = next(int(session["pid"]) for session in control.call(str(server.runtime), "sessions"))
        self.programs = [Child(os.mkdir, mount / "new")]
        self.client.pump(lambda: any(name == "mkdir" for name, _ in self.client.requests))
        self.programs.append(Child(os.mkdir, mount / "next"))
        until(lambda: self.programs[1].state() == "D", "the second waits for the first")
        self.client.send(codec.encode(Notice((b"f",))))
        until(lambda: "D" in thread_states(self.pid), "the notification waits in the kernel")

    def is_undone(self, within: float = RECOVERY) -> None:
        """The callers were told, and the worker has ended."""
        for program in self.programs:
            assert program.wait(allowed(within)), f"the program still waits, in state {program.state()}"
            with pytest.raises(OSError, match=GONE):
                program.result()
        until(lambda: not Path(f"/proc/{self.pid}").exists(), "it has ended", allowed(RECOVERY))

    def close(self) -> None:
        for point in mounts_beneath(self.server.runtime):
            unmount(point)
        self.client.close()
        for program in self.programs:
            program.__exit__()


@pytest.fixture
def knot(own_stage: Stage) -> Iterator[Knot]:
    knot = Knot(own_stage.server(own_stage.tenant(outage={"grace": "0s"})))
    yield knot
    knot.close()


def test_sigterm(knot: Knot) -> None:
    os.kill(knot.pid, signal.SIGTERM)
    knot.is_undone()


def test_the_client_leaves(knot: Knot) -> None:
    knot.client.close()
    knot.is_undone()


def test_the_server_ends(knot: Knot) -> None:
    knot.server.stop()
    knot.is_undone()


def test_a_worker_that_does_nothing_any_more(knot: Knot) -> None:
    """The daemon waits for it for a while, and takes the mount away as it kills it."""
    os.kill(knot.pid, signal.SIGSTOP)
    control.call(str(knot.server.runtime), "kick", session="acme/knot")
    knot.is_undone(2 * RECOVERY)
    until(lambda: not mounts_beneath(knot.server.runtime), "its mount is gone", allowed(RECOVERY))


def test_nobody_is_left_who_could_unmount(knot: Knot) -> None:
    """All others are killed at once. Who is started next takes the mount away, and that ends everybody who waits."""
    others = [pid for pid in processes_marked(knot.server.mark) if pid != knot.pid]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in others:
            os.kill(pid, number)
    knot.server.program.wait()
    arguments = ["--etc", knot.server.etc, "--runtime", knot.server.runtime, "--listen", "127.0.0.1:0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT_OF_PROJECT)}
    anew = subprocess.Popen(
        [sys.executable, "-m", "fuse_gated.commands.fuse_gated", *arguments], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert anew.stderr is not None
        assert any("ready" in line for line in anew.stderr)
        knot.is_undone()
    finally:
        anew.terminate()
        anew.communicate()
