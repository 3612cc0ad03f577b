"""`fuse-gatectl token new`: a login for a tenant. The server keeps only its hash, so the token is shown once."""

import argparse
import datetime
import hashlib
import json
import re
import secrets
import sys
from pathlib import Path
from typing import Final

from fuse_gated.commands.output import print_json
from fuse_gated.edge.etc import read_policy
from fuse_gated.errors import ConfigurationError, UsageError
from fuse_gated.paths import is_mount_name

PREFIX: Final = "fg_"
"""So that a token is known for what it is where it should not be: in a log, in a repository."""
_BYTES: Final = 32
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the subcommand; its arguments go to `run`."""
    token = subparsers.add_parser("token", help="make a token")
    actions = token.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser(
        "new",
        parents=[common],
        help="make a token for a tenant",
        description="Makes a token and prints it once, with the line for the policy, which holds only its hash.",
    )
    new.add_argument("tenant", metavar="TENANT")
    new.add_argument("--expires", metavar="DATE", help="the last day (UTC) on which it is valid, such as 2027-01-31")
    new.add_argument("--note", metavar="TEXT", default="", help="what it is for")
    new.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises UsageError."""
    if not is_mount_name(options.tenant):
        raise UsageError(f"'{options.tenant}' cannot be a tenant's name", "small letters, digits, '.', '_' and '-', at most 64")
    if not options.note.isprintable():
        raise UsageError("the note holds control characters", "leave them out")
    expires = None if options.expires is None else _day(options.expires)
    token = PREFIX + secrets.token_urlsafe(_BYTES)
    digest = hashlib.sha256(token.encode()).hexdigest()
    line = policy_line(digest, expires, options.note)
    if options.json:
        print_json(
            {"tenant": options.tenant, "token": token, "sha256": digest, "expires": expires, "note": options.note, "policy": line}
        )
        return 0
    print(f"The token, shown this once. Give it to the client in a file that only its user can read:\n\n{token}\n")
    print(f"Its line for the policy, among the tokens of tenant {options.tenant}:\n\n      {line}\n")
    print("The running daemon takes it with: systemctl reload fuse-gated")
    if _is_missing(options.etc, options.tenant):
        print(f"fuse-gatectl: the policy in {options.etc} has no tenant '{options.tenant}' yet", file=sys.stderr)
    return 0


def policy_line(digest: str, expires: datetime.date | None, note: str) -> str:
    """An entry of a tenant's `tokens`, as YAML."""
    # A JSON string is one of YAML's, as long as nothing outside ASCII is written as a pair of surrogates.
    parts = [f'sha256: "{digest}"']
    parts += [f"expires: {expires}"] if expires is not None else []
    parts += [f"note: {json.dumps(note, ensure_ascii=False)}"] if note else []
    return f"- {{{', '.join(parts)}}}"


def _day(told: str) -> datetime.date:
    try:
        if not _DATE.fullmatch(told):
            raise ValueError
        day = datetime.date.fromisoformat(told)
    except ValueError:
        raise UsageError(f"'{told}' is not a date", "such as 2027-01-31") from None
    if day < datetime.datetime.now(datetime.UTC).date():
        raise UsageError(f"{day} is over", "name a day to come")
    return day


def _is_missing(etc: Path, tenant: str) -> bool:
    try:
        return all(known.name != tenant for known in read_policy(etc))
    except ConfigurationError:
        # The policy's own faults are told by `check`; a token can be made before there is one.
        return False
