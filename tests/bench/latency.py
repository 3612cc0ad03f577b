"""One operation at no distance, with nothing cached: the product and sshfs in turn, on one CPU, and what each process had of it.

The latency of one operation is what all its processes cost together, so all are pinned to one CPU. Caches are off on both sides
(sshfs: cache=no, no attribute, entry or negative timeout; fuse-gated: `cache: {mode: strict}`). Each figure is the median of
rounds that alternate, so that a noisy machine hits all. Then what the gate alone costs (gate_cost.py) and, with a profile, where
the time goes (profiling.py).
"""

import contextlib
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import profiling
from cells import processor_times
from contestants import CHECKOUT, UNCACHED, Mounted, fuse_gated, knows_caches, sshfs
from link import link
from rows import Row, plant, rows

OURS, OURS_TLS, SSHFS, LOCAL = "fuse-gated", "fuse-gated, TLS", "sshfs", "local"
WHO: Final = (OURS, OURS_TLS, SSHFS, LOCAL)


@dataclass(frozen=True)
class Wanted:
    """`count` operations in a round; `size` MiB of the large file; `rules` of the policy; `profile` seconds for each part of a
    profile, 0 for none."""

    rounds: int = 5
    count: int = 1000
    size: int = 256
    rules: int = 50
    profile: float = 0
    checkout: Path = CHECKOUT


def measure(wanted: Wanted) -> dict[str, Any]:
    """`median` and `all` by row and contestant, in the row's `unit`; `cpu`, microseconds of processor time for one operation by
    row, contestant and process; `gate`; `profile`."""
    import gate_cost

    everywhere = os.sched_getaffinity(0)
    cpu = max(everywhere)
    os.sched_setaffinity(0, {cpu})
    try:
        with tempfile.TemporaryDirectory(prefix="fuse-gated-bench-") as name, contextlib.ExitStack() as stack:
            places = _places(Path(name), wanted, stack)
            chosen = rows(wanted.count, wanted.size)
            found = _alternate(chosen, places, wanted.rounds)
            found["gate"] = gate_cost.costs(wanted.rules)
            if wanted.profile:
                ours = places[OURS]
                processes = {part: pids[0] for part, pids in ours.processes().items()}
                others = everywhere - {cpu} or everywhere
                found["profile"] = profiling.profile(ours.path, processes, wanted.profile, others)
        return found
    finally:
        os.sched_setaffinity(0, everywhere)


def _places(base: Path, wanted: Wanted, stack: contextlib.ExitStack) -> dict[str, Mounted]:
    base.chmod(0o755)
    near = stack.enter_context(link(0))
    strict = "cache: {mode: strict}" if knows_caches(wanted.checkout) else ""
    # Each has an export of its own: what one makes is not in another's way.
    exports = {who: base / f"export-{number}" for number, who in enumerate(WHO)}
    for export in exports.values():
        plant(export)
    places = {LOCAL: Mounted(exports[LOCAL], dict)}
    for who, tls in ((OURS, False), (OURS_TLS, True)):
        place = base / who.replace(", ", "-")
        place.mkdir()
        options: dict[str, Any] = {"tls": tls, "rules": wanted.rules, "tenant": strict, "checkout": wanted.checkout}
        places[who] = stack.enter_context(fuse_gated(exports[who], place, near, **options))
    places[SSHFS] = stack.enter_context(sshfs(exports[SSHFS], base / "sshfs", near, UNCACHED))
    return {who: places[who] for who in WHO}


def _alternate(chosen: list[Row], places: dict[str, Mounted], rounds: int) -> dict[str, Any]:
    values: dict[str, dict[str, list[float]]] = {}
    spent: dict[str, dict[str, dict[str, float]]] = {}
    for number in range(rounds + 1):
        for row in chosen:
            for who, mounted in places.items():
                value, cpu = _with_processor_times(row, mounted)
                if not number:  # the first one warms up
                    continue
                values.setdefault(row.name, {}).setdefault(who, []).append(value)
                of = spent.setdefault(row.name, {}).setdefault(who, {})
                for process, seconds in cpu.items():
                    of[process] = of.get(process, 0.0) + seconds / rounds / row.operations * 1e6
    medians = {row: {who: statistics.median(of) for who, of in by.items()} for row, by in values.items()}
    return {"rounds": rounds, "units": {row.name: row.unit for row in chosen}, "median": medians, "all": values, "cpu": spent}


def _with_processor_times(row: Row, mounted: Mounted) -> tuple[float, dict[str, float]]:
    before = processor_times(mounted)
    value = row.measure(mounted.path, row.amount)
    return value, {process: now - before.get(process, 0.0) for process, now in processor_times(mounted).items()}


def show(found: dict[str, Any], rules: int) -> None:
    """As tables on the terminal."""
    import gate_cost

    print("\nOne operation at 0 ms, nothing cached, everything on one CPU; below, the processor time of each process")
    print(f"{'':28} {'fuse-gated':>12} {'with TLS':>12} {'sshfs':>12} {'local':>12} {'ratio':>7}")
    for row, by in found["median"].items():
        figures = " ".join(f"{by[who]:>9.1f} {found['units'][row]}" for who in WHO)
        kept = "✓" if by[OURS] <= by[SSHFS] else "short"
        print(f"{row:28} {figures} {by[OURS] / by[SSHFS]:>6.2f}x {kept}")
        for who in (OURS, SSHFS):
            said = ", ".join(f"{process} {spent:.0f} µs" for process, spent in found["cpu"][row][who].items())
            print(f"    {who}: {said}")
    _show_gate(rules, found["gate"], gate_cost.PROMISED)
    if "profile" in found:
        profiling.show(found["profile"])


def _show_gate(rules: int, costs: dict[str, dict[str, float]], promised: float) -> None:
    print(f"\nThe gate alone, with {rules} rules, limits and the audit's records (promised: {promised:.0f} µs at most)")
    print(f"{'':28} {'known path':>12} {'new path':>12} {'asked':>7} {'records':>8}")
    for operation, of in costs.items():
        print(f"{operation:28} {of['known']:>9.1f} µs {of['new']:>9.1f} µs {of['calls']:>7.0f} {of['records']:>8.0f}")
    worst = max(max(of["known"], of["new"]) for of in costs.values())
    print(f"At most {worst:.1f} µs: {'kept' if worst <= promised else 'NOT KEPT'}.")


def markdown(found: dict[str, Any]) -> str:
    """The same, without the profile."""
    lines = [
        "", "### One operation at 0 ms, nothing cached, everything on one CPU", "",
        "| | fuse-gated | with TLS | sshfs | local | ratio | at most sshfs's | processor time: fuse-gated | sshfs |",
        "| --- " * 9 + "|",
    ]  # fmt: skip
    for row, by in found["median"].items():
        unit, cpu = found["units"][row], found["cpu"][row]
        ratio = by[OURS] / by[SSHFS]
        spent = (", ".join(f"{process} {of:.0f} µs" for process, of in cpu[who].items()) for who in (OURS, SSHFS))
        cells = [*(f"{by[who]:.1f} {unit}" for who in WHO), f"{ratio:.2f}", "✓" if ratio <= 1 else "short", *spent]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
