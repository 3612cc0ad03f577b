"""Three servers behind a real HAProxy, as the example has it: each export has its server, and finds another when that is lost,
drained, or one more is there."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Server, Stage, need, need_that
from harness.certificates import Authority
from harness.leftovers import clear_away, processes_marked
from harness.log import DEADLINE
from harness.ports import port_of, reserve
from harness.server import ALLOW_ALL
from harness.stage import Export
from harness.waiting import until

from fuse_gated import control
from fuse_gated.commands.fuse_gatectl import main

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "reverse-proxies" / "haproxy-several.cfg"
EXPORTS = [f"work{number}" for number in range(9)]
POLICY = {"tenants": {"acme": {"users": ["root"], "rules": ALLOW_ALL, "exports": {"max_sessions": 50}}}}
BELIEVED = {"proxies": {"addresses": ["127.0.0.1"], "header": "proxy-protocol"}}


class Farm:
    """The servers, the balancer before them, and a client for each export."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.servers = [stage.server(POLICY, BELIEVED) for _ in range(3)]
        self._place = reserve()
        self.port = port_of(self._place)
        authority = Authority(stage.directory)
        pair = authority.issue("proxy")
        both = stage.directory / "both.pem"
        both.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
        text = EXAMPLE.read_text("utf-8")
        ports = dict(zip(("10.0.0.1", "10.0.0.2", "10.0.0.3"), (server.port for server in self.servers), strict=True))
        changes = {f"{address}:7433": f"127.0.0.1:{port}" for address, port in ports.items()}
        changes |= {"bind :443": f"bind 127.0.0.1:{self.port}", "/etc/haproxy/tls/files.example.org.pem": str(both)}
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        configuration = stage.directory / "haproxy.cfg"
        configuration.write_text(text)
        self.log = stage.directory / "haproxy.log"
        with self.log.open("wb") as output:
            haproxy = shutil.which("haproxy") or "/usr/sbin/haproxy"
            self.balancer = subprocess.Popen([haproxy, "-db", "-f", str(configuration)], stdout=output, stderr=output)
        self.options = ["--ca", str(authority.certificate), "--reconnect-max", "1"]
        self.clients: dict[str, Export] = {}

    def begin(self, names: list[str]) -> None:
        for name in names:
            through = self.servers[0]
            direct, through.url = through.url, f"wss://localhost:{self.port}"
            self.clients[name] = self.stage.export(through, name=name, options=self.options)
            through.url = direct
        for name in names:
            self.clients[name].mount_path()

    def where(self) -> dict[str, int]:
        """Which server has which export's session, by its number."""
        found: dict[str, int] = {}
        for number, server in enumerate(self.servers):
            if server.program.process.poll() is None:
                for session in control.call(str(server.runtime), "sessions"):
                    if session["state"] == "mounted":
                        assert session["export"] not in found, "an export has two sessions"
                        found[session["export"]] = number
        return found

    def settles(self, but: int | None = None) -> dict[str, int]:
        """Once every export has its session, none of them on that server."""

        def all_there() -> dict[str, int] | None:
            found = self.where()
            return found if len(found) == len(self.clients) and but not in found.values() else None

        return until(all_there, "every export has a session") or {}

    def works(self, name: str, number: int) -> None:
        """What is written on the server is on the client."""
        path = self.servers[number].runtime / "mnt" / "acme" / name / "written"
        path.write_text(f"{time.monotonic_ns()}")
        assert (self.clients[name].directory / "written").read_text() == path.read_text()

    def close(self) -> None:
        for client in self.clients.values():
            client.stop()
        self.balancer.terminate()
        self.balancer.wait(DEADLINE)
        self._place.close()


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    need("root", "fuse")
    monkeypatch.setenv("PATH", os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    need_that(shutil.which("haproxy"), "this machine lacks haproxy")
    with Stage("kernel") as stage:
        farm = Farm(stage)
        try:
            until(lambda: socket.socket().connect_ex(("127.0.0.1", farm.port)) == 0, "the balancer listens")
            yield farm
        finally:
            farm.close()


def test_one_is_drained_one_joins_one_is_killed(farm: Farm) -> None:
    """What the clients see is a lost connection and a new mount; the others see nothing."""
    first, second, third = farm.servers
    # The third joins later.
    assert main(["--runtime", str(third.runtime), "drain"]) == 0
    until(lambda: "three is DOWN" in farm.log.read_text(), "the balancer knows")
    farm.begin(EXPORTS)
    before = farm.settles(but=2)
    assert set(before.values()) == {0, 1}, "both have some"
    for name, number in before.items():
        farm.works(name, number)

    assert main(["--runtime", str(third.runtime), "drain", "--undo"]) == 0
    until(lambda: "three is UP" in farm.log.read_text(), "the balancer knows")
    assert farm.where() == before, "nobody who is there has to move"

    moves = sorted(name for name, number in before.items() if number == 0)
    began = time.monotonic()
    assert main(["--runtime", str(first.runtime), "drain", "--move"]) == 0
    assert not control.call(str(first.runtime), "sessions")
    emptied = time.monotonic() - began
    drained = farm.settles(but=0)
    moved = time.monotonic() - began
    assert {name: number for name, number in drained.items() if name not in moves} == {
        name: number for name, number in before.items() if name not in moves
    }, "only the drained server's sessions have moved"
    for name in moves:
        farm.works(name, drained[name])
        assert [event["event"] for event in farm.clients[name].events()][-1] == "mounted"

    assert main(["--runtime", str(first.runtime), "drain", "--undo"]) == 0
    until(lambda: "one is UP" in farm.log.read_text(), "the balancer knows")
    lost = [name for name, number in drained.items() if number == 1]
    began = time.monotonic()
    kill(second)
    after = farm.settles(but=1)
    took = time.monotonic() - began
    assert {name: number for name, number in after.items() if name not in lost} == {
        name: number for name, number in drained.items() if name not in lost
    }, "only the killed server's sessions have moved"
    for name, number in after.items():
        farm.works(name, number)
    print(f"drain: {len(moves)} of {len(EXPORTS)} sessions gone after {emptied:.2f} s, mounted elsewhere after {moved:.2f} s")
    print(f"kill -9: {len(lost)} of {len(EXPORTS)} sessions, the last mounted elsewhere after {took:.2f} s")


def kill(server: Server) -> None:
    """As the machine's end would: all of it at once. They are stopped first, so that none can see another one end, and answer a
    client."""
    stopped: set[int] = set()
    while running := processes_marked(server.mark).keys() - stopped:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= running
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.program.awaited = True
    server.program.process.wait()
    clear_away(server.mark, server.runtime)
