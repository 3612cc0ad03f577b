"""The command as its users meet it: arguments in this process, sessions as a process with a server made by hand."""

import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ALICE, need
from harness.scripted_server import MOUNT, Script, ScriptedServer, asks, welcome

from fuse_gated import __version__
from fuse_gated.commands import fuse_gate
from fuse_gated.commands.fuse_gate import main
from fuse_gated.edge.destination import Destination, parse_server
from fuse_gated.edge.files import Export
from fuse_gated.edge.loop import Loop
from fuse_gated.paths import is_mount_name
from fuse_gated.persistence import Persistence
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire

PROJECT = Path(__file__).resolve().parents[2]
SERVER = ["--server", "ws://127.0.0.1:1"]


@pytest.fixture
def token(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text("a-token\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "My Project"
    path.mkdir()
    (path / "file").write_text("text")
    return path


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["export", *arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    return status, captured.err


# Arguments


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["export", "--version"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out == f"fuse-gate {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["import"], ["export"], ["export", "."], ["export", ".", *SERVER], ["--frobnicate"]])
def test_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 2
    assert "usage: fuse-gate" in capsys.readouterr().err


def test_directories_that_cannot_be_offered(
    capsys: pytest.CaptureFixture[str], directory: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*SERVER, "--token-file", token, "--name", "n"]
    assert complaint(capsys, str(directory / "file"), *options) == (
        2,
        f"fuse-gate: {directory}/file is not a directory\n  hint: name the directory to offer, not a file in it\n",
    )
    status, text = complaint(capsys, str(directory / "missing"), *options)
    assert status == 2
    assert "missing does not exist" in text
    status, text = complaint(capsys, str(directory / "file" / "deeper"), *options)
    assert status == 1
    assert "cannot look at" in text
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    status, text = complaint(capsys, str(directory), *options)
    assert status == 1
    assert "may not be read" in text


def test_a_directory_that_is_closed_to_us(public_directory: Path) -> None:
    need("root")
    closed = public_directory / "closed"
    closed.mkdir(0o700)
    token = public_directory / "token"
    token.write_text("t")
    status = ALICE.call(main, ["export", str(closed), *SERVER, "--token-file", str(token)])
    assert status == 1


@pytest.fixture
def public_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuse-gate-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("a/b", "a-b"),
        ("Capital", "capital"),
        ("../up", "up"),
        (".hidden", "hidden"),
        ("x" * 65, "x" * 64),
        ("a b", "a-b"),
        ("é", None),
        ("", None),
    ],
)
def test_names_that_are_none(
    capsys: pytest.CaptureFixture[str], directory: Path, token: str, name: str, suggestion: str | None
) -> None:
    status, text = complaint(capsys, str(directory), *SERVER, "--token-file", token, "--name", name)
    assert status == 2
    assert "not an export's name" in text
    assert ("--name" in text) is (suggestion is not None)
    if suggestion is not None:
        assert f"--name {suggestion};" in text
        assert is_mount_name(suggestion)


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("/srv/My Project", "my-project"),
        ("/srv/src", "src"),
        ("/srv/.config", "config"),
        ("/srv/a_b.c", "a_b.c"),
        ("/srv/Über", "ber"),
    ],
)
def test_a_name_is_made_from_the_directory(directory: str, name: str) -> None:
    assert fuse_gate._name(None, directory) == name
    assert is_mount_name(name)


def test_a_directory_that_gives_no_name(capsys: pytest.CaptureFixture[str], token: str) -> None:
    status, text = complaint(capsys, "/", *SERVER, "--token-file", token)
    assert status == 2
    assert "--name" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"two words", "something else"), (b"t\xc3\xb6ken", "something else"),
     (b"a\r\nHeader: x", "something else"), (b"x" * 5000, "something else")],
)  # fmt: skip
def test_token_files_without_a_token(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    status, text = complaint(capsys, str(directory), *SERVER, "--token-file", str(path))
    assert status == 1
    assert words in text
    assert "fuse-gatectl token new" in text


def test_a_token_file_that_is_missing(capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path) -> None:
    status, text = complaint(capsys, str(directory), *SERVER, "--token-file", str(tmp_path / "missing"))
    assert status == 1
    assert "No such file" in text


def test_a_token_file_that_others_may_read(capsys: pytest.CaptureFixture[str], token: str) -> None:
    os.chmod(token, 0o640)
    assert fuse_gate._token(token) == "a-token"
    assert f"chmod 600 {token}" in capsys.readouterr().err
    os.chmod(token, 0o600)
    assert fuse_gate._token(token) == "a-token"
    assert capsys.readouterr().err == ""


def test_a_token_through_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"piped\n")
    os.close(writer)
    assert fuse_gate._token(f"/dev/fd/{reader}") == "piped"
    os.close(reader)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options",
    [
        ["--server", "http://host:1"],
        ["--server", "ws://host:1", "--ca", "x"],
        ["--server", "ws://host:1", "--cert", "x"],
        ["--server", "wss://host:1", "--key", "x"],
        ["--server", "ws://host:1", "--no-reconnect", "--max-attempts", "3"],
        ["--server", "ws://host:1", "--no-reconnect", "--reconnect-delay", "1"],
    ],
)
def test_options_that_make_no_sense(
    capsys: pytest.CaptureFixture[str], directory: Path, token: str, options: list[str]
) -> None:
    status, text = complaint(capsys, str(directory), "--token-file", token, *options)
    assert status == 2
    assert "hint: " in text


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option in ("--reconnect-delay", "--reconnect-max", "--dead-after")
     for value in ("0", "-1", "nan", "inf", "1e9", "soon", "")]
    + [("--max-attempts", value) for value in ("0", "-1", "1.5", "many", "٣", "")],
)  # fmt: skip
def test_numbers_that_make_no_sense(
    capsys: pytest.CaptureFixture[str], directory: Path, token: str, option: str, value: str
) -> None:
    status, text = complaint(capsys, str(directory), *SERVER, "--token-file", token, f"{option}={value}")
    assert status == 2
    assert f"argument {option}: not " in text


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], Persistence()),
        (["--no-reconnect"], Persistence(reconnect=False)),
        (["--dead-after", "5"], Persistence(dead_after=5.0)),
        (["--max-attempts", "7"], Persistence(max_attempts=7, from_start=True)),
        (
            ["--reconnect-delay", "0.5", "--reconnect-max", "10"],
            Persistence(delay=0.5, longest_delay=10.0, from_start=True),
        ),
    ],
)
def test_how_it_holds_on_is_chosen(directory: Path, token: str, options: list[str], wanted: Persistence) -> None:
    parsed = fuse_gate._parser().parse_args(["export", str(directory), *SERVER, "--token-file", token, *options])
    assert fuse_gate._persistence(parsed) == wanted


def test_interrupted_before_it_began(directory: Path, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fuse_gate, "_destination", interrupted)
    assert main(["export", str(directory), *SERVER, "--token-file", token]) == 0


# Sessions


class Played:
    """A server made by hand on a thread of its own, and the command as a process."""

    def __init__(self, script: Script | None = None) -> None:
        self.loop = Loop()
        self.server = ScriptedServer(self.loop, script)
        self.process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self.loop.run)

    def start(self, directory: Path, token: str, *options: str, **popen: Any) -> "subprocess.Popen[str]":
        self._thread.start()
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fuse_gated.commands.fuse_gate", "export", str(directory), "--server",
             f"ws://127.0.0.1:{self.server.port}", "--token-file", token, *options],
            env={**os.environ, "PYTHONPATH": path, "TERM": "xterm"},
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **popen},
        )  # fmt: skip
        return self.process

    def close(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.communicate()
        if self._thread.is_alive():
            self.loop.from_thread(self.loop.stop)
            self._thread.join()
        self.server.close()
        self.loop.close()


@pytest.fixture
def played() -> Iterator[Played]:
    played = Played()
    yield played
    played.close()


def mounting() -> Any:
    yield ()
    yield [welcome()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_session_ends_on_a_signal(played: Played, directory: Path, token: str, number: signal.Signals) -> None:
    played.server.script = mounting
    process = played.start(directory, token, "--name", "export")
    assert process.stdout is not None
    assert process.stdout.readline() == f"mounted at {MOUNT}\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    assert played.server.ended.wait(60)
    assert played.server.closed == [(1000, "goodbye")]


def test_events_as_json(played: Played, directory: Path, token: str) -> None:
    played.server.script = mounting
    process = played.start(directory, token, "--json")
    assert process.stdout is not None
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert lines == [
        {"event": "connecting", "server": f"127.0.0.1:{played.server.port}", "export": "my-project"},
        {"event": "logged-in"},
        {"event": "mounted", "path": MOUNT, "session": "session-1"},
    ]
    assert json.loads(out) == {"event": "closed", "reason": "goodbye"}
    assert err == ""


def test_a_refusal_is_told_to_the_point(played: Played, directory: Path, token: str) -> None:
    played.server.answer = (401, "no such token\x1b[31m\n")
    out, err = played.start(directory, token).communicate(timeout=60)
    assert out == ""
    assert err == (
        "fuse-gate: the server refused the login: no such token\\x1b[31m\n"
        "  hint: is it the right token file, and the right server?\n"
    )
    assert played.process is not None
    assert played.process.returncode == 3


def test_a_mount_path_cannot_steer_the_terminal(played: Played, directory: Path, token: str) -> None:
    def script() -> Any:
        yield ()
        yield [welcome(mount="/mnt\x1b]0;title\x07\nfake")]

    played.server.script = script
    process = played.start(directory, token)
    assert process.stdout is not None
    assert process.stdout.readline() == "mounted at /mnt\\x1b]0;title\\x07\\nfake\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_nobody_reads_what_is_said(played: Played, directory: Path, token: str) -> None:
    said = threading.Event()

    def script() -> Any:
        yield ()
        yield [welcome(), *asks(wire.Getattr(b""))]
        said.set()

    played.server.script = script
    reader, writer = os.pipe()
    os.close(reader)
    process = played.start(directory, token, "--json", stdout=writer)
    os.close(writer)
    assert said.wait(60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_the_modes_asked_for_are_the_modes_made(played: Played, directory: Path, token: str) -> None:
    said = threading.Event()

    def script() -> Any:
        yield ()
        yield [welcome(), *asks(wire.Mkdir(b"made", 0o777))]
        said.set()

    played.server.script = script
    process = played.start(directory, token)
    assert said.wait(60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert (directory / "made").stat().st_mode == 0o040777


@pytest.mark.parametrize(("option", "made"), [("--read-only", None), ("--trust-server", 0o104755), (None, 0o100755)])
def test_what_a_server_may_do(played: Played, directory: Path, token: str, option: str | None, made: int | None) -> None:
    said = threading.Event()
    replies: list[Any] = []

    def script() -> Any:
        replies.append((yield ()))
        replies.append((yield [welcome(), *asks(wire.Create(b"made", wire.OPEN_WRITE, 0o4755))]))
        said.set()

    played.server.script = script
    process = played.start(directory, token, *([option] if option else []))
    assert said.wait(60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    hello, reply = replies
    assert ("read-only" in hello.offer.capabilities) is (option == "--read-only")
    assert reply.errno == ("EROFS" if made is None else None)
    assert made is None or (directory / "made").stat().st_mode == made


@pytest.mark.parametrize("option", ["--no-watch", None])
def test_changes_are_watched_unless_they_are_not_to_be(
    played: Played, directory: Path, token: str, option: str | None
) -> None:
    said = threading.Event()
    replies: list[Any] = []

    def script() -> Any:
        replies.append((yield ()))
        replies.append((yield [welcome(), *asks(wire.Gather((b"",), 0, 10, 1000, True))]))
        said.set()

    played.server.script = script
    process = played.start(directory, token, *([option] if option else []))
    assert said.wait(60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    hello, reply = replies
    assert (wire.WATCHES in hello.offer.capabilities) is (option is None)
    [found] = codec.decode_result("gather", reply.result)
    assert found.watched is (option is None)


def test_that_not_all_can_be_watched_is_said_once(
    directory: Path, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export = Export(directory)
    destination = Destination(uri=parse_server("ws://localhost:1"), token="t", name="n")
    session = fuse_gate._Session(Loop(), export, destination, Persistence(), as_json=True)
    assert export.watches is not None
    export.watches.most = 0
    for _ in range(2):
        assert export.watches.watch(b"") is None
    session._loop.turn()
    out, err = capsys.readouterr()
    assert json.loads(out)["event"] == "watches-exhausted"
    assert err == (
        "fuse-gate: warning: 0 directories are watched for changes, as many as may: the others are slower "
        "(raise it with: sysctl fs.inotify.max_user_watches)\n"
    )
    session._client.answering.stop()
    export.close()
    session._loop.close()


def test_as_many_files_as_the_machine_allows(played: Played, directory: Path, token: str) -> None:
    played.server.script = mounting
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        process = played.start(directory, token)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert process.stdout is not None
    assert process.stdout.readline()
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_warnings(played: Played, token: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = {"root": b"/", "watches": None, "unwatched": "no room", "leases": None}
    monkeypatch.setattr(fuse_gate, "Export", lambda *_, **__: type("Root", (), root))
    monkeypatch.setattr(fuse_gate._Session, "run", lambda _: None)
    monkeypatch.setattr(fuse_gate, "ignores_case", lambda _: True)
    umask = os.umask(0o022)
    try:
        assert main(["export", "/", "--server", "ws://192.0.2.1:1", "--token-file", token, "--name", "all"]) == 0
    finally:
        os.umask(umask)
    err = capsys.readouterr().err
    assert "clear text" in err
    assert "whole of this machine" in err
    assert "another spelling" in err
    assert "changes cannot be watched, so the server asks more often: no room" in err


def test_a_terminal_shows_one_live_line(played: Played, directory: Path, token: str) -> None:
    """Until it has ended, the terminal's last line is the status, and the mount path stands above it."""
    said = threading.Event()

    def script() -> Any:
        yield ()
        yield [welcome(), *asks(*[wire.Getattr(b"")] * 3)]
        yield ()
        yield ()
        said.set()

    played.server.script = script
    master, slave = pty.openpty()
    process = played.start(directory, token, stdout=slave, stderr=slave)
    os.close(slave)
    seen = ""
    while "3 operations" not in seen:
        assert select.select([master], [], [], 60)[0]
        seen += os.read(master, 65536).decode()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    try:
        while True:
            seen += os.read(master, 65536).decode()
    except OSError:
        os.close(master)
    plain = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", seen)
    assert f"\rmounted at {MOUNT}\r\n" in plain
    assert f"● mounted  {MOUNT}  3 operations" in plain
    assert plain.count("\n") == 1
    assert seen.endswith("\r\x1b[K")


# Connecting again


QUICK = ["--reconnect-delay", "0.01", "--reconnect-max", "0.02"]


def lost(server: ScriptedServer) -> None:
    assert server.websocket is not None
    server.websocket.abort()


def connections(server: ScriptedServer, *welcomes: Any) -> None:
    """Each connection gets its welcome, and is lost when the client has said something; the last one stays."""

    def script(number: int) -> Any:
        def turn() -> Any:
            yield ()
            yield [welcomes[number], *asks(wire.Getattr(b""))]
            while True:
                yield [lost] if number + 1 < len(welcomes) else []

        return turn

    def take(number: int) -> None:
        server.script = script(number)

    server.on_accept = take


def test_events_of_a_session_that_goes_on(played: Played, directory: Path, token: str) -> None:
    connections(played.server, welcome(grace=60.0), welcome(resumed=True, grace=60.0), welcome(session="session-2"))
    process = played.start(directory, token, "--json", *QUICK)
    assert process.stdout is not None
    lines = []
    while not lines or not lines[-1].get("replaced"):
        lines.append(json.loads(process.stdout.readline()))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [line["event"] for line in lines] == [
        "connecting", "logged-in", "mounted", "connection-lost", "reconnecting", "logged-in", "resumed", "connection-lost",
        "reconnecting", "logged-in", "mounted",
    ]  # fmt: skip
    assert lines[3] == {"event": "connection-lost", "reason": "the server broke off the connection"}
    assert lines[4].keys() == {"event", "attempt", "delay", "reason"}
    assert lines[6] == {"event": "resumed", "path": MOUNT, "session": "session-1"}
    assert lines[10] == {"event": "mounted", "path": MOUNT, "session": "session-2", "replaced": True}
    assert json.loads(out) == {"event": "closed", "reason": "goodbye"}
    assert err == (
        "fuse-gate: warning: the server no longer knew the session, this is a new one: "
        "what programs there had open or locked is lost to them\n"
    )


def test_what_a_log_is_told(played: Played, directory: Path, token: str) -> None:
    connections(played.server, welcome(grace=60.0), welcome(resumed=True, grace=60.0), welcome())
    process = played.start(directory, token, *QUICK)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == [f"mounted at {MOUNT}\n"] * 2
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    loss = "the connection is lost, trying again: the server broke off the connection"
    assert [line.removeprefix("fuse-gate: ") for line in err.splitlines()] == [
        loss,
        "connected again",
        loss,
        f"warning: {fuse_gate._LOST}",
        "connected again",
    ]


def test_a_reason_is_told_once(played: Played, directory: Path, token: str) -> None:
    played.server.answer = (503, "away\n")
    process = played.start(directory, token, *QUICK, "--max-attempts", "5")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err == (
        "fuse-gate: not connected, trying again: the server is not available: away\n"
        "fuse-gate: given up after 5 attempts: the server is not available: away\n"
        "  hint: try again later\n"
    )


@pytest.mark.parametrize(("status", "exit_status"), [(503, 1), (401, 3)])
def test_the_exit_status_after_a_session(
    played: Played, directory: Path, token: str, status: int, exit_status: int
) -> None:
    connections(played.server, welcome(), welcome())
    accepted = played.server.on_accept

    def refuse(number: int) -> None:
        accepted(min(number, 1))
        if number:
            played.server.answer = (status, "not any more")

    played.server.on_accept = refuse
    process = played.start(directory, token, *QUICK, "--max-attempts", "2")
    _, err = process.communicate(timeout=60)
    assert process.returncode == exit_status
    assert "not any more" in err


def test_a_lost_connection_may_be_the_end(played: Played, directory: Path, token: str) -> None:
    connections(played.server, welcome(), welcome())
    process = played.start(directory, token, "--no-reconnect")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, f"mounted at {MOUNT}\n")
    assert "broke off" in err


def test_a_terminal_shows_when_the_next_attempt_comes(played: Played, directory: Path, token: str) -> None:
    connections(played.server, welcome(), welcome())
    master, slave = pty.openpty()
    process = played.start(directory, token, "--reconnect-delay", "86400", "--reconnect-max", "86400", stdout=slave, stderr=slave)
    os.close(slave)
    seen = ""
    while "next attempt in" not in seen:
        assert select.select([master], [], [], 60)[0]
        seen += os.read(master, 65536).decode()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    os.close(master)
    plain = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", seen)
    assert re.search(r"● waiting  next attempt in \d+ s  the server broke off the connection", plain)
    assert "fuse-gate:" not in plain
