"""`fuse-gatectl doctor`: what this machine can do, what is wrong with it, and what to do next."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from fuse_gated.commands import doctor_machine, doctor_service, doctor_software
from fuse_gated.commands.diagnosis import FAIL, OK, WARN, Check
from fuse_gated.commands.output import Style, plain, print_json
from fuse_gated.edge.fuse_probe import Offer, probe
from fuse_gated.edge.libfuse import LACKS
from fuse_gated.errors import GateError

_COLOURS: Final = {OK: "good", WARN: "warn", FAIL: "bad"}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the subcommand; its arguments go to `run`."""
    parser = subparsers.add_parser(
        "doctor",
        parents=[common],
        help="look for what is missing or wrong on this machine",
        description="Looks at this machine, its configuration and the daemon. Exits 1 where something fails.",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Returns the exit status."""
    found = list(examine(options.etc, options.runtime))
    if options.json:
        print_json({"checks": [msgspec.structs.asdict(check) for check in found], "libfuse_lacks": LACKS})
    else:
        _print(found)
    return 1 if any(check.state == FAIL for check in found) else 0


def examine(etc: Path, runtime: str) -> Iterator[Check]:
    """All checks, on this machine."""
    is_root = os.geteuid() == 0
    yield from doctor_machine.checks(
        doctor_machine.Machine(root=Path("/"), release=os.uname().release, is_root=is_root, offer=_offer())
    )
    yield from doctor_software.checks(is_root=is_root)
    yield from doctor_service.checks(etc, runtime)


def _offer() -> Offer | GateError:
    try:
        return probe()
    except GateError as error:
        return error


def _print(found: list[Check]) -> None:
    style = Style(sys.stdout)
    width = max(len(check.name) for check in found)
    for check in found:
        state = style.paint(_COLOURS[check.state], check.state.ljust(4))
        print(f"{state}  {check.name.ljust(width)}  {plain(check.message)}")
        if check.advice:
            print(f"      {' ' * width}  -> {plain(check.advice)}")
    print("\nThe libfuse driver (ordinary users, without the mount keeper) lacks what libfuse 2 has no call for:")
    for name, seen in LACKS.items():
        print(f"  - {name}: {seen}")
