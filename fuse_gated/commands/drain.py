"""`fuse-gatectl drain`: take no new sessions, so that a server can be taken out of service without anybody's loss."""

import argparse
import time
from typing import Final

from fuse_gated import control
from fuse_gated.commands.output import print_json
from fuse_gated.errors import OperatorError

_LOOK_EVERY: Final = 0.5


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the subcommand; its arguments go to `run`."""
    drain = subparsers.add_parser(
        "drain",
        parents=[common],
        help="take no new sessions; those that are there go on",
        description="New sessions are refused with 503, and /healthz answers 503, until --undo or a restart of the daemon.",
    )
    exclusive = drain.add_mutually_exclusive_group()
    exclusive.add_argument("--undo", action="store_true", help="take new sessions again")
    exclusive.add_argument("--wait", action="store_true", help="return once the last session has ended")
    exclusive.add_argument(
        "--move",
        action="store_true",
        help="end the sessions, one after the other, so that their clients connect to another server; return after the last",
    )
    drain.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises what `control.call` raises, and OperatorError where somebody undoes it meanwhile."""
    status = control.convert_status(control.call(options.runtime, "drain", undo=options.undo, move=options.move))
    if options.wait or options.move:
        status = _wait(options, status)
    if options.json:
        print_json({"draining": status.draining, "sessions": status.held})
    elif options.undo:
        print("new sessions are taken")
    else:
        print(f"draining: {_counted(status.held)}")
    return 0


def _wait(options: argparse.Namespace, status: control.Status) -> control.Status:
    shown = 0
    while status.held:
        if status.held != shown and not options.json:
            print(f"draining: {_counted(status.held)}", flush=True)
        shown = status.held
        time.sleep(_LOOK_EVERY)
        status = control.convert_status(control.call(options.runtime, "status"))
        if not status.draining:
            raise OperatorError("the daemon takes new sessions again", "somebody has undone it, or restarted the daemon")
    return status


def _counted(sessions: int) -> str:
    return f"{sessions or 'no'} session{'s' if sessions != 1 else ''} left"
