"""`fuse-gatectl`: for the operator of a server. Each subcommand is a module beside this one.

Exit status: 0 done, 1 failed (or denied), 2 usage, 3 refused by the server, 4 configuration at fault.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fuse_gated import __version__
from fuse_gated.commands import audit, check, doctor, drain, explain, files, metrics, places, sessions, stats, token, top
from fuse_gated.commands.output import complain
from fuse_gated.errors import GateError

PROGRAM: Final = "fuse-gatectl"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status. Raises SystemExit for --help, --version, and a wrong command line."""
    options = parser().parse_args(argv)
    # A subcommand may have the option too; what stands before the subcommand counts unless it was given there.
    options.runtime = getattr(options, "runtime", None) or options.runtime_directory
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except GateError as error:
        return complain(PROGRAM, error)
    except BrokenPipeError:
        # Whoever read has seen enough. The interpreter would complain once more as it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """The command line; shell completions and manual pages can be made from it."""
    made = argparse.ArgumentParser(prog=PROGRAM, description="Look at and steer a fuse-gated server.")
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    made.add_argument("--etc", metavar="DIR", type=Path, default=places.ETC, help="the configuration (default: %(default)s)")
    made.add_argument(
        "--runtime",
        metavar="DIR",
        dest="runtime_directory",
        default=str(places.runtime_to_ask()),
        help=f"the runtime directory of the daemon (default: {places.RUNTIME}, or an ordinary user's own)",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    subparsers = made.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    sessions.add_parsers(subparsers, common)
    stats.add_parser(subparsers, common)
    top.add_parser(subparsers, common)
    metrics.add_parser(subparsers)
    drain.add_parser(subparsers, common)
    files.add_parsers(subparsers, common)
    explain.add_parser(subparsers, common)
    check.add_parser(subparsers, common)
    token.add_parser(subparsers, common)
    audit.add_parser(subparsers)
    doctor.add_parser(subparsers, common)
    return made


if __name__ == "__main__":
    sys.exit(main())
