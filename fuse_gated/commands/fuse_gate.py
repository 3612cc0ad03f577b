"""fuse-gate: offers a directory of this machine to a fuse-gated server."""

import argparse
import contextlib
import os
import re
import resource
import signal
import stat
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from fuse_gated import __version__
from fuse_gated.client import Client, Event, State
from fuse_gated.commands.output import complain, plain, shown_size
from fuse_gated.edge.destination import Destination, parse_server
from fuse_gated.edge.files import Export
from fuse_gated.edge.filesystems import ignores_case
from fuse_gated.edge.leases import Leases
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.status import StatusLine
from fuse_gated.errors import GateError, OperatorError, UsageError
from fuse_gated.paths import is_mount_name
from fuse_gated.persistence import Persistence

PROGRAM: Final = "fuse-gate"
_LONGEST_TOKEN: Final = 4096
_REFRESH: Final = 0.5
_SHORTEST: Final = 0.01
_LONGEST: Final = 86400.0
_MOODS: Final = {State.MOUNTED: "good", State.FAILED: "bad", State.CLOSED: "bad"}
_LOST: Final = "the server no longer knew the session, this is a new one: what programs there had open or locked is lost to them"


def main(argv: list[str] | None = None) -> int:
    """Runs the command. Returns its exit status: 0 after an orderly end, 1 failed, 2 usage, 3 refused by the server."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        return _export(options)
    except GateError as error:
        return complain(PROGRAM, error)
    except KeyboardInterrupt:  # Before there was anything to end.
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Offers a directory of this machine to a fuse-gated server.")
    version = f"{PROGRAM} {__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    export = commands.add_parser(
        "export",
        help="offer a directory",
        description="Offers DIR to a server, which mounts it and prints where. Serves until SIGINT or SIGTERM.",
        epilog="Exit status: 0 ended in order, 1 failed, 2 wrong usage, 3 refused by the server.",
    )
    export.add_argument("directory", metavar="DIR", help="the directory to offer; nothing outside it is reached")
    export.add_argument("--server", required=True, metavar="ws[s]://HOST:PORT", help="the server; wss is TLS")
    export.add_argument("--token-file", required=True, metavar="FILE", help="a file that holds the login token and nothing else")
    export.add_argument("--name", help="the export's name on the server (default: made from DIR's last component)")
    export.add_argument("--read-only", action="store_true", help="let the server change nothing")
    export.add_argument(
        "--no-watch",
        action="store_true",
        help="do not watch for changes (inotify); the server then remembers less and asks more often",
    )
    export.add_argument("--json", action="store_true", help="print events as JSON, one a line")
    export.add_argument("--ca", metavar="FILE", help="PEM file of the authorities that may have signed the server's certificate")
    export.add_argument("--cert", metavar="FILE", help="PEM file of a certificate to show to the server")
    export.add_argument("--key", metavar="FILE", help="PEM file of that certificate's key, if it is not in the same file")
    export.add_argument(
        "--trust-server",
        action="store_true",
        help="let the server set setuid and setgid, make device nodes and use all extended attributes",
    )
    defaults = Persistence()
    export.add_argument(
        "--reconnect-delay",
        type=_seconds,
        metavar="SECONDS",
        help="the longest time until the first attempt to connect again; it doubles with each further one "
        f"(default {defaults.delay:g})",
    )
    export.add_argument(
        "--reconnect-max", type=_seconds, metavar="SECONDS", help=f"what it grows to at most (default {defaults.longest_delay:g})"
    )
    export.add_argument(
        "--max-attempts", type=_count, metavar="N", help="give up after so many failed attempts in a row (default: never)"
    )
    export.add_argument("--no-reconnect", action="store_true", help="end when the connection is lost")
    export.add_argument(
        "--dead-after",
        type=_seconds,
        metavar="SECONDS",
        default=defaults.dead_after,
        help=f"take a server for dead that has been silent for so long (default {defaults.dead_after:g})",
    )
    export.add_argument("--version", action="version", version=version)
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text}") from None
    if not _SHORTEST <= value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"not between {_SHORTEST:g} and {_LONGEST:g} seconds: {text}")
    return value


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a number of attempts: {text}")
    return int(text)


def _persistence(options: argparse.Namespace) -> Persistence:
    given = {
        "delay": options.reconnect_delay,
        "longest_delay": options.reconnect_max,
        "max_attempts": options.max_attempts,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if options.no_reconnect and given:
        raise UsageError("--no-reconnect leaves no further attempts", "leave it away, or the other options for reconnecting")
    # Who says how to try again means it from the first attempt on.
    return Persistence(reconnect=not options.no_reconnect, from_start=bool(given), dead_after=options.dead_after, **given)


def _export(options: argparse.Namespace) -> int:
    persistence = _persistence(options)
    destination = _destination(options)
    _check_directory(options.directory)
    if destination.shows_token:
        _warn("the token and all data travel in clear text to the server; use wss:// unless the network between is yours")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0)  # What is made gets the mode that the server asks for, whose caller has a umask of its own.
    loop = Loop()
    export = Export(
        Path(options.directory),
        read_only=options.read_only,
        trust_server=options.trust_server,
        watch=not options.no_watch,
        leases=Leases(loop),
    )
    if export.unwatched:
        why = f"changes cannot be watched, so the server asks more often: {export.unwatched}"
        _warn(f"{why}; if too many programs watch files, raise it with: sysctl fs.inotify.max_user_instances")
    if export.root == b"/":
        _warn("the whole of this machine is offered")
    if ignores_case(options.directory):
        _warn("the directory takes upper and lower case as the same, the server's rules do not: what they hide or deny by name "
              "can be had by another spelling")
    _Session(loop, export, destination, persistence, as_json=options.json).run()
    return 0


class _Session:
    """A client, and what its user sees of it."""

    def __init__(
        self, loop: Loop, export: Export, destination: Destination, persistence: Persistence, *, as_json: bool
    ) -> None:
        self._loop = loop
        self._client = Client(loop, export, destination, self._event, persistence)
        self._destination = destination
        self._json = as_json
        self._status = StatusLine(sys.stderr)
        self._told = ""
        """The reason for which there is no connection, as it was told last."""

    def run(self) -> None:
        """Raises GateError as `Client.run`."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: self._loop.from_thread(self._client.goodbye))
        try:
            if self._status.active:
                self._refresh()
            self._client.run()
        finally:
            self._status.clear()

    def _event(self, event: Event) -> None:
        if self._json:
            self._say(msgspec.json.encode(event).decode())
        elif event.event == "mounted":
            self._say(f"mounted at {plain(event.path)}" if event.path else f"open without a mount: session {event.session}")
        if event.replaced:
            self._status.clear()
            _warn(_LOST)
        if event.event == "watches-exhausted":
            self._status.clear()
            _warn(event.reason or "")
        if self._status.active:
            self._show()
        elif not self._json:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        """For a log: what a terminal's status line would show. The same reason is told once, however often it is met."""
        if event.event in ("resumed", "mounted") and self._told:
            self._told = ""
            _note("connected again")
        elif event.event == "connection-lost":
            self._told = event.reason or ""
            _note(f"the connection is lost, trying again: {self._told}")
        elif event.event == "reconnecting" and event.reason != self._told:
            self._told = event.reason or ""
            _note(f"not connected, trying again: {self._told}")

    def _say(self, line: str) -> None:
        self._status.clear()
        try:
            print(line, flush=True)
        except OSError:
            # Whoever read our output has left; the export stays. Later output goes nowhere instead of failing.
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())

    def _refresh(self) -> None:
        self._show()
        self._loop.after(_REFRESH, self._refresh)

    def _show(self) -> None:
        client, counts = self._client, self._client.answering
        parts = [client.state.value]
        if client.state is State.MOUNTED:
            parts += [
                plain(client.mount_path) or "without a mount",
                f"{counts.operations:,} operations",
                f"{shown_size(counts.bytes_read)} read",
                f"{shown_size(counts.bytes_written)} written",
            ]
        elif client.next_attempt is not None:
            parts += [f"next attempt in {max(client.next_attempt - time.monotonic(), 0.0):.0f} s", plain(client.reason)]
        else:
            parts += [plain(self._destination.address), *([plain(client.reason)] if client.reason else [])]
        self._status.show(_MOODS.get(client.state, "waiting"), parts)


def _destination(options: argparse.Namespace) -> Destination:
    uri = parse_server(options.server)
    if not uri.secure and (options.ca or options.cert or options.key):
        raise UsageError("--ca, --cert and --key belong to TLS", "write wss:// instead of ws://")
    if options.key and not options.cert:
        raise UsageError("--key without --cert", "name the key's certificate with --cert")
    return Destination(
        uri=uri,
        token=_token(options.token_file),
        name=_name(options.name, options.directory),
        ca=options.ca,
        certificate=options.cert,
        key=options.key,
    )


def _name(given: str | None, directory: str) -> str:
    """The export's name: as given, or made from the directory's."""
    wanted = given if given is not None else os.path.basename(os.path.realpath(directory))
    if is_mount_name(wanted):
        return wanted
    safe = re.sub(r"[^a-z0-9._-]+", "-", wanted.lower()).strip("-._")[:64]
    if given is None and safe:
        return safe
    hint = "1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or digit"
    if given is None:
        raise UsageError(f"no name can be made from the directory {directory!r}", f"give one with --name: {hint}")
    raise UsageError(f"not an export's name: {given!r}", f"try --name {safe}; allowed are {hint}" if safe else hint)


def _token(path: str) -> str:
    hint = "the server's operator makes one with: fuse-gatectl token new TENANT"
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            token = file.read(_LONGEST_TOKEN + 1).strip()
    except OSError as error:
        raise OperatorError(f"cannot read the token file {path}: {error.strerror}", hint) from None
    if not token:
        raise OperatorError(f"the token file {path} is empty", hint)
    if len(token) > _LONGEST_TOKEN or not re.fullmatch(rb"[!-~]+", token):
        raise OperatorError(f"the token file {path} holds something else than one token", hint)
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        _warn(f"others on this machine may read the token file {path}; protect it with: chmod 600 {path}")
    return token.decode("ascii")


def _check_directory(directory: str) -> None:
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        raise UsageError(f"{directory} does not exist", "name the directory to offer") from None
    except OSError as error:
        raise OperatorError(f"cannot look at {directory}: {error.strerror}", "offer a directory that you may read") from None
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{directory} is not a directory", "name the directory to offer, not a file in it")
    if not os.access(directory, os.R_OK | os.X_OK, effective_ids=True):
        raise OperatorError(f"{directory} may not be read", "offer a directory that you may read, or start as its owner")


def _warn(text: str) -> None:
    _note(f"warning: {text}")


def _note(text: str) -> None:
    with contextlib.suppress(OSError):  # Nobody reads it.
        print(f"{PROGRAM}: {plain(text)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
