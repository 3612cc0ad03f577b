"""`fuse-gatectl top`: the sessions as they work, the busiest first; live on a terminal, once elsewhere."""

import argparse
import curses
import locale
import os
import sys
import time
from collections import deque
from typing import Any, Final

import msgspec

from fuse_gated import control
from fuse_gated.commands import top_view
from fuse_gated.commands.output import Style, plain, print_json
from fuse_gated.commands.top_view import ALL, BUSIEST, Line, Look
from fuse_gated.errors import GateError, UsageError

_LONGEST: Final = 3600.0
_HISTORY: Final = 400
_REDRAW: Final = 12  # Ctrl-L
_KEYS: Final = "q quit   left/right column   r reverse   up/down scroll   space pause"
_STYLES: Final = {"bad": curses.COLOR_RED, "warn": curses.COLOR_YELLOW, "good": curses.COLOR_GREEN}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    made = subparsers.add_parser(
        "top",
        parents=[common],
        help="the sessions as they work, live",
        description="Shows the sessions and what they do, the busiest first. On a terminal it goes on until 'q': left and right "
        "choose the column to sort by, 'r' turns the order round, up and down scroll, space stops and goes on.",
    )
    made.add_argument("--interval", metavar="SECONDS", type=float, default=2.0, help="between two looks (%(default)g)")
    made.add_argument("--once", action="store_true", help="look twice, print, and end; so it is where there is no terminal")
    made.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises what `control.call` raises."""
    if not 0.01 <= options.interval <= _LONGEST:
        raise UsageError(f"--interval {options.interval:g} is no time to wait", "seconds, 0.01 to 3600")
    live = not (options.once or options.json) and sys.stdout.isatty() and sys.stdin.isatty()
    if live and os.environ.get("TERM", "dumb") not in ("", "dumb"):
        # So that bars can be shown where the terminal's character set has them.
        locale.setlocale(locale.LC_ALL, "")
        first = _look(options.runtime)
        curses.wrapper(lambda screen: Top(screen, options.runtime, options.interval, first).run())
        return 0
    before = _look(options.runtime)
    time.sleep(options.interval)
    after = _look(options.runtime)
    rows = top_view.in_order(top_view.rows(before, after), BUSIEST)
    if options.json:
        print_json({"interval": round(after.at - before.at, 3), "totals": top_view.totals(rows), "sessions": _builtins(rows)})
        return 0
    style = Style(sys.stdout)
    for line in [*top_view.summary(after.seen, rows), Line("", ""), *top_view.table(rows, None, BUSIEST)]:
        print(style.paint("strong" if line.style == "reverse" else line.style, line.text))
    return 0


def _look(runtime: str) -> Look:
    seen = control.figures(runtime, brief=True)
    return Look(time.monotonic(), seen)


def _builtins(rows: list[top_view.Row]) -> Any:
    return msgspec.to_builtins(rows)


class Top:
    """One terminal. `run` returns when its user has seen enough."""

    def __init__(self, screen: "curses.window", runtime: str, interval: float, first: Look) -> None:
        self._screen = screen
        self._runtime = runtime
        self._interval = interval
        self._before = self._after = first
        self._history: deque[float] = deque(maxlen=_HISTORY)
        self._rows: list[top_view.Row] = []
        self._trouble = ""
        self._column = BUSIEST
        self._reverse = False
        self._paused = False
        self._top = 0
        self._attributes = {"strong": curses.A_BOLD, "weak": curses.A_DIM, "reverse": curses.A_REVERSE, "": curses.A_NORMAL}
        self._bars = locale.getpreferredencoding(do_setlocale=False).upper().replace("-", "") == "UTF8"

    def run(self) -> None:
        curses.curs_set(0)
        if curses.has_colors() and not os.environ.get("NO_COLOR"):
            curses.use_default_colors()
            for number, (name, colour) in enumerate(_STYLES.items(), 1):
                curses.init_pair(number, colour, -1)
                self._attributes[name] = curses.color_pair(number)
        # So that the first screen is not empty for a whole interval.
        due = time.monotonic() + min(0.5, self._interval)
        self._draw()
        while True:
            self._screen.timeout(max(0, int((due - time.monotonic()) * 1000)))
            key = self._screen.getch()
            if key in (ord("q"), ord("Q"), 27):
                return
            self._pressed(key)
            if time.monotonic() >= due:
                if not self._paused:
                    self._refresh()
                due = time.monotonic() + self._interval
            self._draw()

    def _pressed(self, key: int) -> None:
        if key == curses.KEY_RIGHT:
            self._column = (self._column + 1) % len(ALL)
        elif key == curses.KEY_LEFT:
            self._column = (self._column - 1) % len(ALL)
        elif key == ord("r"):
            self._reverse = not self._reverse
        elif key == ord(" "):
            self._paused = not self._paused
        elif key == _REDRAW:
            # Another program may have written to the terminal.
            self._screen.clearok(True)
        elif key in (curses.KEY_UP, curses.KEY_DOWN, curses.KEY_PPAGE, curses.KEY_NPAGE, curses.KEY_HOME):
            page = max(1, self._screen.getmaxyx()[0] - 6)
            step = {curses.KEY_UP: -1, curses.KEY_DOWN: 1, curses.KEY_PPAGE: -page, curses.KEY_NPAGE: page}.get(key, -self._top)
            self._top = max(0, min(self._top + step, len(self._rows) - 1))

    def _refresh(self) -> None:
        try:
            look = _look(self._runtime)
        except GateError as error:
            self._trouble = plain(str(error))
            return
        self._trouble = ""
        self._before, self._after = self._after, look
        self._rows = top_view.rows(self._before, self._after)
        self._history.append(top_view.totals(self._rows)["operations"])

    def _draw(self) -> None:
        height, width = self._screen.getmaxyx()
        rows = top_view.in_order(self._rows, self._column, reverse=self._reverse)
        lines = top_view.summary(self._after.seen, rows)
        if self._trouble:
            lines[1] = Line("bad", self._trouble)
        bars = top_view.history(self._history, width - 1) if self._bars else ""
        paused = "   PAUSED" if self._paused else ""
        heading, *body = top_view.table(rows, width - 1, self._column, reverse=self._reverse)
        heading = Line(heading.style, heading.text.ljust(width - 1))
        self._top = max(0, min(self._top, len(body) - 1))
        room = max(0, height - 6)
        lines += [Line("weak", bars), heading, *body[self._top : self._top + room]]
        self._screen.erase()
        for number, line in enumerate(lines[: max(0, height - 1)]):
            self._put(number, line, width)
        self._put(height - 1, Line("weak", _KEYS + paused), width)
        self._screen.refresh()

    def _put(self, number: int, line: Line, width: int) -> None:
        if number >= 0 and width > 1:
            self._screen.addnstr(number, 0, line.text, width - 1, self._attributes.get(line.style, curses.A_NORMAL))
