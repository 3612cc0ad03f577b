"""What a takeover must not loosen: the policy of the moment, the login of the moment, and the bounds."""

import errno
import hashlib
import mmap
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from harness import Server, Stage, digest
from harness.hostile import Child, HostileClient
from harness.log import DEADLINE
from harness.parts import Parts
from harness.server import ALLOW_ALL
from harness.waiting import until, wait_for_record

from fuse_gated import control

WAITS = {"mode": "wait", "grace": "60s"}


def tenant(*rules: dict[str, Any], **changes: Any) -> dict[str, Any]:
    body = {"users": ["root", "nobody"], "rules": [*rules, *ALLOW_ALL], "outage": WAITS, **changes}
    return {"tenants": {"acme": body}}


def states(server: Server) -> list[str]:
    return [session["state"] for session in control.call(str(server.runtime), "sessions")]


def look(path: str, descriptor: int) -> str:
    try:
        os.pread(descriptor, 4, 0)
    except PermissionError:
        return "EACCES"
    return Path(path).name


@pytest.mark.parametrize("how", ["reload", "the daemon is killed"])
def test_what_a_narrower_policy_denies_is_gone_from_the_kernels_memory(own_stage: Stage, how: str) -> None:
    """Also where nobody was there to be told of it: pages that are open and mapped are thrown away."""
    server = own_stage.server(tenant())
    client = own_stage.export(server)
    mount = client.mount_path()
    (client.directory / "secret").write_bytes(b"S" * 4096)
    with (mount / "secret").open("rb") as opened, mmap.mmap(opened.fileno(), 4096, prot=mmap.PROT_READ) as mapped:
        assert (mapped[:1], opened.read(1)) == (b"S", b"S")
        narrower = tenant({"path": "/secret", "deny": ["read"]})
        if how == "reload":
            server.reload(narrower, said="policy applied")
        else:
            server.write_policy(narrower)
            os.kill(Parts(server).daemon, signal.SIGKILL)
            client.wait_for_event("resumed")
        until(lambda: look(str(mount / "secret"), opened.fileno()) == "EACCES", "what is open cannot be read")
        with Child(_touch, mapped) as toucher:
            assert toucher.wait(DEADLINE)
            assert toucher.reap() == -signal.SIGBUS


def _touch(mapped: mmap.mmap) -> bytes:
    return mapped[:1]


def test_a_session_stands_by_the_login_that_came_last(own_stage: Stage) -> None:
    """A token that is taken out of the policy keeps no session by having been replaced meanwhile."""
    tokens = [{"sha256": digest("acme")}, {"sha256": hashlib.sha256(b"another-token-of-acme").hexdigest()}]
    server = own_stage.server(tenant(tokens=tokens))
    with HostileClient(server, tenant="acme") as first:
        first.open()
        assert first.terms is not None
        secret = first.terms.resume
    until(lambda: states(server) == ["suspended"], "it waits")
    with HostileClient(server, first.export, tenant="acme") as second:
        second.token = "another-token-of-acme"
        assert second.upgrade() == 101
        second.hello(resume=secret)
        second.pump(lambda: second.terms is not None)
        assert second.terms is not None
        assert second.terms.resumed
        server.reload(tenant(tokens=tokens[:1]), said="policy applied")
        assert second.wait_closed()[0] == 4001
    assert "no longer valid" in wait_for_record(server, kind="session-closed")["MESSAGE"]


def test_who_waits_without_resend_does_not_fill_the_sessions_memory(own_stage: Stage) -> None:
    """Each request is kept with its data, where the kernel does not send it again. What is too much stays with the kernel."""
    server = own_stage.server(tenant(), {"without": ["resend"], "max_bytes_in_flight": "8MiB"})
    client = own_stage.export(server)
    mount = client.mount_path()
    for number in range(300):
        (client.directory / str(number)).touch()
    with Child(_write_all, str(mount)) as writers:
        until(lambda: writers.waits_in_fuse() or writers.state() == "S", "they have begun")
        client.program.process.kill()
        client.program.awaited = True
        client.program.process.wait()
        until(lambda: states(server) == ["suspended"], "it waits")
        assert not writers.wait(3)
        assert states(server) == ["suspended"]
        control.call(str(server.runtime), "kick", session="acme/work")
        assert writers.result() <= {"ENOTCONN", "EIO", "ECONNABORTED", "ENODEV", "written"}
    assert "ended by the operator" in wait_for_record(server, kind="session-closed")["MESSAGE"]


def _write_all(mount: str) -> set[str]:
    """A mebibyte into each of the files, over and over, until nobody takes it any more."""
    outcomes: set[str] = set()
    data = bytes(2**20)

    def write(number: int) -> None:
        try:
            descriptor = os.open(f"{mount}/{number}", os.O_WRONLY)
            while True:
                os.pwrite(descriptor, data, 0)
        except OSError as error:
            outcomes.add(errno.errorcode[error.errno or 0])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
