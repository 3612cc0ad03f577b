"""`fuse-gatectl metrics`: once, and over HTTP by a process of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.log import DEADLINE
from harness.looks import block, seen, session

from fuse_gated.commands import metrics
from fuse_gated.commands.fuse_gatectl import main
from fuse_gated.commands.metrics import Scraped
from fuse_gated.errors import OperatorError

pytest.importorskip("prometheus_client")
TOP = Path(__file__).parents[2]


class Server:
    """Ten more reads at each look."""

    def __init__(self) -> None:
        self.looks: list[int] = []
        self.started = "first"
        self.down = False

    def figures(self, session: str, brief: bool, ended_after: int) -> Any:
        assert (session, brief) == ("", False)
        if self.down:
            raise OperatorError("nobody is at home")
        self.looks.append(ended_after)
        return seen(one(10 * len(self.looks)), started=self.started, last_ended=7)


def one(count: int) -> Any:
    return session(data=block(operations={"read": count}))


@pytest.fixture
def server(control_socket: Any) -> Server:
    made = Server()
    control_socket.answers = {"figures": made.figures}
    return made


@pytest.fixture
def runtime(control_socket: Any, server: Server) -> list[str]:
    return ["--runtime", str(control_socket.runtime)]


def reads(text: str) -> float:
    found = re.search(r'^fuse_gated_operations_total\{export="src",operation="read",tenant="acme"\} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_once(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "metrics"]) == 0
    assert reads(capsys.readouterr().out) == 10


def test_once_as_json(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "metrics", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    labels = {"tenant": "acme", "export": "src", "operation": "read"}
    assert told["fuse_gated_operations"] == [{"name": "fuse_gated_operations_total", "labels": labels, "value": 10}]


def test_what_cannot_be(
    runtime: list[str], server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*runtime, "metrics", "--exports", "-1"]) == 2
    server.down = True
    assert main([*runtime, "metrics"]) == 1
    assert "nobody is at home" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "fuse_gated.exposition", None)
    assert main([*runtime, "metrics"]) == 1
    assert "install python3-prometheus-client" in capsys.readouterr().err


def test_the_daemon_is_asked_once_a_second(
    control_socket: Any, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fuse_gated.exposition import Exposition

    now = [1000.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    scraped = Scraped(str(control_socket.runtime), Exposition(20))
    for _ in range(3):
        scraped.page("")
    assert server.looks == [-1]
    now[0] += 1.5
    scraped.page("")
    assert server.looks == [-1, 7]
    # Another run of the daemon: its ends are heard from the first on.
    server.started = "second"
    now[0] += 1.5
    scraped.page("")
    assert server.looks == [-1, 7, 7, 0]
    server.down = True
    for _ in range(100):
        now[0] += 1.5
        assert b"fuse_gated_up 0.0" in scraped.page("")[1]
    assert capsys.readouterr().err.count("nobody is at home") == 3, "once a minute"


class Exporter:
    """It serves, in a process of its own."""

    def __init__(self, runtime: list[str], listen: list[str], **more: Any) -> None:
        command = [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", *runtime, "metrics", *listen]
        environment = {**os.environ, "PYTHONPATH": str(TOP), **more.pop("environment", {})}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=TOP, env=environment, **more)
        assert self.process.stderr is not None
        self.ready = self.process.stderr.readline()
        found = re.search(r"http://\S+", self.ready)
        self.url = found[0] if found else ""

    def get(self, path: str = "") -> str:
        with urllib.request.urlopen(self.url + path, timeout=DEADLINE) as answer:
            text: str = answer.read().decode()
            return text

    def close(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(DEADLINE)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@pytest.fixture
def exporter(runtime: list[str]) -> Iterator[Callable[..., Exporter]]:
    made: list[Exporter] = []

    def start(listen: list[str], **more: Any) -> Exporter:
        made.append(Exporter(runtime, listen, **more))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_over_http(exporter: Callable[..., Exporter], server: Server) -> None:
    served = exporter(["--listen", "127.0.0.1:0"])
    assert served.ready.startswith("fuse-gatectl metrics: ready: listening on http://127.0.0.1:")
    # Counting has begun when it began: the ten of its first look are not counted.
    assert reads(served.get()) == 10
    with pytest.raises(urllib.error.HTTPError, match="404"):
        served.get("x")
    assert served.close() == 0


def test_it_starts_before_the_daemon_does(exporter: Callable[..., Exporter], server: Server) -> None:
    server.down = True
    served = exporter(["--listen", "[::1]:0"])
    assert served.ready.endswith("/metrics\n")
    assert "fuse_gated_up 0.0" in served.get()
    assert served.close(signal.SIGINT) == 0


def test_a_port_that_is_taken(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([*runtime, "metrics", "--listen", f"127.0.0.1:{taken.getsockname()[1]}"]) == 1
    assert "the port is taken" in capsys.readouterr().err


def test_sockets_from_systemd(runtime: list[str], server: Server, tmp_path: Path) -> None:
    """sd_listen_fds(3): descriptor 3 is the socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def pass_on() -> None:
            os.dup2(listener.fileno(), 3)
            os.environ["LISTEN_PID"] = str(os.getpid())
            os.environ["LISTEN_FDS"] = "1"
            command = ["-m", "fuse_gated.commands.fuse_gatectl", *runtime, "metrics"]
            os.execv(sys.executable, [sys.executable, *command])

        child = os.fork()
        if child == 0:
            os.environ["PYTHONPATH"] = str(TOP)
            os.chdir(TOP)
            pass_on()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE) as answer:
            assert b"fuse_gated_up 1.0" in answer.read()
    finally:
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
