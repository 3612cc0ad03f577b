"""One live line on a terminal, rewritten in place."""

import os
from collections.abc import Sequence
from typing import Final, TextIO

_COLOURS: Final = {"good": "32", "waiting": "33", "bad": "31"}
_CLEAR: Final = "\r\x1b[K"
# Without automatic wrapping, a line that is too long for the terminal ends at its edge instead of scrolling it. Wrapping is
# on again after each write, so that a program that is killed leaves the terminal as it was.
_NO_WRAP: Final = "\x1b[?7l"
_WRAP: Final = "\x1b[?7h"


class StatusLine:
    """Shows nothing where `stream` is no terminal, or one that cannot move its cursor. What is shown must be printable."""

    def __init__(self, stream: TextIO) -> None:
        self.active = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._stream = stream
        self._coloured = not os.environ.get("NO_COLOR")  # no-color.org
        self._dot = "\N{BLACK CIRCLE}" if (stream.encoding or "").lower().replace("-", "") == "utf8" else "*"
        self._shown = ""

    def show(self, mood: str, parts: Sequence[str]) -> None:
        """`mood` ('good', 'waiting' or 'bad') colours the dot in front; of `parts`, the last are left out where the terminal
        is too narrow for all."""
        if not self.active:
            return
        room = self._columns() - 3
        text = parts[0]
        for part in parts[1:]:
            if len(text) + 2 + len(part) > room:
                break
            text += "  " + part
        dot = f"\x1b[{_COLOURS[mood]}m{self._dot}\x1b[0m" if self._coloured else self._dot
        line = f"{_CLEAR}{_NO_WRAP}{dot} {text}\r{_WRAP}"
        if line != self._shown:
            self._shown = line
            self._write(line)

    def clear(self) -> None:
        """Take the line away, to print something else or to end."""
        if self._shown:
            self._shown = ""
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self.active = False  # The terminal is gone.

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            return 80
