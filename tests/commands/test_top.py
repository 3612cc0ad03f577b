"""`fuse-gatectl top`: on a terminal of its own (pty(7)), and without one."""

import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any

import pytest
from harness.log import DEADLINE
from harness.looks import block, seen, session

from fuse_gated.commands.fuse_gatectl import main
from fuse_gated.errors import OperatorError

TOP = Path(__file__).parents[2]


class Looks:
    """A server on which the session 'busy' does ten more reads at each look, and 'idle' nothing."""

    def __init__(self) -> None:
        self.count = 0
        self.down = False

    def figures(self, session: str, brief: bool, ended_after: int) -> Any:
        assert (session, brief, ended_after) == ("", True, -1)
        if self.down:
            raise OperatorError("no daemon answers here")
        self.count += 10
        return seen(
            one("s1", "idle", block(operations={"read": 5})[:512]),
            one("s2", "busy", block(operations={"read": self.count}, BYTES_READ=1000 * self.count)[:512]),
        )


def one(name: str, export: str, data: bytes) -> Any:
    return session(name, export, data=data)


@pytest.fixture
def looks(control_socket: Any) -> Looks:
    made = Looks()
    control_socket.answers = {"figures": made.figures}
    return made


@pytest.fixture
def runtime(control_socket: Any, looks: Looks) -> list[str]:
    return ["--runtime", str(control_socket.runtime)]


def test_once(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "top", "--once", "--interval", "0.01"]) == 0
    first, second, blank, heading, *lines = capsys.readouterr().out.splitlines()
    assert first == "fuse-gated 1.2, up 5s: 2 sessions"
    assert "operations/s" in second
    assert blank == ""
    assert heading.split()[:3] == ["SESSION", "STATE", "OPS/Sv"]
    assert [line.split()[0] for line in lines] == ["acme/busy", "acme/idle"]


def test_where_there_is_no_terminal_it_is_the_same(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "top", "--interval", "0.01"]) == 0
    assert "acme/busy" in capsys.readouterr().out


def test_as_json(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "top", "--json", "--interval", "0.01"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told["sessions"]] == ["acme/busy", "acme/idle"]
    assert told["sessions"][0]["operations"] == pytest.approx(10 / told["interval"], rel=0.2)
    assert told["totals"]["sessions"] == 2


@pytest.mark.parametrize("interval", ["0", "-1", "1e9", "nan"])
def test_intervals_that_are_none(runtime: list[str], interval: str) -> None:
    assert main([*runtime, "top", "--interval", interval]) == 2


def test_without_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runtime", str(tmp_path), "top", "--once"]) == 1
    assert "no daemon runs in" in capsys.readouterr().err


class Terminal:
    """A terminal in which it runs. `screen` is what a person would see: as far as it takes to find a text in it."""

    def __init__(self, runtime: list[str], *, height: int = 24, width: int = 120, **environment: str) -> None:
        self.mine, theirs = pty.openpty()
        self.resize(height, width)
        arguments = [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", *runtime, "top", "--interval", "0.05"]
        self.process = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, cwd=TOP,
            env={**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(TOP), **environment},
        )  # fmt: skip
        os.close(theirs)
        self.said = b""

    def resize(self, height: int, width: int) -> None:
        ioctl(self.mine, TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def wait_for(self, text: str) -> None:
        """The screen shows this text. It is drawn whole each time: else only what has changed would come."""
        end = time.monotonic() + DEADLINE
        said = b""
        while not re.search(text.encode(), said):
            assert time.monotonic() < end, f"{text!r} is not in {said[-500:]!r}"
            self.press(b"\x0c")
            said = said[-20_000:]
            while select.select([self.mine], [], [], 0.1)[0]:
                try:
                    piece = os.read(self.mine, 65536)
                except OSError:
                    piece = b""
                said += piece
                self.said += piece
                if re.search(text.encode(), said):
                    break
                if not piece:
                    raise AssertionError(f"it has ended: {said[-500:]!r}")

    def press(self, keys: bytes) -> None:
        os.write(self.mine, keys)

    def ends(self) -> int:
        """The exit status."""
        end = time.monotonic() + DEADLINE
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self.mine], [], [], 0.05)[0]:
                try:
                    self.said += os.read(self.mine, 65536)
                except OSError:
                    break
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.mine)


@pytest.fixture
def terminal(runtime: list[str]) -> Iterator[Terminal]:
    made = Terminal(runtime)
    yield made
    made.close()


def test_it_is_drawn_and_drawn_again_until_q(terminal: Terminal, looks: Looks) -> None:
    terminal.wait_for("acme/busy")
    asked = looks.count
    terminal.wait_for("█")
    assert looks.count >= asked
    terminal.press(b"q")
    assert terminal.ends() == 0
    # The terminal is given back as it was: the other screen is left.
    assert b"\x1b[?1049l" in terminal.said


def test_its_keys(terminal: Terminal) -> None:
    terminal.wait_for("OPS/Sv")
    terminal.press(b"\x1bOC")  # right
    terminal.wait_for("READ/Sv")
    terminal.press(b"\x1bOD\x1bOD\x1bOD")  # left, beyond the first column
    terminal.wait_for("SESSIONv")
    terminal.press(b"r")
    terminal.wait_for(r"SESSION\^")
    terminal.press(b" ")
    terminal.wait_for("PAUSED")
    terminal.press(b"\x1bOB\x1bOA\x1b[5~\x1b[6~\x1bOH")
    terminal.press(b" q")
    assert terminal.ends() == 0


def test_another_size(terminal: Terminal) -> None:
    terminal.resize(10, 200)
    terminal.wait_for("CLIENT")
    terminal.resize(10, 40)
    terminal.wait_for("acme/busy")
    terminal.resize(1, 1)
    terminal.resize(3, 200)
    terminal.wait_for("quit")
    terminal.press(b"q")
    assert terminal.ends() == 0


def test_a_daemon_that_goes_and_comes_back(terminal: Terminal, looks: Looks) -> None:
    terminal.wait_for("acme/busy")
    looks.down = True
    terminal.wait_for("no daemon answers here")
    looks.down = False
    terminal.wait_for("operations")
    terminal.press(b"q")
    assert terminal.ends() == 0


def test_a_plain_terminal(runtime: list[str]) -> None:
    """No colours and no bars where they are not wanted, or cannot be shown."""
    plain = Terminal(runtime, NO_COLOR="1", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    plain.wait_for("acme/busy")
    plain.wait_for("operations|OPS|[0-9]")
    plain.press(b"q")
    assert plain.ends() == 0
    assert "█".encode() not in plain.said
    plain.close()
    dumb = Terminal(runtime, TERM="dumb")
    dumb.wait_for("acme/idle")
    assert dumb.ends() == 0
    dumb.close()
