"""fuse-gated-mountd: the mount keeper as a unit of its own. systemd starts it when the daemon connects."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fuse_gated import __version__, mountd, mountd_serving, mountd_unit
from fuse_gated.edge import process, systemd
from fuse_gated.errors import GateError

_LONGEST_PATIENCE: Final = 86400.0


def parser() -> argparse.ArgumentParser:
    """The command line, from which completion and man page are made too."""
    made = argparse.ArgumentParser(
        prog=mountd.PROGRAM,
        description="Mount and unmount for fuse-gated. Started by fuse-gated-mountd.socket, never by hand.",
    )
    made.add_argument("--runtime", type=Path, default=Path("/run/fuse-gated"), metavar="DIR", help="mounts (%(default)s)")
    kept = "how long mounts are kept while there is no daemon (%(default)g)"
    made.add_argument("--patience", type=_seconds, default=mountd_serving.PATIENCE, metavar="SECONDS", help=kept)
    made.add_argument("--version", action="version", version=f"{mountd.PROGRAM} {__version__}")
    return made


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= _LONGEST_PATIENCE:
        raise ValueError
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 after the daemon's orderly end or SIGTERM, 1 failed, 2 usage."""
    arguments = parser().parse_args(argv)
    try:
        passed, manager = systemd.take_descriptors(), systemd.Manager()
        return mountd_unit.run(passed, str(arguments.runtime), manager, arguments.patience)
    except GateError as error:
        process.tell(mountd.PROGRAM, str(error))
        return error.exit_status


__all__ = ["main", "parser"]

if __name__ == "__main__":
    sys.exit(main())
