"""What `fuse-gatectl top` shows, as lines of text with a style: made from two looks, fitted to a width. No terminal here."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from fuse_gated import control
from fuse_gated.commands.output import plain, shown_size, shown_time
from fuse_gated.commands.stats import shown_duration, shown_part
from fuse_gated.turnstile.figures import Figures, quantile

_BARS: Final = "▁▂▃▄▅▆▇█"
_NAME_WIDTH: Final = 16
"""The least that a session's name gets."""


class Look(NamedTuple):
    """`at`: when it was made, in seconds of time.monotonic()."""

    at: float
    seen: control.Seen


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One session, between two looks. Rates are a second; p50 and p99 are seconds, None where nothing was done."""

    name: str
    session: str
    state: str
    address: str
    operations: float
    read: float
    written: float
    p50: float | None
    p99: float | None
    hits: float | None
    in_flight: int
    waiting: int
    faults: float


class Column(NamedTuple):
    """`needed`: the higher, the sooner it is left out where there is no room."""

    heading: str
    width: int
    needed: int
    shown: Callable[[Row], str]
    key: Callable[[Row], Any]
    """What rows are sorted by, the largest first."""


def _size(count: float) -> str:
    return shown_size(count) if count >= 1 else "0"


def shown_count(number: float) -> str:
    """A number in four characters or so: 0, 0.3, 12, 3410, 18.2k."""
    if number >= 10_000:
        return f"{number / 1000:.1f}k" if number < 999_950 else f"{number / 1e6:.1f}M"
    return f"{number:.0f}" if number >= 10 or number == round(number) else f"{number:.1f}"


COLUMNS: Final = (
    Column("STATE", 9, 3, lambda row: row.state, lambda row: row.state),
    Column("OPS/S", 7, 0, lambda row: shown_count(row.operations), lambda row: row.operations),
    Column("READ/S", 9, 1, lambda row: _size(row.read), lambda row: row.read),
    Column("WRITE/S", 9, 2, lambda row: _size(row.written), lambda row: row.written),
    Column("P50", 8, 5, lambda row: shown_duration(row.p50), lambda row: row.p50 or 0.0),
    Column("P99", 8, 1, lambda row: shown_duration(row.p99), lambda row: row.p99 or 0.0),
    Column("CACHE", 5, 6, lambda row: shown_part(row.hits), lambda row: row.hits or 0.0),
    Column("FLIGHT", 6, 4, lambda row: shown_count(row.in_flight), lambda row: row.in_flight),
    Column("HELD", 5, 7, lambda row: shown_count(row.waiting), lambda row: row.waiting),
    Column("FAULTS/S", 8, 8, lambda row: shown_count(row.faults), lambda row: row.faults),
    Column("CLIENT", 21, 9, lambda row: row.address, lambda row: row.address),
)
NAME: Final = Column("SESSION", 0, -1, lambda row: row.name, lambda row: row.name)
ALL: Final = (NAME, *COLUMNS)
BUSIEST: Final = 2
"""The column of ALL by which rows are sorted at first."""


class Line(NamedTuple):
    """`style` is one of output.Style's, or 'reverse' for a heading."""

    style: str
    text: str


def rows(before: Look, after: Look) -> list[Row]:
    """The sessions of the later look; one that the earlier has not has done nothing before."""
    seconds = max(after.at - before.at, 1e-3)
    earlier = {one.session: one.measures for one in before.seen.sessions}
    made = []
    for one in after.seen.sessions:
        now = Figures.read(one.measures)
        come = now.since(Figures.read(earlier.get(one.session, b"")))
        made.append(
            Row(
                name=plain(f"{one.tenant}/{one.export}"),
                session=one.session,
                state=plain(one.state),
                address=plain(one.address),
                operations=come.count / seconds,
                read=come.bytes_read / seconds,
                written=come.bytes_written / seconds,
                p50=quantile(come.whole, 0.5),
                p99=quantile(come.whole, 0.99),
                hits=come.hit_ratio,
                in_flight=now.in_flight,
                waiting=now.waiting,
                faults=come.faults / seconds,
            )
        )
    return made


def in_order(of: Sequence[Row], column: int, *, reverse: bool = False) -> list[Row]:
    """Sorted by a column of ALL: numbers the largest first, text in the alphabet's order. Equals stay in their names' order."""
    key = ALL[column].key
    made = sorted(of, key=lambda row: row.name)
    text = bool(made) and isinstance(key(made[0]), str)
    return sorted(made, key=key, reverse=text == reverse)


def totals(of: Sequence[Row]) -> dict[str, Any]:
    """All sessions together."""
    states: dict[str, int] = {}
    for row in of:
        states[row.state] = states.get(row.state, 0) + 1
    return {
        "sessions": len(of),
        "states": states,
        "operations": sum(row.operations for row in of),
        "read": sum(row.read for row in of),
        "written": sum(row.written for row in of),
        "in_flight": sum(row.in_flight for row in of),
        "waiting": sum(row.waiting for row in of),
        "faults": sum(row.faults for row in of),
    }


def summary(seen: control.Seen, of: Sequence[Row]) -> list[Line]:
    """The lines above the table."""
    sums = totals(of)
    counted = "1 session" if len(of) == 1 else f"{len(of)} sessions"
    others = ", ".join(f"{count} {state}" for state, count in sorted(sums["states"].items()) if state != "mounted")
    counted += f" ({others})" if others else ""
    first = f"fuse-gated {plain(seen.version)}, up {shown_time(seen.uptime)}: {counted}{', draining' if seen.draining else ''}"
    second = (
        f"{shown_count(sums['operations'])} operations/s, read {_size(sums['read'])}/s, written {_size(sums['written'])}/s, "
        f"{sums['in_flight']} in flight, {sums['waiting']} held back, {shown_count(sums['faults'])} faults/s"
    )
    return [Line("strong", first), Line("bad" if sums["faults"] else "", second)]


def history(values: Sequence[float], width: int) -> str:
    """The last `width` values as bars."""
    last = list(values)[-width:]
    most = max(last, default=0.0)
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] if most else _BARS[0] for value in last)


def table(of: Sequence[Row], width: int | None, column: int, *, reverse: bool = False) -> list[Line]:
    """The heading and a line for each row, as wide as there is room; without a `width` as wide as need be."""
    shown = list(COLUMNS)
    longest = max((len(row.name) for row in of), default=0)
    name_width = max(_NAME_WIDTH, longest)
    if width is not None:
        while len(shown) > 1 and min(name_width, 24) + sum(one.width + 2 for one in shown) > width:
            shown.remove(max(shown, key=lambda one: one.needed))
        name_width = min(name_width, max(_NAME_WIDTH, width - sum(one.width + 2 for one in shown)))
    mark = "^" if reverse else "v"
    headings = [NAME.heading + (mark if column == 0 else "")]
    headings += [one.heading + (mark if ALL[column] is one else "") for one in shown]
    lines = [Line("reverse", _line(headings, shown, name_width))]
    for row in of:
        cells = [_cut(row.name, name_width), *(_cut(one.shown(row), one.width) for one in shown)]
        lines.append(Line(_style(row), _line(cells, shown, name_width)))
    return [Line(line.style, line.text if width is None else line.text[:width]) for line in lines]


def _style(row: Row) -> str:
    if row.state == "silenced" or row.faults:
        return "bad"
    if row.state == "suspended":
        return "warn"
    return "" if row.operations or row.in_flight else "weak"


def _line(cells: Sequence[str], shown: Sequence[Column], name_width: int) -> str:
    parts = [cells[0].ljust(name_width)]
    for column, cell in zip(shown, cells[1:], strict=True):
        parts.append(cell.ljust(column.width) if column.heading in ("STATE", "CLIENT") else cell.rjust(column.width))
    return "  ".join(parts).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "~"
