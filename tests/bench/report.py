"""The figures as tables, on a terminal and in Markdown: every step beside sshfs, the link and a plain directory, with what was
promised and whether it was kept."""

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from operations import OPERATIONS
from suite import CONTESTANTS, EVERYBODY, LEASED, LINK, LOCAL, OURS, OURS_TLS, ROWS, SSHFS, SSHFS_BEST
from workloads import Target

_KEPT, _SHORT = "✓", "short"
_PROMISED_AT: Final = "20"
_BUSY: Final = 10e-3
"""Seconds that an operation may take on average."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """Seconds that one unit takes. `least`: it was cut short before anything could be counted, so it is at least that."""

    seconds: float
    whole: float = 1.0
    capped: bool = False
    least: bool = False

    def text(self) -> str:
        """For all of it; where it was cut short, what all would have taken at that pace (~)."""
        mark = ">" if self.least else "~" if self.capped else ""
        return mark + duration(self.seconds * self.whole)


@dataclass(frozen=True)
class Line:
    """One step at one distance: values by contestant."""

    distance: str
    step: str
    values: dict[str, Value]
    target: Target

    def faster(self, than: str) -> float | None:
        """How many times less time we take than `than`."""
        ours, others = self.values.get(OURS), self.values.get(than)
        return others.seconds / ours.seconds if ours and others and ours.seconds else None

    def times(self, than: str) -> str:
        """The same in words: at least (≥) or at most (≤) where one was cut short before anything could be counted."""
        ratio = self.faster(than)
        if ratio is None:
            return ""
        bound = ("≥" if self.values[than].least else "") + ("≤" if self.values[OURS].least else "")
        return bound + _ratio(ratio)

    def verdicts(self) -> list[tuple[str, bool | None]]:
        """What was promised at this distance, and whether it was kept (None: it could not be compared)."""
        at_20, found = self.distance == _PROMISED_AT, []
        if self.target.sshfs is not None and (at_20 or (self.target.near and self.distance == "0")):
            found.append((f"{self.target.sshfs:g} times sshfs{self._out_of_reach()}", self._at_least(self.target.sshfs, SSHFS)))
        if at_20 and self.target.link is not None:
            found.append((f"{self.target.link:g} times the link", self._at_least(1 / self.target.link, LINK)))
        if at_20 and self.target.local is not None:
            found.append((f"{self.target.local:g} times local", self._at_least(1 / self.target.local, LOCAL)))
        return found

    def _out_of_reach(self) -> str:
        """Where sshfs itself is so near to the link, or to a plain directory, that nobody could be so much faster."""
        other = self.values.get(SSHFS)
        for what, name in ((LINK, "the link"), (LOCAL, "a plain directory")):
            best = self.values.get(what)
            if best and other and self.target.sshfs and best.seconds:
                ratio = other.seconds / best.seconds
                return "" if ratio >= self.target.sshfs else f" ({name} allows {ratio:.3g})"
        return ""

    def _at_least(self, times: float, than: str) -> bool | None:
        ratio = self.faster(than)
        if ratio is None:
            return None
        # One that was cut short before anything could be counted leaves it open in one direction.
        if ratio >= times:
            return None if self.values[OURS].least else True
        return None if self.values[than].least else False


def _ratio(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.2g}"


def duration(seconds: float) -> str:
    for least, factor, unit in ((100, 1, "s"), (1, 1, "s"), (1e-3, 1e3, "ms")):
        if seconds >= least:
            return f"{seconds * factor:.0f} {unit}" if seconds * factor >= 100 else f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def lines(report: Figures) -> list[Line]:
    """Every step but the single operations, by distance and row."""
    found = []
    for distance, by_row in sorted(report["cells"].items(), key=lambda item: float(item[0])):
        for name, row in ROWS.items():
            if name not in by_row or row.only_near:
                continue
            for step, target in row.steps.items():
                values = dict(_values(by_row[name], step))
                if values.keys() - {LINK}:
                    found.append(Line(distance, step, values, target))
    return found


def _values(cells: Figures, step: str) -> Iterator[tuple[str, Value]]:
    wholes = [cell["figures"][step]["whole"] for who, cell in cells.items() if who != LINK and step in cell.get("figures", {})]
    for who in EVERYBODY:
        figure = cells.get(who, {}).get("figures", {}).get(step)
        if figure is None or not wholes:
            continue
        if who == LINK:
            yield who, Value(figure["seconds"] / (1 if figure.get("each") else wholes[0]), 1 if figure.get("each") else wholes[0])
            continue
        # What counts itself by time (random reads) is shown for one.
        whole = 1 if figure["unit"] == "reads" else figure["whole"]
        least = figure["units"] == 0
        yield who, Value(figure["seconds"] / (figure["units"] or figure["whole"]), whole, figure["capped"], least)


HEADS: Final = ("", *CONTESTANTS, "sshfs takes", "best takes", "TLS takes", "promised at 20 ms")


def table(of: list[Line]) -> list[tuple[str, ...]]:
    """Rows of cells, in the order of HEADS."""
    rows = []
    for line in of:
        ratios = (line.times(SSHFS), line.times(SSHFS_BEST), line.times(OURS_TLS))
        said = "; ".join(f"{what} {_mark(kept)}" for what, kept in line.verdicts())
        rows.append((line.step, *(line.values[who].text() if who in line.values else "" for who in CONTESTANTS), *ratios, said))
    return rows


LEASED_HEADS: Final = ("", "distance", OURS, LEASED, "without takes", SSHFS, "sshfs takes")


def leased(of: list[Line]) -> list[tuple[str, ...]]:
    """What leases bring where files are made."""
    rows = []
    for line in of:
        ours = line.values.get(LEASED)
        if ours is not None and ours.seconds:
            others = [line.values.get(who) for who in (OURS, SSHFS)]
            shown = [(other.text(), _ratio(other.seconds / ours.seconds)) if other else ("", "") for other in others]
            rows.append((line.step, f"{line.distance} ms", shown[0][0], ours.text(), shown[0][1], *shown[1]))
    return rows


def _mark(kept: bool | None) -> str:
    return "?" if kept is None else _KEPT if kept else _SHORT


def single_operations(report: Figures) -> list[tuple[str, ...]]:
    """Mean and 99th percentile at 0 ms, of every operation."""
    cells = report["cells"].get("0", {}).get("operations", {})
    rows = []
    for step in OPERATIONS if cells else ():
        shown, mean = [], 0.0
        for who in (LOCAL, SSHFS, OURS, OURS_TLS):
            figure = cells.get(who, {}).get("figures", {}).get(step)
            if figure is None:
                shown.append("")
            elif "error" in figure["more"]:
                shown.append(figure["more"]["error"])
            else:
                shown.append(f"{duration(figure['more']['mean'])}, {duration(figure['more']['p99'])}")
                mean = max(mean, figure["more"]["mean"]) if who in (OURS, OURS_TLS) else mean
        rows.append((step, *shown, _mark(mean < _BUSY) if mean else ""))
    return rows


OPERATION_HEADS: Final = ("mean, p99", LOCAL, SSHFS, OURS, OURS_TLS, "mean under 10 ms")


def remarks(report: Figures) -> list[str]:
    """What was wrong, not seen, or missing; a line each."""
    found, seen = [], {}
    for distance, by_row in report["cells"].items():
        for row, cells in by_row.items():
            for who, cell in cells.items():
                if cell.get("gap"):
                    found.append(f"{distance} ms, {row}, {who}: gap: {_short(cell['gap'])}")
                if cell.get("seen") and cell.get("restored") is False:
                    found.append(f"{distance} ms, {row}, {who}: that a change was undone was not seen in time")
                if cell.get("seen") is not None:
                    seen.setdefault((float(distance), who), []).append((row, cell["seen"]))
                for step, figure in cell.get("figures", {}).items():
                    if figure.get("right") is False:
                        found.append(f"{distance} ms, {step}, {who}: what came out is not what the client has")
                    if figure.get("more", {}).get("rehashed"):
                        found.append(f"{distance} ms, {step}, {who}: git read files anew")
    for (distance, who), of in sorted(seen.items(), key=lambda item: (item[0][0], EVERYBODY.index(item[0][1]))):
        late = [row for row, took in of if took is False]
        took = [took for _, took in of if took is not False]
        said = f"seen after {duration(max(took))} at most" if took else "never seen"
        found.append(
            f"{distance:g} ms, {who}: a change on the client was {said}" + (f"; not at all in: {', '.join(late)}" if late else "")
        )
    return found


def _short(reason: str) -> str:
    first, *more = [line for line in reason.splitlines() if line.strip()]
    return f"{first} … {more[-1].strip()}" if more else first


def processor_time(report: Figures) -> list[tuple[str, ...]]:
    """Microseconds of each process for one unit of a step, at 0 ms."""
    rows = []
    for name, cells in report["cells"].get("0", {}).items():
        for step in ROWS[name].steps if name != "operations" else ():
            shown = []
            for who in (SSHFS, OURS):
                figure = cells.get(who, {}).get("figures", {}).get(step)
                units = figure["units"] if figure else 0
                spent = figure["cpu"].items() if figure else ()
                shown.append(", ".join(f"{process} {duration(cpu / units)}" for process, cpu in spent) if units else "")
            if any(shown):
                rows.append((step, *shown))
    return rows


def in_words(report: Figures, distance: str) -> str:
    """How much was done at that distance."""
    sizes, plan = report["plan"]["sizes"].get(distance, {}), report["plan"]
    if not sizes:
        return ""
    much = (
        f"{sizes['files']} source files, {sizes['tiny']} tiny files, {sizes['units']} C files, {sizes['large'] // 2**20} MiB, "
        f"{sizes['transactions']} transactions"
    )
    line = f", {plan['megabits']} Mbit/s" if float(distance) else ", everything on one CPU"
    return f"{distance} ms{line}: {much}; a step was cut short after {plan['cap']:g} s."


def markdown(report: Figures) -> str:
    """All of it."""
    found = lines(report)
    parts = []
    for distance in dict.fromkeys(line.distance for line in found):
        of = [line for line in found if line.distance == distance]
        parts.append(f"### At {distance} ms\n\n{_wrapped(in_words(report, distance))}\n\n{_markdown(HEADS, table(of))}")
    if rows := leased(found):
        parts.append(f"### With `writes: leased`\n\n{_markdown(LEASED_HEADS, rows)}")
    if rows := single_operations(report):
        parts.append(f"### Every operation at 0 ms\n\n{_markdown(OPERATION_HEADS, rows)}")
    if rows := processor_time(report):
        parts.append(f"### Processor time of one file, read or transaction at 0 ms\n\n{_markdown(('', SSHFS, OURS), rows)}")
    if said := remarks(report):
        parts.append("### Remarks\n\n" + "\n".join(_wrapped(f"* {remark}", "  ") for remark in said))
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 128, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _markdown(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    all_rows = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in all_rows)


def show(report: Figures) -> None:
    """On the terminal."""
    found = lines(report)
    for distance in dict.fromkeys(line.distance for line in found):
        print(f"\n{in_words(report, distance)}")
        _print(HEADS, table([line for line in found if line.distance == distance]))
    for title, heads, rows in (
        ("With writes: leased", LEASED_HEADS, leased(found)),
        ("Every operation at 0 ms", OPERATION_HEADS, single_operations(report)),
        ("Processor time of one file, read or transaction at 0 ms", ("", SSHFS, OURS), processor_time(report)),
    ):
        if rows:
            print(f"\n{title}")
            _print(heads, rows)
    print()
    for remark in remarks(report):
        print(f"* {remark}")


def _print(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *padded[1:-1], row[-1]]).rstrip())


def insert(document: Path, found: str, picture: str) -> None:
    """Put the tables into a document, between the two comments that say so, and the picture beside it. Raises SystemExit where
    it has no such comments."""
    text = document.read_text()
    link = f"![How many times as fast as sshfs]({document.with_suffix('.svg').name})"
    new, times = re.subn(
        "(?s)<!-- figures -->.*<!-- end of figures -->",
        lambda _: f"<!-- figures -->\n{link}\n\n{found}<!-- end of figures -->",
        text,
    )
    if not times:
        raise SystemExit(f"bench: {document} has no <!-- figures --> and <!-- end of figures -->")
    document.write_text(new)
    document.with_suffix(".svg").write_text(picture)


def read(file: Path) -> Figures:
    found: Figures = json.loads(file.read_text())
    return found
