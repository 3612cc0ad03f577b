"""What a terminal shows. A pseudo-terminal stands in for one; what is written to it is interpreted as a terminal does."""

import contextlib
import fcntl
import io
import os
import re
import struct
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest

from fuse_gated.edge.status import StatusLine


class Terminal:
    """A pseudo-terminal of some width; `stream` is the program's side."""

    def __init__(self, columns: int) -> None:
        self.reader, writer = os.openpty()
        self.stream: TextIO = os.fdopen(writer, "w", encoding="utf-8")
        self.resize(columns)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def written(self) -> str:
        os.set_blocking(self.reader, False)
        try:
            return os.read(self.reader, 65536).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.close()
        os.close(self.reader)


def shown(written: str) -> str:
    """The line that is on the terminal at the end, without colours."""
    last = written.rpartition("\x1b[K")[2]
    return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", last).strip("\r")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal(60)
    yield terminal
    terminal.close()


PARTS = ["mounted", "/run/fuse-gated/mnt/acme/src", "12 operations", "1.0 KiB read"]


def test_the_line_is_written_in_place(terminal: Terminal) -> None:
    line = StatusLine(terminal.stream)
    line.show("waiting", ["connecting", "host:1"])
    first = terminal.written()
    assert shown(first) == "● connecting  host:1"
    line.show("good", PARTS)
    second = terminal.written()
    assert second.startswith("\r\x1b[K")
    assert "\n" not in first + second
    assert shown(second) == "● mounted  /run/fuse-gated/mnt/acme/src  12 operations"
    line.show("good", PARTS)
    assert terminal.written() == ""


def test_what_does_not_fit_is_left_out(terminal: Terminal) -> None:
    line = StatusLine(terminal.stream)
    terminal.resize(120)
    line.show("good", PARTS)
    assert shown(terminal.written()).endswith("1.0 KiB read")
    terminal.resize(10)
    line.show("good", PARTS)
    assert shown(terminal.written()) == "● mounted"


def test_wrapping_is_on_again_after_each_write(terminal: Terminal) -> None:
    line = StatusLine(terminal.stream)
    line.show("good", ["x" * 500])
    written = terminal.written()
    assert written.index("\x1b[?7l") < written.index("xxx") < written.index("\x1b[?7h")
    assert written.endswith("\x1b[?7h")


def test_the_line_goes_away(terminal: Terminal) -> None:
    line = StatusLine(terminal.stream)
    line.clear()
    assert terminal.written() == ""
    line.show("bad", PARTS)
    assert shown(terminal.written())
    line.clear()
    assert terminal.written() == "\r\x1b[K"
    line.show("bad", PARTS)
    assert shown(terminal.written())


def test_colours_can_be_declined(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    StatusLine(terminal.stream).show("good", PARTS)
    assert "\x1b[32m●\x1b[0m" in terminal.written()
    monkeypatch.setenv("NO_COLOR", "1")
    StatusLine(terminal.stream).show("good", PARTS)
    assert "\x1b[32m" not in terminal.written()


def test_a_terminal_without_unicode(terminal: Terminal) -> None:
    terminal.stream.reconfigure(encoding="ascii")
    StatusLine(terminal.stream).show("good", ["mounted"])
    assert shown(terminal.written()) == "* mounted"


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_terminal_that_cannot_move_its_cursor(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, term: str | None) -> None:
    if term is None:
        monkeypatch.delenv("TERM")
    else:
        monkeypatch.setenv("TERM", term)
    line = StatusLine(terminal.stream)
    assert not line.active
    line.show("good", PARTS)
    line.clear()
    assert terminal.written() == ""


def test_what_is_no_terminal_shows_nothing() -> None:
    stream = io.StringIO()
    line = StatusLine(stream)
    line.show("good", PARTS)
    line.clear()
    assert stream.getvalue() == ""


def test_a_terminal_that_goes_away(terminal: Terminal) -> None:
    line = StatusLine(terminal.stream)
    os.close(terminal.reader)
    line.show("good", PARTS)
    assert not line.active
    line.show("waiting", PARTS)
    terminal.reader = os.open("/dev/null", os.O_RDONLY)


def test_a_width_that_nobody_knows(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> os.terminal_size:
        raise OSError(25, "not a terminal")

    monkeypatch.setattr(os, "get_terminal_size", unknown)
    StatusLine(terminal.stream).show("good", PARTS)
    assert shown(terminal.written()).endswith("1.0 KiB read")
