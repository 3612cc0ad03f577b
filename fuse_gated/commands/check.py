"""`fuse-gatectl check`: whether a configuration is right, before the daemon is asked to take it."""

import argparse
import datetime
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fuse_gated.commands.output import Style, plain, print_json, table
from fuse_gated.config.advice import warnings
from fuse_gated.config.settings import Settings, Tls
from fuse_gated.config.settings_file import at_fault
from fuse_gated.edge import process
from fuse_gated.edge.etc import identity, read_policy, read_settings, unread_files
from fuse_gated.edge.process import Account
from fuse_gated.errors import ConfigurationError, OperatorError
from fuse_gated.gate.tenant import Tenant

Read = TypeVar("Read")


class Findings(msgspec.Struct, frozen=True):
    """What a configuration is like. With faults, `tenants` may be empty and warnings may be missing."""

    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    tenants: tuple[Tenant, ...]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the subcommand; its arguments go to `run`."""
    parser = subparsers.add_parser(
        "check",
        parents=[common],
        help="check the configuration",
        description="Reads the settings and the policy as the daemon does, and tells every fault and what looks wrong.",
    )
    parser.add_argument("directory", metavar="DIR", nargs="?", type=Path, help="another directory than that of --etc")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Returns the exit status: 4 where there are faults."""
    etc: Path = options.directory or options.etc
    findings = examine(etc)
    if options.json:
        print_json(
            {
                "directory": str(etc),
                "faults": findings.faults,
                "warnings": findings.warnings,
                "tenants": [_summary(tenant) for tenant in findings.tenants],
            }
        )
    else:
        _print(etc, findings)
    return ConfigurationError.exit_status if findings.faults else 0


def examine(etc: Path) -> Findings:
    """Reads everything that the daemon would read in `etc`, and looks up every user and group."""
    faults: list[str] = []
    settings = _attempt(faults, read_settings, etc)
    tenants = _attempt(faults, read_policy, etc)
    if _is_missing(etc):
        faults.insert(0, f"{etc}: there is no such directory (install -d -m 755 {etc})")
    for tenant in tenants or ():
        _attempt(faults, identity, tenant)
    told: list[str] = []
    if not faults and settings is not None:
        told += [f"{name}: is not read: its name does not end in .yaml" for name in unread_files(etc)]
        told += _as_the_daemon(etc, settings, faults)
    told += _of_tls(settings) if settings is not None else []
    told += warnings(tenants, datetime.datetime.now(datetime.UTC).date()) if tenants is not None else []
    return Findings(tuple(dict.fromkeys(faults)), tuple(told), tenants or ())


def _is_missing(path: Path) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _attempt(faults: list[str], read: Callable[[Any], Read], what: Any) -> Read | None:
    try:
        return read(what)
    except ConfigurationError as error:
        faults += error.faults or [str(error)]
        return None


def _as_the_daemon(etc: Path, settings: Settings, faults: list[str]) -> list[str]:
    """Root reads everything, but the daemon reads the policy as the user that it becomes. Adds to the faults; returns what is
    a fault under systemd only, where it reads its settings as that user too."""
    account = process.find_account(settings.user) or process.find_account("nobody")
    if os.geteuid() != 0 or account is None or account.uid == 0:
        return []
    told: list[str] = []
    _attempt(faults, lambda etc: _read_as(account, read_policy, etc), etc)
    _attempt(told, lambda etc: _read_as(account, read_settings, etc), etc)
    return [f"{warning}: under systemd the daemon would not start" for warning in told]


def _read_as(account: Account, read: Callable[[Path], object], etc: Path) -> None:
    """Raises ConfigurationError with what the user cannot read. In a process of its own: nobody becomes root again."""
    directory = os.open(etc, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    reader, writer = os.pipe()
    told: list[str] = []

    def look() -> int:
        process.drop_to(account.uid, account.gid, process.groups_of(account))
        # As it is given to the daemon: open, because that may not be allowed to walk there.
        _attempt(told, read, Path(f"/proc/self/fd/{directory}"))
        with open(writer, "wb", closefd=False) as pipe:
            pipe.write(msgspec.json.encode(told))
        return 0

    try:
        child = process.spawn(look, program="fuse-gatectl")
        os.close(writer)
        with open(reader, "rb", closefd=False) as pipe:
            said = pipe.read()
        if child.wait() != 0:
            raise OperatorError(f"{etc} cannot be read as user {account.name}", "what is told above says why")
    finally:
        os.close(reader)
        os.close(directory)
    found = msgspec.json.decode(said, type=tuple[str, ...])
    if found:
        raise ConfigurationError(*at_fault(found), faults=found)


def _of_tls(settings: Settings) -> list[str]:
    """The daemon reads these as it starts; that they can be read as they stand is no part of the file's correctness."""
    if settings.tls is None:
        return []
    told: list[str] = []
    for field in Tls.__struct_fields__:
        path = getattr(settings.tls, field)
        if path is None:
            continue
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            told.append(f"tls.{field}: {path}: {error.strerror}; here the daemon would not start")
            continue
        if field == "key" and stat.S_IMODE(mode) & 0o037:
            told.append(f"tls.key: others can read or write {path} (mode {stat.S_IMODE(mode):04o}): chmod 640 {path}")
    return told


def _summary(tenant: Tenant) -> dict[str, Any]:
    return {
        "name": tenant.name,
        "place": tenant.place,
        "tokens": len(tenant.tokens),
        "users": tenant.users,
        "groups": tenant.groups,
        "ownership": tenant.ownership,
        "rules": len(tenant.rules),
        "audit": tenant.audit,
    }


def _print(etc: Path, findings: Findings) -> None:
    style = Style(sys.stdout)
    for fault in findings.faults:
        print(f"{style.paint('bad', 'fault')}    {plain(fault)}")
    for warning in findings.warnings:
        print(f"{style.paint('warn', 'warning')}  {plain(warning)}")
    if findings.faults:
        count = len(findings.faults)
        print(f"{plain(etc)} has {'one fault' if count == 1 else f'{count} faults'}; the daemon would not take it.")
        return
    rows = [
        (tenant.name, len(tenant.tokens), ", ".join((*tenant.users, *("@" + name for name in tenant.groups))), len(tenant.rules))
        for tenant in findings.tenants
    ]
    if rows:
        heading, *lines = table(("TENANT", "TOKENS", "USERS", "RULES"), rows)
        print("\n".join([style.paint("strong", heading), *lines]))
    mind = " Mind the warnings." if findings.warnings else ""
    print(style.paint("good", f"{plain(etc)} is right.{mind}"))
