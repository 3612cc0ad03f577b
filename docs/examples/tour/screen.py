"""How the tour looks: colours on a terminal that wants them, lines folded to its width, nothing of both in a file."""

import os
import re
import shutil
import sys
import textwrap
from typing import Final

_WIDEST: Final = 100
_NARROWEST: Final = 40
_MARGIN: Final = "  "
_COLOURS: Final = {"title": "1", "chapter": "1;36", "client": "1;33", "server": "1;32", "aside": "2", "bad": "1;31"}


class Screen:
    """Where the tour is told."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self._rule, self._dots = ("─", "…") if sys.stdout.encoding.lower() == "utf-8" else ("-", "...")
        # https://no-color.org: set and not empty.
        self._coloured = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        columns = max(_NARROWEST, shutil.get_terminal_size().columns)
        self._text_width = min(_WIDEST, columns)
        self._output_width = columns if terminal else None
        self._gap = True
        """Whether the last line was an empty one."""

    def paint(self, kind: str, text: str) -> str:
        """`kind` is title, chapter, client, server, aside or bad."""
        return f"\033[{_COLOURS[kind]}m{text}\033[0m" if self._coloured else text

    def title(self, text: str) -> None:
        self._paragraph([self.paint("title", line) for line in textwrap.wrap(text, self._text_width)])

    def chapter(self, number: int, title: str) -> None:
        head = f"{number}. {title} "
        self._paragraph(["", self.paint("chapter", head + self._rule * max(0, self._text_width - len(head)))])

    def say(self, text: str) -> None:
        """A paragraph."""
        self._paragraph([textwrap.fill(text, self._text_width, initial_indent=_MARGIN, subsequent_indent=_MARGIN)])

    def points(self, entries: list[tuple[str, str]]) -> None:
        """Names, and what is to be said of each."""
        indent = max(len(name) for name, _ in entries) + 2
        lines = []
        for name, text in entries:
            head = f"{_MARGIN * 2}{name.ljust(indent)}"
            lines.append(textwrap.fill(text, self._text_width, initial_indent=head, subsequent_indent=" " * len(head)))
        self._paragraph(lines)

    def command(self, side: str, directory: str, command: str) -> None:
        """A command as it is typed on one of the two sides. What is too long goes on beneath its beginning."""
        prompt = f"{side}:{directory}$ "
        first, *rest = self._folded(prompt + command, _MARGIN, len(prompt))
        self._tell([first.replace(prompt, self.paint(side, prompt), 1), *rest])

    def output(self, lines: list[str], most: int, aside: str = "") -> None:
        """What a command says, the first `most` lines of it. `aside` says something in its place."""
        told = [part for line in lines[:most] for part in self._folded(line, _MARGIN * 2, 4)]
        if len(lines) > most:
            aside = f"{self._dots} {len(lines) - most} more lines"
        if aside:
            told.append(self.paint("aside", f"{_MARGIN * 2}{aside}"))
        if told:
            self._tell(told)
            self._tell([""])

    def _paragraph(self, lines: list[str]) -> None:
        self._tell([*([] if self._gap else [""]), *lines, ""])

    def _tell(self, lines: list[str]) -> None:
        self._gap = not lines[-1]
        print("\n".join(lines), flush=True)

    def _folded(self, line: str, margin: str, hanging: int) -> list[str]:
        """The line within the terminal's width, broken between words or columns where it can be."""
        width = self._output_width
        line = margin + line
        if width is None or len(line) <= width:
            return [line.rstrip()]
        parts: list[str] = []
        indent = " " * (len(margin) + (hanging if hanging < width // 2 else 4))
        while len(line) > width:
            blanks = [found.start() for found in re.finditer(r" +", line[: width + 1]) if found.start() > len(indent)]
            at = blanks[-1] if blanks else width
            parts.append(line[:at].rstrip())
            line = indent + line[at:].lstrip()
        return [*parts, line.rstrip()]
