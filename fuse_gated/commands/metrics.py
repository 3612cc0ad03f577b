"""`fuse-gatectl metrics`: what the sessions do, for Prometheus and others, once on stdout or over HTTP.

A program of its own beside the daemon, which parses nothing that came from a network (docs/decisions/0014-seeing-it.md). It asks
at the control socket when it is asked.
"""

import argparse
import contextlib
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

from fuse_gated import control
from fuse_gated.commands.output import print_json
from fuse_gated.edge import listening, process
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.scraping import PATH, Scraping
from fuse_gated.edge.systemd import take_sockets
from fuse_gated.errors import GateError, OperatorError, UsageError

if TYPE_CHECKING:
    from fuse_gated.exposition import Exposition

PROGRAM: Final = "fuse-gatectl metrics"
_FRESH: Final = 1.0
"""Seconds for which a look is shown again: however many ask, the daemon is asked once."""
_PATIENCE: Final = 5.0
_COMPLAINTS: Final = 60.0


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    made = subparsers.add_parser(
        "metrics",
        help="figures for Prometheus: once, or over HTTP",
        description=f"Prints what the sessions have done in Prometheus' text format. With --listen, or with sockets that systemd "
        f"passes, it stays and serves them over HTTP at {PATH}.",
    )
    made.add_argument("--listen", metavar="HOST:PORT", help="serve over HTTP, such as 127.0.0.1:9433")
    made.add_argument(
        "--exports", metavar="N", type=int, default=20, help="exports of each tenant with figures of their own (%(default)s)"
    )
    made.add_argument("--json", action="store_true", help="print the same as JSON, once")
    made.set_defaults(run=run)


class Scraped:
    """Asks the daemon, not more often than once a second."""

    def __init__(self, runtime: str, exposition: "Exposition") -> None:
        self._runtime = runtime
        self._exposition = exposition
        self._looked = 0.0
        self._complained = 0.0

    def page(self, accept: str) -> tuple[str, bytes]:
        now = time.monotonic()
        if now - self._looked >= _FRESH:
            self._looked = now
            try:
                self.look()
            except GateError as error:
                self._exposition.failed()
                if now - self._complained >= _COMPLAINTS:
                    self._complained = now
                    process.tell(PROGRAM, str(error))
        return self._exposition.render(accept)

    def look(self) -> None:
        """Raises what `control.call` raises."""
        exposition = self._exposition
        seen = control.figures(self._runtime, _PATIENCE, ended_after=exposition.ended_after)
        if exposition.is_another(seen):
            seen = control.figures(self._runtime, _PATIENCE, ended_after=0)
        exposition.take(seen)


def run(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises GateError."""
    passed = [sock for _, sock in take_sockets()]
    once = options.json or (options.listen is None and not passed)
    exposition = _exposition(options.exports, from_now=not once)
    scraped = Scraped(options.runtime, exposition)
    if once:
        scraped.look()
        _print(exposition, as_json=options.json)
        return 0
    listeners = passed or listening.bind(options.listen)
    with contextlib.suppress(GateError):
        # From here on it counts.
        scraped.look()
    return _serve(listeners, scraped)


def _exposition(exports: int, *, from_now: bool) -> "Exposition":
    if exports < 0:
        raise UsageError(f"{exports} exports cannot have figures of their own", "0 or more")
    try:
        # Here, because nobody else needs it.
        from fuse_gated.exposition import Exposition
    except ImportError:
        hint = "install python3-prometheus-client (pip: prometheus-client)"
        raise OperatorError("there is no library to write figures for Prometheus with", hint) from None
    return Exposition(exports, from_now=from_now)


def _serve(listeners: list[socket.socket], scraped: Scraped) -> int:
    loop = Loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.from_thread(loop.stop))
    Scraping(loop, listeners, scraped.page)
    where = ", ".join(_shown(listener) for listener in listeners)
    process.tell(PROGRAM, f"ready: listening on {where}")
    loop.run()
    for listener in listeners:
        listener.close()
    return 0


def _shown(listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return name
    host, port = name[:2]
    return f"http://[{host}]:{port}{PATH}" if ":" in host else f"http://{host}:{port}{PATH}"


def _print(exposition: "Exposition", *, as_json: bool) -> None:
    if as_json:
        families = exposition.collect()
        print_json(
            {
                family.name: [{"name": sample.name, "labels": sample.labels, "value": sample.value} for sample in family.samples]
                for family in families
            }
        )
    else:
        sys.stdout.write(exposition.render("")[1].decode())


