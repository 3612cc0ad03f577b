"""Programs on a mount beside sshfs over its direct TCP port, a plain directory and the bare link, at several distances.

`make bench` measures a stated sample of every row; `BENCH_FLAGS=--full` everything at 0 and 20 ms (hours), `--quick` a little of
it (minutes). --latency is one operation at 0 ms with nothing cached and the gate alone; --profile also where its time goes;
--sessions (first) a thousand sessions. Tables go to the terminal, and with the figures and a picture to build/bench/. What fails
is a gap in the table. Nothing here fails a test.
"""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import chart
import latency
import profiling
import report
import suite
from contestants import CHECKOUT, SFTP_SERVER
from link import MEGABITS

# The checkout, and the harness of its tests, for what is imported later.
sys.path[1:1] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

_LATENCY = "latency"
SCALES = {"quick": (0.04, 20.0), "": (0.2, 120.0), "full": (1.0, 180.0)}
"""By how much of the full size, and after how many seconds a step is cut short."""


def main() -> int:
    if "--sessions" in sys.argv[1:]:
        import sessions

        return sessions.main([word for word in sys.argv[1:] if word != "--sessions"])
    arguments = _arguments()
    # What was started is ended, whoever ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    file = arguments.json
    if arguments.render:
        _write(report.read(file), file, arguments.into)
        return 0
    if reason := _obstacle():
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    if arguments.profile:
        profiling.spy()
    rows = () if arguments.latency_alone else tuple(name for name in arguments.rows or suite.ROWS if name != _LATENCY)
    plan = _plan(arguments, rows)
    found = suite.run(plan) if rows else suite.Report(plan)
    wanted = arguments.latency_alone or _LATENCY in (arguments.rows or (_LATENCY,))
    if wanted and "latency" not in found.content:
        found.content["latency"] = _latency(arguments)
        found.content["rules"] = arguments.rules
    found.write()
    _write(found.content, file, arguments.into)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how_much = parser.add_mutually_exclusive_group()
    for name in ("quick", "full"):
        text = "{:g} of the full size, a step cut short after {:g} s (without: {:g}, {:g} s)".format(*SCALES[name], *SCALES[""])
        how_much.add_argument(f"--{name}", dest="how_much", action="store_const", const=name, default="", help=text)
    parser.add_argument("--scale", type=float, help="another part of the full size")
    parser.add_argument("--cap", type=float, metavar="S", help="another time after which a step is cut short")
    parser.add_argument("--sample", type=float, default=0.2, help="of that, at other distances than 0 and 20 ms (%(default)s)")
    known = (_LATENCY, *suite.ROWS)
    parser.add_argument("--rows", nargs="+", choices=known, metavar="ROW", help=f"of {', '.join(known)}")
    everyone, distances = suite.EVERYBODY, suite.DISTANCES
    parser.add_argument("--distances", nargs="+", type=float, default=distances, metavar="MS", help="round trips (%(default)s)")
    parser.add_argument("--contestants", nargs="+", choices=everyone, default=everyone, metavar="WHO", help="of %(default)s")
    parser.add_argument("--megabits", type=int, default=MEGABITS, metavar="N", help="of the delayed line, a second (%(default)s)")
    parser.add_argument("--checkout", type=Path, default=CHECKOUT, metavar="DIR", help="the version that is measured")
    parser.add_argument("--resume", action="store_true", help="measure only what the file has not")
    parser.add_argument("--render", action="store_true", help="measure nothing: tables and picture anew, of the file's figures")
    parser.add_argument("--into", type=Path, metavar="FILE", help="put tables and picture into a document, too")
    parser.add_argument("--latency", action="store_true", help="only one operation at 0 ms, nothing cached, and the gate alone")
    parser.add_argument("--profile", action="store_true", help="and processor time by process and function; needs py-spy")
    parser.add_argument("--rounds", type=int, default=5, help="of latency (%(default)s)")
    parser.add_argument("--count", type=int, default=1000, help="operations in a round (%(default)s)")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="of latency's large file (%(default)s)")
    parser.add_argument("--rules", type=int, default=50, help="of latency's policy (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3, help="for each part of the profile (%(default)s)")
    parser.add_argument("--json", type=Path, help="where the figures go (build/bench/bench.json; without rows latency.json)")
    chosen = parser.parse_args()
    chosen.latency_alone = chosen.rows is None and (chosen.latency or chosen.profile)
    chosen.json = chosen.json or Path("build/bench/latency.json" if chosen.latency_alone else "build/bench/bench.json")
    return chosen


def _plan(arguments: argparse.Namespace, rows: tuple[str, ...]) -> suite.Plan:
    scale, cap = SCALES[arguments.how_much]
    return suite.Plan(
        arguments.json,
        distances=tuple(arguments.distances),
        rows=rows,
        contestants=tuple(arguments.contestants),
        scale=scale if arguments.scale is None else arguments.scale,
        sample=arguments.sample,
        cap=cap if arguments.cap is None else arguments.cap,
        megabits=arguments.megabits,
        checkout=arguments.checkout.resolve(),
        resume=arguments.resume,
    )


def _latency(arguments: argparse.Namespace) -> dict[str, Any]:
    wanted = latency.Wanted(
        arguments.rounds, arguments.count, arguments.size, arguments.rules, arguments.seconds if arguments.profile else 0,
        arguments.checkout.resolve(),
    )  # fmt: skip
    return latency.measure(wanted)


def _write(found: dict[str, Any], file: Path, into: Path | None) -> None:
    """The tables to the terminal and beside the figures, and the picture; both into a document, if there is one to take them."""
    beside = {"tables": file.with_suffix(".md"), "picture": file.with_suffix(".svg")}
    report.show(found)
    if "latency" in found:
        latency.show(found["latency"], found["rules"])
    tables = report.markdown(found) + (latency.markdown(found["latency"]) if "latency" in found else "")
    beside["tables"].write_text(tables)
    beside["picture"].write_text(chart.svg(found))
    if into is not None:
        report.insert(into, tables, chart.svg(found))
    print(f"\nThe figures are in {file}, the tables in {beside['tables']}, the picture in {beside['picture']}.")


def _obstacle() -> str:
    if os.geteuid() != 0:
        return "run it as root: it compares kernel mounts"
    missing = [name for name in ("sshfs", "fusermount3", "ip", "nsenter", SFTP_SERVER) if shutil.which(name) is None]
    return f"missing: {', '.join(missing)} (packaging/dev/prepare.sh installs them)" if missing else ""


if __name__ == "__main__":
    sys.exit(main())
