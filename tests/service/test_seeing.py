"""What can be seen of sessions that work: counted right, whoever looks, and whatever a worker writes where it counts."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Mounted, Server, Stage
from harness.log import DEADLINE
from harness.waiting import until

from fuse_gated import control
from fuse_gated.turnstile.figures import Figures, Operation, quantile
from fuse_gated.turnstile.measures import SIZE

TOP = Path(__file__).parents[2]
AT = 2**17 - SIZE
"""Where the measures lie in a session's state (edge/state.py)."""


@pytest.fixture(scope="module")
def mounted(stage: Stage) -> Mounted:
    """Without a cache: the client is asked for everything."""
    policy = stage.tenant(exports={"max_sessions": 20}, cache={"mode": "strict"})
    return stage.mount(policy, settings={"slow_operation": "300ms"})


@pytest.fixture
def server(mounted: Mounted) -> Server:
    return mounted.server


def figures(server: Server, session: str = "acme/work") -> Figures:
    (one,) = control.figures(str(server.runtime), session=session).sessions
    return Figures.read(one.measures)


def operations(shown: Figures) -> dict[str, Operation]:
    return {one.name: one for one in shown.operations}


def ctl(server: Server, *arguments: str) -> str:
    command = [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", "--runtime", str(server.runtime), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TOP, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def come(server: Server, before: Figures, operation: str, count: int, session: str = "acme/work") -> Figures:
    """What has come, once so many of that operation have: they are counted some at a time."""

    def there() -> Figures | None:
        since = figures(server, session).since(before)
        return since if operation in operations(since) and operations(since)[operation].count >= count else None

    found = until(there, f"{count} {operation} are counted")
    assert found is not None
    return found


def work(directory: Path, files: int = 5) -> None:
    """So many files made, each with 10 bytes, renamed and removed."""
    for number in range(files):
        (directory / f"f{number}").write_bytes(b"0123456789")
        (directory / f"f{number}").rename(directory / f"g{number}")
        (directory / f"g{number}").unlink()


def reader_of(server: Server, export: str = "work") -> int:
    return next(int(one["pid"]) for one in control.call(str(server.runtime), "sessions") if one["export"] == export)


def test_every_operation_is_counted_and_its_time_is_somewhere(mounted: Mounted, server: Server) -> None:
    before = figures(server)
    work(mounted.path)
    with pytest.raises(FileNotFoundError):
        (mounted.path / "none").unlink()
    (mounted.path / "last").mkdir()
    (mounted.path / "last").rmdir()
    since = come(server, before, "rmdir", 1)
    shown = operations(since)
    assert {name: shown[name].count for name in ("create", "write", "rename", "unlink")} == {
        "create": 5, "write": 5, "rename": 5, "unlink": 5,
    }  # fmt: skip
    assert since.bytes_written == shown["write"].bytes == 50
    assert shown["lookup"].errors >= 1
    assert since.faults == 0
    for one in shown.values():
        assert sum(one.whole) == sum(one.gate) == one.count
        assert sum(one.remote) == one.asked <= one.count
        assert one.client_seconds <= one.remote_seconds <= one.seconds
        assert (quantile(one.gate, 0.5) or 0) <= (quantile(one.whole, 0.99) or 0) * 2
    # Nobody but the client makes a file, and the client says how long it took.
    assert shown["create"].asked == 5
    assert 0 < shown["create"].client_seconds < shown["create"].remote_seconds
    assert (quantile(shown["create"].whole, 0.5) or 0) <= (quantile(shown["create"].whole, 0.99) or 0)


def test_a_slow_operation_is_told_with_where_the_time_went(mounted: Mounted, server: Server) -> None:
    client = mounted.client.program.process
    before = figures(server)
    os.kill(client.pid, signal.SIGSTOP)
    try:
        made = subprocess.Popen(["mkdir", str(mounted.path / "late")])
        until(lambda: figures(server).in_flight > 0, "it is on its way")
        with pytest.raises(subprocess.TimeoutExpired):
            made.wait(0.5)
    finally:
        os.kill(client.pid, signal.SIGCONT)
    assert made.wait(DEADLINE) == 0
    assert come(server, before, "mkdir", 1).slow >= 1

    def told() -> list[dict[str, Any]]:
        lines = (server.runtime / "audit.jsonl").read_text().splitlines()
        return [one for one in map(json.loads, lines) if one["FUSE_GATED_KIND"] == "slow-operation"]

    (record, *_) = until(told, "it is told") or []
    assert record["MESSAGE_ID"] == "802966184689495b8b81806ef62a4ed2"
    assert record["FUSE_GATED_OPERATION"] in ("mkdir", "lookup")
    assert record["FUSE_GATED_PATH"] == "/late"
    whole, remote = int(record["FUSE_GATED_DURATION_USEC"]), int(record["FUSE_GATED_REMOTE_USEC"])
    assert whole >= 300_000
    assert int(record["FUSE_GATED_GATE_USEC"]) < remote <= whole
    (mounted.path / "late").rmdir()


def test_counting_goes_on_where_a_worker_was_killed(mounted: Mounted, server: Server) -> None:
    start = figures(server)
    work(mounted.path)
    come(server, start, "unlink", 5)
    before = figures(server)
    worker = reader_of(server)
    os.kill(worker, signal.SIGKILL)
    until(lambda: reader_of(server) not in (0, worker), "another worker")
    work(mounted.path)
    since = come(server, before, "unlink", 5)
    assert operations(since)["create"].count == 5
    assert operations(figures(server))["create"].count == operations(before)["create"].count + 5


def test_whatever_a_worker_writes_there_the_others_are_seen(stage: Stage, mounted: Mounted, server: Server) -> None:
    other = stage.mount(server=server, name="hostile")
    worker = reader_of(server, "hostile")
    (state,) = [
        int(number)
        for number in os.listdir(f"/proc/{worker}/fd")
        if os.readlink(f"/proc/{worker}/fd/{number}").startswith("/memfd:fuse-gated-state")
    ]
    memory = os.open(f"/proc/{worker}/fd/{state}", os.O_RDWR)
    try:
        for noise in (b"\xff" * SIZE, bytes(SIZE), os.urandom(SIZE), os.pread(memory, 8, AT) + b"\xff" * (SIZE - 8)):
            os.pwrite(memory, noise, AT)
            # And the numbers of its records.
            os.pwrite(memory, b"\xff" * 8, 64)
            os.pwrite(memory, b"\xff" * 8, 48)
            for command in (["stats"], ["stats", "--json"], ["top", "--once", "--interval", "0.05"], ["metrics"]):
                said = ctl(server, *command)
                assert not re.search(r"\bnan\b", said, re.IGNORECASE)
            seen = control.figures(str(server.runtime))
            assert {one.export for one in seen.sessions} == {"work", "hostile"}
    finally:
        os.close(memory)
    work(mounted.path)
    assert control.call(str(server.runtime), "status")["sessions"] == 2
    last = seen.last_ended
    other.client.stop()
    until(lambda: control.figures(str(server.runtime), ended_after=last).ended, "its end is known")
    assert ctl(server, "stats", "acme/work").startswith("acme/work")


def test_what_ended_is_told_to_who_asks(stage: Stage, mounted: Mounted, server: Server) -> None:
    last = control.figures(str(server.runtime)).last_ended
    short = stage.mount(server=server, name="short")
    work(short.path, 3)
    short.client.stop()
    (ended,) = until(lambda: control.figures(str(server.runtime), ended_after=last).ended, "its end") or []
    assert (ended.tenant, ended.export, ended.number) == ("acme", "short", last + 1)
    assert control.figures(str(server.runtime), ended_after=last + 1).ended == []
    assert control.figures(str(server.runtime)).ended == []


def test_a_session_that_is_not_there(server: Server) -> None:
    from fuse_gated.errors import OperatorError

    with pytest.raises(OperatorError, match="there is no session 'acme/none'"):
        control.figures(str(server.runtime), session="acme/none")


# The commands.


def test_the_commands_show_it(mounted: Mounted, server: Server) -> None:
    work(mounted.path)
    assert re.search(r"^create +\d+ ", ctl(server, "stats", "acme/work"), re.MULTILINE)
    told = json.loads(ctl(server, "stats", "--json"))
    assert told["by_operation"]["create"]["count"] >= 5
    assert re.search(r"^acme/work +mounted ", ctl(server, "top", "--once", "--interval", "0.05"), re.MULTILINE)
    assert json.loads(ctl(server, "top", "--json", "--interval", "0.05"))["sessions"][0]["name"] == "acme/work"


# Over HTTP.


class Exporter:
    def __init__(self, server: Server) -> None:
        command = [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", "--runtime", str(server.runtime), "metrics"]
        self.process = subprocess.Popen([*command, "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True, cwd=TOP)
        assert self.process.stderr is not None
        (port,) = re.findall(r":(\d+)/metrics", self.process.stderr.readline())
        self.port = int(port)

    def scrape(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=DEADLINE) as answer:
            return answer.read().decode()


@pytest.fixture
def exporter(server: Server) -> Iterator[Exporter]:
    pytest.importorskip("prometheus_client")
    made = Exporter(server)
    yield made
    made.process.terminate()
    assert made.process.wait(DEADLINE) == 0
    assert made.process.stderr is not None
    made.process.stderr.close()


def value(text: str, name: str, **labels: str) -> float:
    wanted = ",".join(f'{label}="{labels[label]}"' for label in sorted(labels))
    line = f"{name}{{{wanted}}}" if wanted else name
    return float(next((one.rpartition(" ")[2] for one in text.splitlines() if one.startswith(f"{line} ")), "0"))


def test_a_scrape_counts_what_was_done(mounted: Mounted, exporter: Exporter) -> None:
    labels = {"tenant": "acme", "export": "work", "operation": "create"}
    work(mounted.path)
    text = until(
        lambda: text if value(text := exporter.scrape(), "fuse_gated_operations_total", **labels) >= 5 else "", "it is counted"
    )
    assert value(text, "fuse_gated_operations_total", **labels) == 5
    assert value(text, "fuse_gated_bytes_total", tenant="acme", export="work", direction="write") == 50
    assert value(text, "fuse_gated_sessions", tenant="acme", state="mounted") == 1
    assert value(text, "fuse_gated_operation_duration_seconds_count", tenant="acme", operation="create") == 5


def test_who_sends_nothing_or_reads_slowly_harms_nobody(mounted: Mounted, server: Server, exporter: Exporter) -> None:
    with socket.create_connection(("127.0.0.1", exporter.port)), socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", exporter.port))
        slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert value(exporter.scrape(), "fuse_gated_up") == 1
        assert control.call(str(server.runtime), "status")["sessions"] == 1
        work(mounted.path)
        assert exporter.process.poll() is None


NAME = re.compile(r"fuse_gated_[a-z_]+")
GRAFANA = TOP / "docs" / "production" / "grafana-dashboard.json"
ALERTS = TOP / "docs" / "production" / "alert-rules.yaml"
MONITORING = TOP / "docs" / "production" / "monitoring.md"


@pytest.mark.parametrize("page", [GRAFANA, ALERTS, MONITORING], ids=lambda page: page.name)
def test_what_the_documents_name_is_in_a_real_scrape(mounted: Mounted, exporter: Exporter, page: Path) -> None:
    work(mounted.path)
    text = until(lambda: text if "fuse_gated_operations_total{" in (text := exporter.scrape()) else "", "it is counted") or ""
    there = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    named = set(NAME.findall(page.read_text()))
    assert len(named) > 5
    # A histogram is named as a whole in the text.
    assert {name for name in named if name not in there and f"{name}_bucket" not in there} == set()
