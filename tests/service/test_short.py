"""A server that runs short of something, or is told to let nobody in: whoever comes is told, and the sessions go on."""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from resource import RLIMIT_NOFILE, RLIMIT_NPROC, prlimit
from typing import Final

import pytest
from harness import Mounted, Persona, Server, Stage
from harness.hostile import HostileClient
from harness.parts import Parts
from harness.waiting import until

NOBODY: Final = Persona(65534, 65534)
"""Whom the daemon runs as."""


@pytest.fixture
def mounted(own_stage: Stage) -> Mounted:
    return own_stage.mount()


@contextlib.contextmanager
def limited(server: Server, resource: int, most: int) -> Iterator[None]:
    """The daemon may have no more than so much of it. As its own user, because root too needs a capability for that."""
    pid = Parts(server).daemon
    soft, hard = NOBODY.call(prlimit, pid, resource)
    NOBODY.call(prlimit, pid, resource, (most, hard))
    yield
    NOBODY.call(prlimit, pid, resource, (soft, hard))


def works(mounted: Mounted) -> bool:
    (mounted.path / "still").write_text("here")
    return (mounted.export / "still").read_text() == "here"


def answer(server: Server) -> bytes:
    """What a stranger hears who says nothing."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as stranger:
        heard = b""
        while data := stranger.recv(4096):
            heard += data
        return heard


def test_no_more_processes(mounted: Mounted) -> None:
    """As when the unit's TasksMax= is reached."""
    server = mounted.server
    with limited(server, RLIMIT_NPROC, 1):
        heard = answer(server)
        assert heard.startswith(b"HTTP/1.1 503 ")
        assert heard.endswith(b"\r\n\r\nthe server cannot start a worker now\n")
        said = "cannot start a worker: Resource temporarily unavailable (are processes or memory short?)"
        assert said in server.program.stderr.text()
        assert works(mounted)
    with HostileClient(server, tenant="acme") as client:
        assert client.upgrade() == 101


def test_no_more_descriptors(mounted: Mounted) -> None:
    """Whoever comes waits at the door, and is let in once there is room."""
    with contextlib.ExitStack() as room:
        with limited(mounted.server, RLIMIT_NOFILE, 3):
            client = room.enter_context(HostileClient(mounted.server, tenant="acme"))
            assert works(mounted)
        assert client.upgrade() == 101


def test_no_more_descriptors_for_fuse_gatectl(mounted: Mounted) -> None:
    """It waits too, and the daemon sleeps meanwhile."""
    server = mounted.server
    ticks = Path(f"/proc/{Parts(server).daemon}/stat")

    def worked() -> int:
        return sum(int(field) for field in ticks.read_text().rpartition(")")[2].split()[11:13])

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        with limited(server, RLIMIT_NOFILE, 3):
            caller.connect(str(server.runtime / "control.sock"))
            caller.send(b"\x81\xa7command\xa6status")
            before = worked()
            for _ in range(5):
                assert works(mounted)
                select.select([caller], [], [], 0.2)
            assert worked() - before < 20, "hundredths of a second, of a hundred"
        caller.settimeout(10)
        assert caller.recv(4096)


def test_nobody_new(mounted: Mounted) -> None:
    """SIGUSR1 to the daemon, with which its unit answers the stop of the socket unit."""
    server = mounted.server
    os.kill(Parts(server).daemon, signal.SIGUSR1)
    assert "1 session left" in server.program.stderr.wait_for("accepting nobody new", server.program.process)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 30)
    assert works(mounted)
    mounted.client.stop()
    until(lambda: not mounted.path.exists(), "its mount is gone")
    server.stop()
