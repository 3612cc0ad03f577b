"""`fuse-gatectl audit`: who did what, and whether the records of it are whole."""

import argparse
import datetime
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from fuse_gated import paths
from fuse_gated.commands.output import Style, plain
from fuse_gated.config.settings import Audit
from fuse_gated.edge import journal
from fuse_gated.edge.etc import read_settings
from fuse_gated.edge.records import UNIT, FileSource, Filters, JournalSource, Source, read, realtime
from fuse_gated.errors import ConfigurationError, UsageError
from fuse_gated.gate.audit_verify import Verified, verify

_CANNOT_SHOW: Final = (
    "The chain cannot show records cut off at the end, nor a whole chain written anew by someone who may change the journal.\n"
    "Against those: seal the journal (journalctl --setup-keys), or send it to another machine."
)
_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_BLOCK: Final = 500


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand; its arguments go to `run`, with `etc`, the directory of the configuration, besides."""
    parser = subparsers.add_parser(
        "audit",
        help="show the audit records, or verify that none is missing or altered",
        description="Shows the audit records, oldest first. With --verify, checks the chain of each session's records instead.",
        epilog="T is a local time such as 2026-01-31, 2026-01-31T14:00 or 14:00, @SECONDS since the epoch, or '90min ago'.",
    )
    parser.add_argument("--tenant", metavar="T", help="only this tenant's")
    parser.add_argument("--session", metavar="S", help="only this session's")
    parser.add_argument("--path", metavar="P", help="only what concerns this path of the export, or one beneath it")
    parser.add_argument("--uid", type=int, metavar="N", help="only what this user of the server asked for")
    parser.add_argument("--operation", metavar="O", help="only this operation, such as unlink")
    parser.add_argument("--decision", choices=("allowed", "denied", "failed"), help="only what was decided so")
    parser.add_argument("--since", metavar="T", help="only records from this time on")
    parser.add_argument("--until", metavar="T", help="only records up to this time")
    parser.add_argument("--file", action="append", metavar="FILE", help="read this file of JSON lines (several: oldest first)")
    parser.add_argument("--runtime", metavar="DIR", help="the runtime directory, as before the command")
    parser.add_argument("--unit", help=f"the unit whose records in the journal count (default {UNIT}), or 'any'")
    parser.add_argument("--verify", action="store_true", help="check that no record is missing, altered, doubled or out of order")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 1 where --verify found a fault. Raises OperatorError where the records cannot be read,
    UsageError for arguments that make no sense."""
    filters = _filters(args, time.time())
    source = _source(args)
    if args.verify:
        return _verify(source, filters, args)
    records = read(source, filters)
    lines = map(_json_line, records) if args.json else _table(records, Style(sys.stdout))
    headings = 0 if args.json else 1
    printed = 0
    for line in lines:
        print(line)
        printed += 1
    if printed == headings:
        source.notes.append("no such record was found")
    _tell(source.notes)
    return 0


def _verify(source: Source, filters: Filters, args: argparse.Namespace) -> int:
    if filters.path is not None or any(value is not None for value in (filters.uid, filters.operation, filters.decision)):
        raise UsageError(
            "--verify needs every record of a session", "leave out --path, --uid, --operation and --decision, and name --session"
        )
    beginning = "--since leaves them out" if filters.since is not None else source.beginning()
    # Before its login a session has no tenant, yet those records are part of its chain.
    records = read(source, msgspec.structs.replace(filters, tenant=None))
    sessions = [
        session for session in verify(records, beginning=beginning) if filters.tenant is None or session.tenant == filters.tenant
    ]
    style = Style(sys.stdout)
    for session in sessions:
        print(msgspec.json.encode(session).decode() if args.json else _shown_session(session, style))
    if not sessions and not args.json:
        print("There are no records to verify.")
    print(_CANNOT_SHOW, file=sys.stderr if args.json else sys.stdout)
    _tell(source.notes)
    return 1 if any(session.faults for session in sessions) else 0


def _shown_session(session: Verified, style: Style) -> str:
    name = f"{session.tenant}/{session.export}" if session.export else session.tenant
    title = " ".join(plain(part) for part in (name, "session", session.session) if part)
    lines = [f"{title}: {style.paint('bad', 'not whole')}: {session.records} records seen, up to record {session.last}"]
    if not session.faults:
        lines = [f"{title}: {style.paint('good', 'whole')}: records {session.first}..{session.last}"]
    lines += [f"  {style.paint('bad', fault.kind)}: {fault.message}" for fault in session.faults]
    lines += [f"  note: {note}" for note in session.notes]
    return "\n".join(lines)


def _source(args: argparse.Namespace) -> Source:
    """Where the daemon writes, unless --file says where to read."""
    if args.file:
        return FileSource(*args.file)
    notes = []
    try:
        audit = read_settings(Path(args.etc)).audit
    except ConfigurationError as error:
        audit = Audit()
        notes.append(f"what fuse-gated.yaml says of the audit is not known, and taken to be the default: {error.message}")
    file = journal.audit_file(audit, args.runtime)
    source: Source
    if audit.to == "file" or (audit.to == "auto" and not os.path.exists(journal.SOCKET)):
        source = FileSource(file)
    else:
        source = JournalSource(unit=_unit(args.unit))
        if os.path.exists(file):
            notes.append(f"there are records in {file} too: see them with --file {file}")
    source.notes.extend(notes)
    return source


def _unit(told: str | None) -> str | None:
    if told is None:
        # Only systemd puts processes into units (sd_booted(3)).
        return UNIT if os.path.isdir("/run/systemd/system") else None
    return None if told == "any" else told


def _filters(args: argparse.Namespace, now: float) -> Filters:
    return Filters(
        tenant=args.tenant,
        session=args.session,
        path=None if args.path is None else os.fsencode(args.path).strip(b"/"),
        uid=args.uid,
        operation=args.operation,
        decision=args.decision,
        since=None if args.since is None else max(0, _usec(args.since, now)),
        until=None if args.until is None else max(0, _usec(args.until, now)),
    )


def _usec(told: str, now: float) -> int:
    """A time of the command line in microseconds since the epoch."""
    if match := re.fullmatch(r"@(\d{1,11}(?:\.\d{1,6})?)", told):
        return round(float(match[1]) * 1e6)
    if match := re.fullmatch(r"(\d{1,9}) ?([a-z]+) ago", told):
        if match[2] in _UNITS:
            return round((now - int(match[1]) * _UNITS[match[2]]) * 1e6)
    elif told == "now":
        return round(now * 1e6)
    moment = told
    if match := re.fullmatch(r"(\d{1,2})(:\d\d(?::\d\d)?)", told):
        moment = f"{datetime.datetime.fromtimestamp(now).date()}T{match[1]:0>2}{match[2]}"
    try:
        return round(datetime.datetime.fromisoformat(moment).timestamp() * 1e6)
    except (ValueError, OverflowError):
        raise UsageError(
            f"'{told}' is not a time", "write 2026-01-31, 2026-01-31T14:00, 14:00, @SECONDS, now, or '2h ago' (s, min, h, d, w)"
        ) from None


def _json_line(record: dict[str, bytes]) -> str:
    fields = [(name, value) for name, value in record.items() if name != "__REALTIME_TIMESTAMP"]
    return journal.json_line(fields, realtime(record)).decode().rstrip("\n")


_COLOURS: Final = {
    "headings": "strong",
    "refused": "bad",
    "login-refused": "bad",
    "connection-refused": "bad",
    "protocol-violation": "bad",
    "audit-gap": "bad",
    "failed": "warn",
    "limited": "warn",
}
_HEADINGS: Final = ("TIME", "EXPORT", "UID", "PID", "WHAT", "OPERATION", "PATH", "WHY")


def _table(records: Iterable[dict[str, bytes]], style: Style) -> Iterator[str]:
    """Aligned a block at a time, so that a long journal neither waits nor has to be held whole."""
    widths = [len(heading) for heading in _HEADINGS]
    block: list[tuple[str, tuple[str, ...]]] = [("headings", _HEADINGS)]
    for record in records:
        block.append((record.get("FUSE_GATED_KIND", b"").decode(errors="replace"), _row(record)))
        if len(block) >= _BLOCK:
            yield from _aligned(block, widths, style)
            block = []
    yield from _aligned(block, widths, style)


def _aligned(block: list[tuple[str, tuple[str, ...]]], widths: list[int], style: Style) -> Iterator[str]:
    for _, row in block:
        widths[:] = [max(width, len(cell)) for width, cell in zip(widths, row, strict=True)]
    for kind, row in block:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        yield style.paint(_COLOURS.get(kind, ""), line)


def _row(record: dict[str, bytes]) -> tuple[str, ...]:
    def told(name: str) -> str:
        return plain(record.get(f"FUSE_GATED_{name}", b"").decode("utf-8", "backslashreplace"))

    def told_path(name: str) -> str:
        path = record.get(f"FUSE_GATED_{name}")
        return "" if path is None else paths.shown(path[1:])

    moved = told_path("NEW_PATH")
    parts: dict[str, Callable[[str], str]] = {
        "RULE": lambda rule: f"rule {rule}", "ERRNO": str, "COUNT": _counted("time"), "BYTES": _counted("byte"),
        "DURATION_USEC": _shown_duration, "DETAIL": str,
    }  # fmt: skip
    why = [show(told(name)) for name, show in parts.items() if told(name)]
    return (
        _shown_moment(realtime(record)),
        "/".join(filter(None, (told("TENANT"), told("EXPORT")))),
        told("UID"),
        told("PID"),
        told("KIND"),
        told("OPERATION"),
        f"{told_path('PATH')} -> {moved}" if moved else told_path("PATH"),
        ", ".join(why),
    )


def _counted(what: str) -> Callable[[str], str]:
    return lambda count: f"{count} {what}" if count == "1" else f"{count} {what}s"


def _shown_duration(microseconds: str) -> str:
    """In the unit that leaves at most three digits before the point; as it stands, if it is no number."""
    if not microseconds.isdecimal() or len(microseconds) > 15:
        return microseconds
    count = int(microseconds)
    return f"{count} us" if count < 1000 else f"{count / 1e3:.1f} ms" if count < 1e6 else f"{count / 1e6:.1f} s"


def _shown_moment(usec: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(usec / 1e6).isoformat(" ", "milliseconds")
    except (ValueError, OverflowError, OSError):
        # No writer told this time; the record shows all the same.
        return "?"


def _tell(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {plain(note)}", file=sys.stderr)
