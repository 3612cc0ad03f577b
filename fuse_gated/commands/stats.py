"""`fuse-gatectl stats`: what the sessions have done, operation by operation, and how long it took."""

import argparse
import sys
import time
from typing import Any, Final

from fuse_gated import control
from fuse_gated.commands.output import Style, plain, print_json, shown_size, shown_time, table
from fuse_gated.errors import UsageError
from fuse_gated.turnstile.figures import Figures, Operation, quantile

_HEADINGS: Final = (
    "OPERATION", "COUNT", "RATE", "ERRORS", "FAULTS", "BYTES", "P50", "P99", "GATE P50", "WIRE+CLIENT P50", "HELD", "UNASKED",
)  # fmt: skip
_LONGEST: Final = 3600.0


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    made = subparsers.add_parser(
        "stats",
        parents=[common],
        help="what the sessions have done, and how long it took",
        description="Shows each operation's count, rate, errors and times: of one session, or of all together; since they were "
        "opened, or with --over for so many seconds from now on.",
    )
    made.add_argument("session", metavar="SESSION", nargs="?", default="", help="its name, or TENANT/EXPORT (default: all)")
    made.add_argument("--over", metavar="SECONDS", type=float, help="wait so long, and show what came meanwhile")
    made.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises what `control.call` raises."""
    if options.over is not None and not 0 < options.over <= _LONGEST:
        raise UsageError(f"--over {options.over:g} is no time to wait", "seconds, 3600 at most")
    seen = control.figures(options.runtime, session=options.session)
    before = {one.session: Figures.read(one.measures) for one in seen.sessions}
    if options.over is None:
        shown = list(before.values())
        # Of several, since the first was opened.
        seconds = max(0.0, time.time() - min((one.since for one in seen.sessions), default=time.time()))
    else:
        began = time.monotonic()
        time.sleep(options.over)
        seen = control.figures(options.runtime, session=options.session)
        seconds = time.monotonic() - began
        nothing = Figures.read(b"")
        shown = [Figures.read(one.measures).since(before.get(one.session, nothing)) for one in seen.sessions]
    figures = shown[0] if len(shown) == 1 else Figures.sum(shown)
    if options.json:
        print_json(as_json(figures, len(shown), seconds))
    else:
        _show(figures, [f"{one.tenant}/{one.export}" for one in seen.sessions], seconds)
    return 0


def as_json(figures: Figures, sessions: int, seconds: float) -> dict[str, Any]:
    """For programs: times in seconds."""
    return {
        "sessions": sessions,
        "seconds": round(seconds, 3),
        "operations": figures.count,
        "errors": figures.errors,
        "faults": figures.faults,
        "refused": figures.refused,
        "untold": figures.untold,
        "slow": figures.slow,
        "in_flight": figures.in_flight,
        "waiting": figures.waiting,
        "bytes_read": figures.bytes_read,
        "bytes_written": figures.bytes_written,
        "bytes_copied": figures.bytes_copied,
        "cache_hits": figures.cache_hits,
        "cache_misses": figures.cache_misses,
        "p50": quantile(figures.whole, 0.5),
        "p99": quantile(figures.whole, 0.99),
        "by_operation": {operation.name: _operation(operation, seconds) for operation in figures.operations},
    }


def _operation(operation: Operation, seconds: float) -> dict[str, Any]:
    phases = {"whole": operation.whole, "gate": operation.gate, "held": operation.held, "remote": operation.remote}
    return {
        "count": operation.count,
        "rate": operation.count / seconds if seconds else 0.0,
        "errors": operation.errors,
        "faults": operation.faults,
        "asked": operation.asked,
        "bytes": operation.bytes,
        "p50": quantile(operation.whole, 0.5),
        "p99": quantile(operation.whole, 0.99),
        "gate_seconds": operation.gate_seconds,
        "held_seconds": operation.held_seconds,
        "remote_seconds": operation.remote_seconds,
        "client_seconds": operation.client_seconds,
        "histograms": {phase: list(histogram) for phase, histogram in phases.items()},
    }


def _show(figures: Figures, sessions: list[str], seconds: float) -> None:
    style = Style(sys.stdout)
    which = plain(sessions[0]) if len(sessions) == 1 else f"{len(sessions)} sessions"
    ratio = figures.hit_ratio
    cache = f", cache hits {shown_part(ratio)}" if ratio is not None else ""
    print(style.paint("strong", f"{which}, {shown_time(seconds)}: {figures.count} operations{cache}"))
    print(
        f"read {shown_size(figures.bytes_read)}, written {shown_size(figures.bytes_written)}; "
        f"{figures.in_flight} in flight, {figures.waiting} waiting; {figures.refused} refused, {figures.slow} slow"
    )
    if figures.untold:
        print(style.paint("bad", f"{figures.untold} operations failed because no audit record could be written"))
    rows = [_row(operation, seconds) for operation in sorted(figures.operations, key=lambda one: -one.count)]
    if not rows:
        return
    heading, *lines = right_aligned(_HEADINGS, rows)
    print()
    print(style.paint("strong", heading))
    for row, line in zip(rows, lines, strict=True):
        print(style.paint("warn" if row[4] != "0" else "", line))


def _row(operation: Operation, seconds: float) -> tuple[str, ...]:
    return (
        operation.name,
        str(operation.count),
        shown_rate(operation.count / seconds if seconds else 0.0),
        str(operation.errors),
        str(operation.faults),
        shown_size(operation.bytes) if operation.bytes else "",
        shown_duration(quantile(operation.whole, 0.5)),
        shown_duration(quantile(operation.whole, 0.99)),
        shown_duration(quantile(operation.gate, 0.5)),
        shown_duration(quantile(operation.remote, 0.5)),
        shown_duration(operation.held_seconds) if operation.held_seconds else "",
        shown_part(1 - operation.asked / operation.count),
    )


def right_aligned(headings: tuple[str, ...], rows: "list[tuple[str, ...]]") -> list[str]:
    """Lines of columns, the headings first; numbers stand under each other from the second column on."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    heading, *lines = [
        (row[0], *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))) for row in (headings, *rows)
    ]
    return table(heading, lines)


def shown_duration(seconds: float | None) -> str:
    """Three digits at most, in the unit that fits; '-' for none."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:.3g} {unit}" if seconds < 999.5 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e6:.3g} us"


def shown_rate(a_second: float) -> str:
    return f"{a_second:.0f}/s" if a_second >= 10 else f"{a_second:.2g}/s"


def shown_part(part: float | None) -> str:
    """A ratio in per cent; '-' for none."""
    return "-" if part is None else f"{100 * part:.0f}%"
