"""All rows with all contestants at all distances, each cell on a fresh mount with a fresh export; what fails is a gap.

After each cell the figures are written, so that a run that was ended goes on where it was (`--resume`).
"""

import contextlib
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cells import Cell
from contestants import BEST, CHECKOUT, Mounted, fuse_gated, sshfs
from link import MEGABITS, Link, link
from workloads import READING, Row, Sizes
from writing import WRITING

ROWS: Final = {row.name: row for row in (*READING, *WRITING)}
DISTANCES: Final = (0, 2, 20, 100)
"""Milliseconds of round trip."""
LOCAL, LINK, SSHFS, SSHFS_BEST, OURS, OURS_TLS = "local", "link", "sshfs", "sshfs, best", "fuse-gated", "fuse-gated, TLS"
CONTESTANTS: Final = (LOCAL, LINK, SSHFS, SSHFS_BEST, OURS, OURS_TLS)
LEASED: Final = "fuse-gated, leased"
"""With `writes: leased`: where files are made."""
EVERYBODY: Final = (*CONTESTANTS, LEASED)
_LEASED_ROWS: Final = frozenset({"git", "clone", "build", "unpack"})
_LEASED_TENANT: Final = "cache: {mode: watched}\n    writes: leased"
_FULL_AT: Final = (0, 20)

Figures = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is to be measured. `scale` is the size of a row (1: full) at 0 and 20 ms, `sample` the part of that at other
    distances; `cap` the seconds that one step of a cell may take."""

    file: Path
    distances: tuple[float, ...] = DISTANCES
    rows: tuple[str, ...] = tuple(ROWS)
    contestants: tuple[str, ...] = EVERYBODY
    scale: float = 1.0
    sample: float = 0.2
    cap: float = 180.0
    megabits: int = MEGABITS
    checkout: Path = CHECKOUT
    resume: bool = False
    scratch: Path = field(default=Path("/dev/shm"))  # outputs in memory: no disk is measured with them

    def sizes(self, distance: float) -> Sizes:
        return Sizes(self.scale if distance in _FULL_AT else self.scale * self.sample)

    def told(self) -> Figures:
        return {
            "scale": self.scale, "sample": self.sample, "cap": self.cap, "megabits": self.megabits,
            "sizes": {f"{distance:g}": _told(self.sizes(distance)) for distance in self.distances},
        }  # fmt: skip


def _told(sizes: Sizes) -> Figures:
    names = ("files", "tiny", "units", "large", "transactions", "seconds", "operations")
    return {"scale": sizes.scale, **{name: getattr(sizes, name) for name in names}}


def machine() -> Figures:
    return {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(), "arch": platform.machine()}


class Report:
    """The figures, in a file from the first cell on. Raises SystemExit where the file's are of other sizes than the plan's."""

    def __init__(self, plan: Plan) -> None:
        self.file = plan.file
        self.content: Figures = {"machine": machine(), "plan": plan.told(), "cells": {}}
        if plan.resume and self.file.exists():
            there = json.loads(self.file.read_text())
            same = ("scale", "sample", "cap", "megabits")
            if any(there["plan"][name] != self.content["plan"][name] for name in same):
                raise SystemExit(f"bench: {self.file} has figures of other sizes; name another file (--json), or remove it")
            there["plan"]["sizes"] |= self.content["plan"]["sizes"]
            self.content = there
        elif self.file.exists():
            self.file.replace(self.file.with_suffix(".previous.json"))

    def has(self, distance: float, row: str, contestant: str) -> bool:
        found = self.content["cells"].get(f"{distance:g}", {}).get(row, {}).get(contestant)
        return found is not None and "gap" not in found

    def enter(self, distance: float, row: str, contestant: str, cell: Figures) -> None:
        self.content["cells"].setdefault(f"{distance:g}", {}).setdefault(row, {})[contestant] = cell
        self.write()

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partly = self.file.with_name(self.file.name + ".part")
        partly.write_text(json.dumps(self.content, indent=1))
        partly.replace(self.file)


def run(plan: Plan, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)) -> Report:
    """Measure it. What is told meanwhile goes to `say`, a line each."""
    report = Report(plan)
    report.write()
    in_memory = plan.scratch if plan.scratch.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="fuse-gated-bench-") as name,
        tempfile.TemporaryDirectory(prefix="fuse-gated-bench-", dir=in_memory) as scratch,
    ):
        base = Path(name)
        base.chmod(0o755)
        for distance in plan.distances:
            with contextlib.ExitStack() as stack:
                if distance == 0:
                    stack.enter_context(_on_one_cpu())
                try:
                    line = stack.enter_context(link(distance, plan.megabits))
                except (RuntimeError, OSError) as error:
                    say(f"{distance:g} ms: {_reason(error)}")
                    for row, contestant in itertools.product(plan.rows, plan.contestants):
                        if _takes_part(row, contestant) and not report.has(distance, row, contestant):
                            report.enter(distance, row, contestant, {"gap": _reason(error)})
                    continue
                _at(plan, line, report, base, Path(scratch), say)
    return report


def _takes_part(row: str, contestant: str) -> bool:
    return contestant != LEASED or row in _LEASED_ROWS


def _at(plan: Plan, line: Link, report: Report, base: Path, scratch: Path, say: Callable[[str], None]) -> None:
    sizes = plan.sizes(line.round_trip)
    for name in plan.rows:
        row = ROWS[name]
        if row.only_near and line.round_trip:
            continue
        missing = [one for one in plan.contestants if _takes_part(name, one) and not report.has(line.round_trip, name, one)]
        if not missing:
            continue
        tree = base / "tree"
        try:
            if lacking := [program for program in row.needs if shutil.which(program) is None]:
                raise RuntimeError(f"this machine lacks: {', '.join(lacking)}")
            row.plant(tree, sizes)
            for contestant in missing:
                started = time.monotonic()
                cell = _cell(plan, line, row, sizes, contestant, tree, base, scratch)
                report.enter(line.round_trip, name, contestant, cell)
                took = time.monotonic() - started
                say(f"{line.round_trip:g} ms, {name}, {contestant}: {_in_short(cell)} ({took:.0f} s in all)")
        except Exception as error:
            # A row that cannot be set up is a gap for all.
            for contestant in missing:
                report.enter(line.round_trip, name, contestant, {"gap": _reason(error)})
            say(f"{line.round_trip:g} ms, {name}: {_reason(error)}")
        finally:
            for one in (*base.iterdir(), *scratch.iterdir()):
                shutil.rmtree(one, ignore_errors=True) if one.is_dir() else one.unlink()


def _cell(plan: Plan, line: Link, row: Row, sizes: Sizes, contestant: str, tree: Path, base: Path, scratch: Path) -> Figures:
    place, outputs = base / "cell", scratch / "cell"
    try:
        place.mkdir()
        place.chmod(0o755)
        outputs.mkdir()
        if contestant == LINK:
            if row.limit is None:
                return {"figures": {}}
            limits = row.limit(line, tree, outputs, plan.cap)
            return {"figures": {step: {"seconds": seconds, "each": row.each} for step, seconds in limits.items()}}
        export = place / "export"
        row.prepare(tree, export)
        # Written before anything is measured, or the disk would be busy with it meanwhile.
        os.sync()
        with _mounted(contestant, export, place, line, plan.checkout) as mounted:
            cell = Cell(mounted, export, outputs, plan.cap, line.round_trip)
            gap = ""
            try:
                row.work(cell, tree, sizes)
            except Exception as error:
                gap = _reason(error)
        figures = {step: figure.told() for step, figure in cell.figures.items()}
        found: Figures = {"figures": figures, "seen": cell.seen, "restored": cell.restored}
        return {**found, "gap": gap} if gap else found
    except Exception as error:
        return {"gap": _reason(error)}
    finally:
        _unmount(place)
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(outputs, ignore_errors=True)


@contextlib.contextmanager
def _mounted(contestant: str, export: Path, place: Path, line: Link, checkout: Path) -> Iterator[Mounted]:
    if contestant == LOCAL:
        yield Mounted(export, dict)
    elif contestant in (SSHFS, SSHFS_BEST):
        with sshfs(export, place / "sshfs", line, BEST if contestant == SSHFS_BEST else "") as mounted:
            yield mounted
    else:
        tenant = _LEASED_TENANT if contestant == LEASED else ""
        with fuse_gated(export, place, line, tls=contestant == OURS_TLS, tenant=tenant, checkout=checkout) as mounted:
            yield mounted


@contextlib.contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Where nothing is waited for, what an operation costs is what all its processes cost together."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(everywhere)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)


def _unmount(beneath: Path) -> None:
    """What a contestant that failed has left, so that removing does not go into it."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if line.split()[1].startswith(f"{beneath}/"):
            subprocess.run(["umount", "--lazy", line.split()[1]], check=False)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _in_short(cell: Figures) -> str:
    said = []
    for step, figure in cell.get("figures", {}).items():
        done = f" for {figure['units']:g} of {figure['whole']:g}" if figure.get("capped") else ""
        wrong = ", WRONG" if figure.get("right") is False else ""
        said.append(f"{step} {figure['seconds']:.3f} s{done}{wrong}")
    if cell.get("seen") is False:
        said.append("a change was not seen")
    elif cell.get("restored") is False:
        said.append("that it was undone was not seen")
    if cell.get("gap"):
        said.append(f"GAP: {cell['gap']}")
    return "; ".join(said) or "nothing to measure"

