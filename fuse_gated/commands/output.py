"""What fuse-gatectl prints: aligned tables, colours on a terminal only, JSON for programs, errors for people.

Much of what is shown was named by a client or another user of the server, so nothing unprintable reaches a terminal as it is.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, TextIO

from fuse_gated.errors import ConfigurationError, GateError

_COLOURS: Final = {"good": "32", "bad": "31", "warn": "33", "strong": "1", "weak": "2"}
_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Style:
    """Colours, where the output is a terminal and its user has not declined them (no-color.org)."""

    def __init__(self, output: TextIO) -> None:
        self._coloured = output.isatty() and not os.environ.get("NO_COLOR")

    def paint(self, kind: str, text: str) -> str:
        """`kind`: good, bad, warn, strong, weak, or '' for none."""
        return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if self._coloured and kind else text


def plain(value: object) -> str:
    """Text that cannot steer a terminal: what is not printable stands as an escape."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of left-aligned columns, the headings first."""
    cells = [tuple(headings), *(tuple(plain(value) for value in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def pairs(entries: Iterable[tuple[str, object]]) -> list[str]:
    """Lines of names and values."""
    shown = [(plain(name), plain(value)) for name, value in entries]
    width = max((len(name) for name, _ in shown), default=0)
    return [f"{name.ljust(width)}  {value}".rstrip() for name, value in shown]


def shown_size(count: float) -> str:
    """A number of bytes, in the unit that leaves at most four digits."""
    unit = 0
    while count >= 1024 and unit < len(_SIZES) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_SIZES[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {_SIZES[unit]}"


def shown_time(seconds: float) -> str:
    """A length of time in its two largest units: 42s, 3m 05s, 2h 05m, 4d 03h."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02}h"


def print_json(value: Any) -> None:
    """One JSON document; what is not ASCII is escaped, so that it passes any terminal and any locale."""
    print(json.dumps(value, indent=2, default=str))


def complain(program: str, error: GateError) -> int:
    """Tells an error on stderr, every fault of a configuration included. Returns the exit status."""
    print(f"{program}: {plain(error.message)}", file=sys.stderr)
    if isinstance(error, ConfigurationError):
        for fault in error.faults:
            print(f"  {plain(fault)}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {plain(error.hint)}", file=sys.stderr)
    return error.exit_status
