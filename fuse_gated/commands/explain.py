"""`fuse-gatectl explain`: what the gate says of an operation, and the rule that says it. It is the gate that workers run."""

import argparse
import os
import sys
import textwrap

from fuse_gated import paths
from fuse_gated.commands.output import Style, pairs, print_json
from fuse_gated.config.document import resembling
from fuse_gated.edge.etc import identity, read_policy
from fuse_gated.errors import UsageError
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.judgement import OPERATIONS
from fuse_gated.gate.tenant import Tenant
from fuse_gated.gate.verdict import Verdict


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the subcommand; its arguments go to `run`."""
    parser = subparsers.add_parser(
        "explain",
        parents=[common],
        help="say what the policy decides, and by which rule",
        description="Says what the gate decides on an operation, and by which rule. Exits 0 if it is allowed, 1 if not.",
        epilog=textwrap.fill("Operations: " + ", ".join(OPERATIONS), width=78),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tenant", metavar="TENANT")
    parser.add_argument("path", metavar="PATH", help="in the export, such as /src/main.c")
    parser.add_argument("operation", metavar="OPERATION", help="such as open-read, write, create, unlink, rename, readdir")
    parser.add_argument(
        "other", metavar="OTHER_PATH", nargs="?", help="the second path of a rename, an exchange, a link or a copy"
    )
    parser.add_argument("--directory", action="store_true", help="what is renamed, exchanged or asked about is a directory")
    parser.add_argument("--replaces", action="store_true", help="the new name of a rename is taken already")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Returns the exit status: 0 allowed, 1 not. Raises UsageError, and ConfigurationError for a policy at fault."""
    path = _path(options.path)
    other = None if options.other is None else _path(options.other)
    tenant = _tenant(read_policy(options.etc), options.tenant)
    gate = Gate(tenant, identity(tenant))
    verdict = gate.judge(options.operation, path, other, directory=options.directory, replaces=options.replaces)
    if options.json:
        print_json(
            {
                "tenant": tenant.name,
                "operation": options.operation,
                "path": paths.shown(path),
                "other": None if other is None else paths.shown(other),
                "allowed": verdict.allowed,
                "errno": verdict.errno,
                "rule": verdict.rule,
                "reason": verdict.reason,
            }
        )
    else:
        _print(tenant, options.operation, path, other, verdict)
    return 0 if verdict.allowed else 1


def _tenant(tenants: tuple[Tenant, ...], name: str) -> Tenant:
    for tenant in tenants:
        if tenant.name == name:
            return tenant
    names = [tenant.name for tenant in tenants]
    raise UsageError(f"the policy has no tenant '{name}'", resembling(name, names) or "there are " + (", ".join(names) or "none"))


def _path(told: str) -> bytes:
    """The path as the gate knows it: relative to the export's root, of safe components."""
    path = os.fsencode(told).strip(b"/")
    for name in paths.components(path):
        if not paths.is_safe_name(name):
            raise UsageError(f"'{told}' is no path that reaches the gate", "name it without '.', '..' and doubled slashes")
    return path


def _print(tenant: Tenant, operation: str, path: bytes, other: bytes | None, verdict: Verdict) -> None:
    style = Style(sys.stdout)
    word, kind = ("allowed", "good") if verdict.allowed else ("denied", "bad")
    target = paths.shown(path) if other is None else f"{paths.shown(path)} -> {paths.shown(other)}"
    print(f"{style.paint(kind, word)}: {operation} {target} (tenant {tenant.name})")
    entries = [("rule", verdict.rule or "none"), ("errno", verdict.errno or ""), ("reason", verdict.reason)]
    for line in pairs((name, value) for name, value in entries if value):
        print(f"  {line}")
