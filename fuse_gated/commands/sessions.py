"""`fuse-gatectl sessions`, `show` and `kick`: the sessions of the running daemon."""

import argparse
import sys
import time
from typing import Any, Final

from fuse_gated import control
from fuse_gated.commands.output import Style, pairs, plain, print_json, shown_size, shown_time, table
from fuse_gated.errors import GateError, PeerError

_HEADINGS: Final = (
    "SESSION",
    "TENANT",
    "EXPORT",
    "STATE",
    "DRIVER",
    "ADDRESS",
    "SINCE",
    "OPS",
    "READ",
    "WRITTEN",
    "DENIED",
    "MOUNT",
)
_STATES: Final = {"mounted": "good", "suspended": "warn", "closed": "weak"}


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the subcommands; their arguments go to what their `run` says."""
    sessions = subparsers.add_parser("sessions", parents=[common], help="list the sessions")
    sessions.set_defaults(run=run_sessions)
    show = subparsers.add_parser("show", parents=[common], help="show all that is known of one session")
    show.add_argument("session", metavar="SESSION")
    show.set_defaults(run=run_show)
    kick = subparsers.add_parser("kick", parents=[common], help="end sessions: unmount them, and close their connections")
    kick.add_argument("session", metavar="SESSION", nargs="+")
    kick.set_defaults(run=run_kick)


def run_sessions(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises what `control.call` raises, as the others do."""
    answer = control.call(options.runtime, "sessions")
    if options.json:
        print_json(answer)
        return 0
    sessions = control.convert_sessions(answer)
    if not sessions:
        print("no sessions")
        return 0
    style = Style(sys.stdout)
    now = time.time()
    heading, *lines = table(_HEADINGS, [_row(session, now) for session in sessions])
    print(style.paint("strong", heading))
    for session, line in zip(sessions, lines, strict=True):
        print(style.paint(_STATES.get(session.state, ""), line))
    return 0


def run_show(options: argparse.Namespace) -> int:
    answer = control.call(options.runtime, "show", session=options.session)
    if options.json:
        print_json(answer)
        return 0
    if not isinstance(answer, dict):
        raise PeerError("the daemon's answer makes no sense", "restart fuse-gated if its package was upgraded")
    # What `sessions` lists comes first, in the same order.
    first = {name: answer[name] for name in control.Session.__struct_fields__ if name in answer}
    for line in pairs(_details("", first | answer)):
        print(line)
    return 0


def run_kick(options: argparse.Namespace) -> int:
    """Every session is tried, whatever happens to the others."""
    kicked: list[str] = []
    failed: dict[str, str] = {}
    for session in options.session:
        try:
            control.call(options.runtime, "kick", session=session)
            kicked.append(session)
        except GateError as refusal:
            failed[session] = str(refusal)
    if options.json:
        print_json({"kicked": kicked, "failed": failed})
        return 1 if failed else 0
    for session in kicked:
        print(f"session {plain(session)} ends")
    for session, reason in failed.items():
        print(f"fuse-gatectl: {plain(session)}: {plain(reason)}", file=sys.stderr)
    return 1 if failed else 0


def _row(session: control.Session, now: float) -> tuple[object, ...]:
    return (
        session.session,
        session.tenant,
        session.export,
        session.state,
        session.driver,
        session.address,
        shown_time(now - session.since),
        session.operations,
        shown_size(session.bytes_read),
        shown_size(session.bytes_written),
        session.denied,
        session.mount,
    )


def _details(prefix: str, values: dict[Any, Any]) -> list[tuple[str, object]]:
    """Names and values, those of inner maps with their map's name in front."""
    entries: list[tuple[str, object]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            entries += _details(f"{name}.", value)
        elif isinstance(value, list | tuple):
            entries.append((name, ", ".join(str(item) for item in value)))
        elif key == "since" and isinstance(value, int | float):
            entries.append((name, time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(value))))
        elif key in ("bytes_read", "bytes_written") and isinstance(value, int):
            entries.append((name, f"{value} ({shown_size(value)})"))
        else:
            entries.append((name, "" if value is None else value))
    return entries
