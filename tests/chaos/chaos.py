"""Everything that can fail, fails, while programs work on the mount: `make chaos`. As root, who starts the server of an ordinary
user for --driver libfuse.

A checking load runs on the mount (loads.py), in mode wait, and faults come in an order that the seed decides (faults.py). No
program may see an error, no byte may be wrong, nothing may be done twice, the audit chain must be whole. With --reconnects the
connection is cut again and again, and nothing may grow; with --schedule each part is killed three times a minute, and the share
of operations that end right and in time is counted; with --beside-sshfs the connection is cut under sshfs, too.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

# The checkout, and the harness of its tests.
sys.path[1:1] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]


MOST_TOLD = 40
"""Failures; all of them are in the JSON."""


def main() -> int:
    import availability
    import faults
    import reconnects
    import run
    import sshfs
    from arena import arena
    from harness.namespace import enter_private_namespace

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, help="of their order and of the load's choices (default: a new one each time)")
    kinds = [kind.name for kind in faults.KINDS]
    parser.add_argument("--only", action="append", choices=kinds, metavar="KIND", help=f"only these: {', '.join(kinds)}")
    parser.add_argument("--reconnects", type=int, metavar="N", help="cut the connection of one session so often, instead")
    parser.add_argument("--schedule", type=_duration, metavar="TIME", help="faults on a schedule for so long (20m), instead")
    parser.add_argument("--beside-sshfs", type=int, metavar="N", help="cut the connection so often under both, instead")
    parser.add_argument("--cache", choices=("watched", "strict"), default="watched", help="the policy's (%(default)s)")
    parser.add_argument("--driver", choices=("kernel", "libfuse"), default="kernel", help="with libfuse: what its mounts survive")
    parser.add_argument("--plan", action="store_true", help="print which faults would come, in their order, and end")
    parser.add_argument("--json", type=Path, default=Path("build/chaos.json"), help="where the figures go (%(default)s)")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    _say(f"seed {seed}")
    if arguments.driver == "libfuse" and (arguments.reconnects or arguments.schedule or arguments.beside_sshfs):
        parser.error("--driver libfuse is for --faults alone")
    plan = faults.Plan(seed, arguments.faults, tuple(arguments.only or ()), arguments.driver)
    if arguments.plan:
        for number, step in enumerate(plan.steps, 1):
            _say(f"{number:4} {', '.join(kind.name for kind in step)}")
        return 0
    if reason := _obstacle(arguments):
        print(f"chaos: {reason}", file=sys.stderr)
        return 1
    if arguments.driver == "libfuse":
        # An ordinary user may mount there, whatever this machine allows.
        enter_private_namespace()
    began = time.monotonic()
    with contextlib.suppress(OSError):
        os.nice(5)
    report: dict[str, Any] = {"seed": seed, "machine": {"kernel": platform.release(), "python": platform.python_version()}}
    if arguments.reconnects:
        with arena((0.05, 0.05), arguments.cache) as place:
            report["reconnects"] = reconnects.reconnects(place, arguments.reconnects, seed, _say)
    elif arguments.schedule:
        with arena(cache=arguments.cache) as place:
            report["availability"] = availability.availability(place, arguments.schedule, seed, _say)
    elif arguments.beside_sshfs:
        report["cut"] = sshfs.beside(arguments.beside_sshfs, _say)
    else:
        with arena(cache=arguments.cache, driver=arguments.driver) as place:
            report["chaos"] = run.chaos(place, plan, _say)
            report["chaos"]["records"] = run.audit_kinds(place)
        run.show(report["chaos"], _say)
    report["seconds"] = time.monotonic() - began
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1))
    failures = [failure for part in report.values() if isinstance(part, dict) for failure in part.get("failures", ())]
    for failure in failures[:MOST_TOLD]:
        print(f"FAILED: {failure[:2000]}", file=sys.stderr)
    verdict = f"{len(failures)} failures" if failures else "nobody noticed anything"
    _say(f"{verdict}; seed {seed}; the figures are in {arguments.json}")
    return 1 if failures else 0


def _say(text: str) -> None:
    print(text, flush=True)


def _duration(text: str) -> float:
    """Seconds of '90', '90s' or '20m'."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in "sm" else (text, "s")
    seconds = float(number) * {"s": 1, "m": 60}[unit]
    if not seconds > 0:
        raise ValueError(text)
    return seconds


def _obstacle(arguments: argparse.Namespace) -> str:
    if os.geteuid() != 0:
        return "run it as root: it is about mounts that outlive their processes"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "this machine has no /dev/fuse"
    needed = ["git", *(["sshfs", "fusermount3"] if arguments.beside_sshfs else [])]
    needed += ["fusermount3", "fusermount"] if arguments.driver == "libfuse" else []
    missing = [name for name in needed if shutil.which(name) is None]
    return f"missing: {', '.join(missing)} (packaging/dev/prepare.sh installs them)" if missing else ""


if __name__ == "__main__":
    sys.exit(main())
