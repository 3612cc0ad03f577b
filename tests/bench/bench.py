"""Latency and throughput beside sshfs over its direct TCP port, on the same tree, in the same run: `make bench`.

Everything is pinned to one CPU, because the latency of one operation is what all its processes cost together. Caches are off
on both sides (sshfs: cache=no, no attribute, entry or negative timeout; fuse-gated has none yet). Each row is the median of
rounds that alternate between the two, so that a noisy machine hits both. Then what the gate alone costs (gate_cost.py) and,
with --profile, where the time goes (profiling.py). Prints tables, writes JSON; fails nothing.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import profiling
import sessions
from contestants import SFTP_SERVER, fuse_gated, sshfs
from rows import Row, plant, rows

# The checkout, and the harness of its tests, for what is imported later.
sys.path[1:1] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]


def main() -> int:
    import gate_cost

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--count", type=int, default=1000, help="operations in a round (%(default)s)")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="of the large file (%(default)s)")
    parser.add_argument("--rules", type=int, default=50, help="of the policy (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="processor time by process and function; needs py-spy")
    parser.add_argument("--seconds", type=float, default=3, help="for each part of the profile (%(default)s)")
    parser.add_argument("--sessions", action="store_true", help="instead of all that: what a session costs (sessions.py)")
    parser.add_argument("--counts", type=int, nargs="+", default=sessions.COUNTS, metavar="N", help="of sessions (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the figures go (%(default)s)")
    arguments = parser.parse_args()
    if reason := _obstacle():
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    if arguments.sessions:
        measured = sessions.measure(tuple(sorted(arguments.counts)))
        sessions.show(measured)
        _write(arguments.json, {"sessions": measured})
        return 0
    if arguments.profile:
        profiling.spy()
    everywhere = os.sched_getaffinity(0)
    cpu = max(everywhere)
    os.sched_setaffinity(0, {cpu})
    report: dict[str, Any] = {
        "machine": {"cpu": cpu, "cpus": len(everywhere), "kernel": platform.release(), "python": platform.python_version()},
        "rounds": arguments.rounds,
    }
    with tempfile.TemporaryDirectory(prefix="fuse-gated-bench-") as name, contextlib.ExitStack() as stack:
        base = Path(name)
        base.chmod(0o755)
        export, mount = base / "export", base / "sshfs"
        plant(export)
        mount.mkdir()
        stack.enter_context(sshfs(export, mount))
        gated, processes = stack.enter_context(fuse_gated(export, base, arguments.rules))
        places = {"fuse-gated": gated, "sshfs": mount, "local": export}
        chosen = rows(arguments.count, arguments.size)
        report["all"] = _measure(chosen, places, arguments.rounds)
        report["median"] = {
            row: {who: statistics.median(values) for who, values in by.items()} for row, by in report["all"].items()
        }
        _show_rows(chosen, report["median"])
        report["gate"] = gate_cost.costs(arguments.rules)
        _show_gate(arguments.rules, report["gate"], gate_cost.PROMISED)
        if arguments.profile:
            report["profile"] = profiling.profile(gated, processes, arguments.seconds, everywhere - {cpu} or everywhere)
            profiling.show(report["profile"])
    _write(arguments.json, report)
    return 0


def _write(file: Path, report: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1))
    print(f"\nThe figures are in {file}.")


def _obstacle() -> str:
    if os.geteuid() != 0:
        return "run it as root: it compares kernel mounts"
    missing = [name for name in ("sshfs", "fusermount3", SFTP_SERVER) if shutil.which(name) is None]
    return f"missing: {', '.join(missing)} (packaging/dev/prepare.sh installs them)" if missing else ""


def _measure(chosen: list[Row], places: dict[str, Path], rounds: int) -> dict[str, dict[str, list[float]]]:
    results: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):
        for row in chosen:
            for who, root in places.items():
                value = row.measure(root, row.amount)
                if number:  # the first one warms up
                    results.setdefault(row.name, {}).setdefault(who, []).append(value)
    return results


def _show_rows(chosen: list[Row], medians: dict[str, dict[str, float]]) -> None:
    print(f"{'':28} {'fuse-gated':>12} {'sshfs':>12} {'local':>12} {'ratio':>7}")
    for row in chosen:
        by = medians[row.name]
        figures = " ".join(f"{by[who]:>9.1f} {row.unit}" for who in ("fuse-gated", "sshfs", "local"))
        print(f"{row.name:28} {figures} {by['fuse-gated'] / by['sshfs']:>6.2f}x")


def _show_gate(rules: int, costs: dict[str, dict[str, float]], promised: float) -> None:
    print(f"\nThe gate alone, with {rules} rules, limits and the audit's records (promised: {promised:.0f} µs at most)")
    print(f"{'':28} {'known path':>12} {'new path':>12} {'asked':>7} {'records':>8}")
    for operation, of in costs.items():
        print(f"{operation:28} {of['known']:>9.1f} µs {of['new']:>9.1f} µs {of['calls']:>7.0f} {of['records']:>8.0f}")
    worst = max(max(of["known"], of["new"]) for of in costs.values())
    print(f"At most {worst:.1f} µs: {'kept' if worst <= promised else 'NOT KEPT'}.")


if __name__ == "__main__":
    sys.exit(main())
