"""Three servers, each on a machine of its own, behind a real HAProxy, as the example has it: each export has its server, and
finds another when that is lost, drained or silent, or one more is there. Meanwhile programs work on all mounts."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from errno import ECONNABORTED, EIO, ENOTCONN, errorcode
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import Server, Stage, need, need_that
from harness.certificates import Authority
from harness.leftovers import clear_away, mounts_beneath, processes_marked, unmount
from harness.log import DEADLINE, whole_lines
from harness.network import Machine, machines
from harness.server import ALLOW_ALL
from harness.stage import Export
from harness.waiting import until

from fuse_gated import control
from fuse_gated.commands.fuse_gatectl import main

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "reverse-proxies" / "haproxy-several.cfg"
EXPORTS = [f"work{number}" for number in range(9)]
ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
"""Those of the example. In namespaces they are nobody else's."""
BALANCER = "10.0.0.4"
GRACE = 2
OUTAGE = {"mode": "wait", "grace": f"{GRACE}s"}
POLICY = {"tenants": {"acme": {"users": ["root"], "rules": ALLOW_ALL, "exports": {"max_sessions": 50}, "outage": OUTAGE}}}
BELIEVED = {"proxies": {"addresses": [BALANCER], "header": "proxy-protocol"}}
DEAD_AFTER = float(os.environ.get("FUSE_GATED_TEST_DEAD_AFTER", "3"))
"""Seconds of silence; the client's default is 20, and the figures of the page are for both."""
ENDS_WITH_US = ["setpriv", "--pdeathsig=KILL", "--"]
ENDED = {EIO, ENOTCONN, ECONNABORTED}
"""What programs may meet on a mount whose session is over (docs/production/reliability.md)."""

# load.py RUNTIME LOG EXPORT…: on each export, for as long as it is mounted beneath RUNTIME: a number is written to a file, which
# is closed, opened and read. Each time is a line of LOG: export, begin, end, errno, number.
LOAD = """
import json, os, sys, threading, time
runtime, log, *exports = sys.argv[1:]
lines = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
outside = os.stat(runtime).st_dev
mounted = set()

def once(root, number):
    file = os.open("load", os.O_RDWR | os.O_CREAT, dir_fd=root)
    try:
        os.pwrite(file, b"%020d" % number, 0)
    finally:
        os.close(file)
    file = os.open("load", os.O_RDONLY, dir_fd=root)
    try:
        assert os.pread(file, 100, 0) == b"%020d" % number
    finally:
        os.close(file)

def work(export):
    path, root = f"{runtime}/mnt/acme/{export}", None
    while True:
        time.sleep(0.02)
        if path not in mounted:
            root = left(root)
            continue
        number, began, error = time.monotonic_ns(), time.monotonic(), 0
        try:
            root = os.open(path, os.O_DIRECTORY) if root is None else root
            # It was mounted when that was looked for; what lies beneath is not to be written to.
            if os.fstat(root).st_dev == outside:
                root = left(root)
                continue
            once(root, number)
        except FileNotFoundError:
            # Nor is it there any more.
            assert root is None
            continue
        except OSError as failed:
            error, root = failed.errno, left(root)
        os.write(lines, json.dumps([export, began, time.monotonic(), error, number]).encode() + b"\\n")

def left(root):
    if root is not None:
        os.close(root)

for export in exports:
    threading.Thread(target=work, args=[export], daemon=True).start()
while True:
    with open("/proc/self/mounts") as mounts:
        mounted = {line.split()[1] for line in mounts if " fuse.fuse-gated " in line}
    time.sleep(0.02)
"""


class Done(NamedTuple):
    """One time that a program has written and read; `began` and `ended` on the monotonic clock."""

    export: str
    began: float
    ended: float
    error: int
    number: int
    server: int


class Farm:
    """The servers, the balancer before them, a client for each export, and a program that works on each server's mounts."""

    def __init__(self, stage: Stage, hosts: list[Machine]) -> None:
        self.stage = stage
        *self.hosts, self.front = hosts
        self.servers: list[Server] = []
        for host in self.hosts:
            with host.inside():
                self.servers.append(stage.server(POLICY, BELIEVED, listen=f"{host.address}:7433"))
        authority = Authority(stage.directory)
        pair = authority.issue("proxy")
        both = stage.directory / "both.pem"
        both.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
        text = EXAMPLE.read_text("utf-8")
        place = "/etc/haproxy/tls/files.example.org.pem"
        assert text.count(place) == 1
        configuration = stage.directory / "haproxy.cfg"
        configuration.write_text(text.replace(place, str(both)))
        self.log = stage.directory / "haproxy.log"
        with self.log.open("wb") as output, self.front.inside():
            haproxy = shutil.which("haproxy") or "/usr/sbin/haproxy"
            command = [*ENDS_WITH_US, haproxy, "-db", "-f", str(configuration)]
            self.balancer = subprocess.Popen(command, stdout=output, stderr=output)
        self.options = ["--ca", str(authority.certificate), "--reconnect-max", "1", "--dead-after", str(DEAD_AFTER)]
        self.clients: dict[str, Export] = {}
        self.programs = [self._program(server, number) for number, server in enumerate(self.servers)]

    def _program(self, server: Server, number: int) -> "subprocess.Popen[bytes]":
        command = [*ENDS_WITH_US, sys.executable, "-c", LOAD, str(server.runtime), str(self._told(number)), *EXPORTS]
        return subprocess.Popen(command)

    def _told(self, number: int) -> Path:
        return self.stage.directory / f"load{number}"

    def listens(self) -> bool:
        with self.front.inside(), socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", 443)) == 0

    def begin(self, names: list[str]) -> None:
        """Clients are where the balancer is."""
        with self.front.inside():
            for name in names:
                through = self.servers[0]
                direct, through.url = through.url, "wss://localhost"
                self.clients[name] = self.stage.export(through, name=name, options=self.options)
                through.url = direct
        for name in names:
            self.clients[name].mount_path()

    def where(self, but: int | None = None) -> dict[str, int]:
        """Which server has which export's session, by its number."""
        found: dict[str, int] = {}
        for number, server in enumerate(self.servers):
            if number != but and server.program.process.poll() is None:
                for session in control.call(str(server.runtime), "sessions"):
                    if session["state"] == "mounted":
                        assert session["export"] not in found, "an export has two sessions"
                        found[session["export"]] = number
        return found

    def settles(self, but: int | None = None) -> dict[str, int]:
        """Once every export has its session on another server than that."""

        def all_there() -> dict[str, int] | None:
            found = self.where(but)
            return found if len(found) == len(self.clients) else None

        return until(all_there, "every export has a session", DEADLINE + DEAD_AFTER) or {}

    def works(self, name: str, number: int) -> None:
        """What is written on the server is on the client."""
        path = self.servers[number].runtime / "mnt" / "acme" / name / "written"
        path.write_text(f"{time.monotonic_ns()}")
        assert (self.clients[name].directory / "written").read_text() == path.read_text()

    def done(self) -> list[Done]:
        """What the programs have told so far, in the order of its end."""
        told = []
        for number in range(len(self.servers)):
            path = self._told(number)
            lines = whole_lines(path.read_bytes()) if path.exists() else []
            told += [Done(*json.loads(line), number) for line in lines]
        return sorted(told, key=lambda done: done.ended)

    def goes_on(self, names: list[str], but: int | None = None) -> None:
        """Once programs have worked on each of them, on another server than that, from now on."""
        now = time.monotonic()

        def all_again() -> bool:
            fresh = [done for done in self.done() if done.began > now and not done.error and done.server != but]
            return {done.export for done in fresh} >= set(names)

        until(all_again, "programs go on")

    def seen(self, what: str, since: float, moved: list[str]) -> None:
        """Prints what the programs saw from `since` on. Those whose export did not move must have seen nothing."""
        recent = [done for done in self.done() if done.ended > since - 1]
        failed = [done for done in recent if done.error and done.ended > since]
        assert [done for done in failed if done.export not in moved] == []
        assert {done.error for done in failed} <= ENDED
        errors = dict(Counter(errorcode[done.error] for done in failed))
        print(f"{what}: {len(moved)} of {len(EXPORTS)} moved; {len(recent)} times written and read, failed: {errors}")
        for names, are in ((moved, "moved"), (sorted(set(EXPORTS) - set(moved)), "stayed")):
            pauses = sorted(pause([done for done in recent if done.export == name]) for name in names)
            if pauses:
                print(f"  {are}, longest pause: median {pauses[len(pauses) // 2]:.2f} s, worst {pauses[-1]:.2f} s")

    def close(self) -> None:
        for program in self.programs:
            program.kill()
            program.wait(DEADLINE)
        for client in self.clients.values():
            client.stop()
        self.balancer.terminate()
        self.balancer.wait(DEADLINE)


def pause(done: list[Done]) -> float:
    """The longest time from one end without an error to the next, in seconds."""
    ends = [each.ended for each in done if not each.error]
    return max((later - earlier for earlier, later in pairwise(ends)), default=0)


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    need("root", "fuse")
    monkeypatch.setenv("PATH", os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    need_that(shutil.which("haproxy"), "this machine lacks haproxy")
    with machines([*ADDRESSES, BALANCER]) as hosts, Stage("watched") as stage:
        farm = Farm(stage, hosts)
        try:
            until(farm.listens, "the balancer listens")
            yield farm
        finally:
            farm.close()


def test_one_is_drained_one_joins_one_is_killed_one_falls_silent(farm: Farm) -> None:
    """What the clients see is a lost connection and a new mount; the others see nothing. Nothing that was closed is lost."""
    first, second, third = farm.servers
    # The third joins later.
    assert main(["--runtime", str(third.runtime), "drain"]) == 0
    until(lambda: "three is DOWN" in farm.log.read_text(), "the balancer knows")
    farm.begin(EXPORTS)
    before = farm.settles(but=2)
    assert set(before.values()) == {0, 1}, "both have some"
    for name, number in before.items():
        farm.works(name, number)
    farm.goes_on(EXPORTS)

    began = time.monotonic()
    assert main(["--runtime", str(third.runtime), "drain", "--undo"]) == 0
    until(lambda: "three is UP" in farm.log.read_text(), "the balancer knows")
    farm.goes_on(EXPORTS)
    assert farm.where() == before, "nobody who is there has to move"
    farm.seen("joined", began, [])

    moves = sorted(name for name, number in before.items() if number == 0)
    began = time.monotonic()
    assert main(["--runtime", str(first.runtime), "drain", "--move"]) == 0
    assert not control.call(str(first.runtime), "sessions")
    emptied = time.monotonic() - began
    drained = farm.settles(but=0)
    moved = time.monotonic() - began
    assert staying(drained, moves) == staying(before, moves), "only the drained server's sessions have moved"
    for name in moves:
        farm.works(name, drained[name])
        assert [event["event"] for event in farm.clients[name].events()][-1] == "mounted"
    farm.goes_on(EXPORTS)
    print(f"drain --move: sessions gone after {emptied:.2f} s, mounted elsewhere after {moved:.2f} s")
    farm.seen("drain --move", began, moves)

    # The first takes sessions again. Then the second is lost, and the third is not heard of any more.
    assert main(["--runtime", str(first.runtime), "drain", "--undo"]) == 0
    until(lambda: "one is UP" in farm.log.read_text(), "the balancer knows")
    lost = [name for name, number in drained.items() if number == 1]
    began = time.monotonic()
    kill(second)
    after = farm.settles(but=1)
    took = time.monotonic() - began
    assert staying(after, lost) == staying(drained, lost), "only the killed server's sessions have moved"
    for name, number in after.items():
        farm.works(name, number)
    farm.goes_on(EXPORTS)
    print(f"kill -9: the last one mounted elsewhere after {took:.2f} s")
    farm.seen("kill -9", began, lost)

    unheard = [name for name, number in after.items() if number == 2]
    assert unheard, "it has taken some"
    began = time.monotonic()
    farm.hosts[2].fall_silent()
    last = farm.settles(but=2)
    took = time.monotonic() - began
    assert staying(last, unheard) == staying(after, unheard), "only the silent server's sessions have moved"
    for name, number in last.items():
        farm.works(name, number)
    farm.goes_on(EXPORTS, but=2)
    print(f"silent, --dead-after {DEAD_AFTER:g}: the last one mounted elsewhere after {took:.2f} s")
    farm.seen("silent", began, unheard)

    # Nothing comes back to it: when it is heard again, its sessions end with their grace, and programs there are told.
    farm.hosts[2].speak_again()
    until(lambda: not control.call(str(third.runtime), "sessions"), "its sessions are over")
    assert farm.settles() == last
    farm.seen("heard again", began, unheard)

    for name in EXPORTS:
        closed = max(done.number for done in farm.done() if done.export == name and not done.error)
        assert int((farm.clients[name].directory / "load").read_text()) >= closed, "what was closed is there"


def staying(found: dict[str, int], moves: list[str]) -> dict[str, int]:
    return {name: number for name, number in found.items() if name not in moves}


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
    # Nor does a mount outlive its machine. Here one might: a killed worker's thread may wait in the kernel for a lock that a
    # program holds, which waits for an answer.
    for point in mounts_beneath(server.runtime):
        unmount(point)
    server.program.awaited = True
    server.program.process.wait()
    clear_away(server.mark, server.runtime)
