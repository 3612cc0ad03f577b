"""policy.yaml and policy.d/*.yaml -> tenants."""

import re
from collections.abc import Sequence
from typing import Any, Final

import yaml

from fuse_gated.config import units, values
from fuse_gated.config.document import Document, Reader, Unfit, quoted
from fuse_gated.config.settings_file import at_fault
from fuse_gated.errors import ConfigurationError
from fuse_gated.gate.policy import validate_pattern
from fuse_gated.gate.tenant import Cache, Exports, Limits, Local, Outage, Tenant, Token
from fuse_gated.gate.verdict import PERMISSIONS, Rule
from fuse_gated.paths import is_mount_name

NAME_FORM: Final = "small letters, digits, '.', '_' and '-', at most 64, the first a letter or a digit"
_CLASSES: Final = ("read", "write", "*")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_EXPORTS: Final = re.compile(r"[a-z0-9._*?\[\]!-]{1,64}", re.ASCII)


def parse_policy(files: Sequence[tuple[str, bytes]]) -> tuple[Tenant, ...]:
    """The tenants of all files, in the order in which they are written. `files` are (name, text).

    Raises ConfigurationError with every fault of every file.
    """
    policy = _Policy()
    documents = [Document(text, name) for name, text in files]
    for document in documents:
        if document.root is not None:
            document.read(document.root, policy.read)
    faults = tuple(fault for document in documents for fault in document.faults)
    if faults:
        raise ConfigurationError(*at_fault(faults), faults=faults)
    return tuple(policy.tenants)


class _Policy:
    """What holds across tenants and files: names and tokens are given once."""

    def __init__(self) -> None:
        self.tenants: list[Tenant] = []
        self._places: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        self._readers: dict[str, Reader] = {
            "tokens": values.many("tokens", self._token),
            "users": values.many("users", values.account),
            "groups": values.many("groups", values.account),
            "ownership": values.one_of("mapped", "passthrough"),
            "exports": values.structure(Exports, "exports", {"name": _export_names, "max_sessions": values.whole(1, 100_000)}),
            "rules": values.many("rules", _rule),
            "symlinks": values.one_of("inside", "as-is", "deny"),
            "limits": values.structure(Limits, "limits", _LIMITS),
            "outage": values.structure(Outage, "outage", _OUTAGE),
            "cache": values.structure(Cache, "cache", _CACHE),
            "writes": values.one_of("ahead", "leased", "through"),
            "local": values.structure(Local, "local", _LOCAL, required=("size",)),
            "audit": values.one_of("denials", "writes", "opens", "everything"),
        }

    def read(self, document: Document, node: yaml.Node) -> None:
        document.fields(node, "the policy", {"tenants": self._tenants}, required=("tenants",))

    def _tenants(self, document: Document, node: yaml.Node) -> None:
        for key, child in document.entries(node, "tenants", self._places):
            if not is_mount_name(key.value):
                document.fault(key, f"{quoted(key.value)} cannot be a tenant's name", NAME_FORM)
            document.read(child, self._tenant(key))

    def _tenant(self, key: yaml.ScalarNode) -> Reader:
        what = f"tenant {quoted(key.value)}"

        def read(document: Document, node: yaml.Node) -> None:
            fields = document.fields(node, what, self._readers)
            if fields.get("local") is not None and fields.get("ownership") == "passthrough":
                hint = "remove local, or let everything belong to the tenant's first user (ownership: mapped)"
                document.fault(key, f"{what} has local and ownership: passthrough, and a copy knows no owners", hint)
            self.tenants.append(Tenant(name=key.value, place=document.place(key), **fields))

        return read

    def _token(self, document: Document, node: yaml.Node) -> Token:
        fields = document.fields(node, "a token", _TOKEN, required=("sha256",))
        digest = fields["sha256"]
        if digest in self._digests:
            document.fault(node, "this token is given a second time", f"the first is at {self._digests[digest]}")
        elif digest is not None:
            self._digests[digest] = document.place(node)
        return Token(**fields)


def _digest(_document: Document, node: yaml.Node) -> str:
    # A digest of digits only is a number to YAML.
    value = values.scalar("a SHA-256", node)
    if not _DIGEST.fullmatch(value):
        raise Unfit(f"{quoted(value)} is not a SHA-256: 64 hexadecimal digits", "'fuse-gatectl token new TENANT' prints one")
    return value.lower()


def _export_names(document: Document, node: yaml.Node) -> str:
    value = values.text(document, node)
    if not _EXPORTS.fullmatch(value):
        raise Unfit(f"{quoted(value)} matches no export's name", f"a pattern with * and ? for names of {NAME_FORM}")
    return value


def _pattern(document: Document, node: yaml.Node) -> str:
    value = values.text(document, node)
    problem = validate_pattern(value)
    if problem is not None:
        raise Unfit(f"bad pattern {quoted(value)}: {problem}")
    return value


def _permissions(document: Document, node: yaml.Node) -> int:
    """The bits of a list of permissions."""
    names = values.many("permissions", values.one_of(*PERMISSIONS), least=1)(document, node)
    return sum(PERMISSIONS[name] for name in set(names) if name is not None)


def _rule(document: Document, node: yaml.Node) -> Rule:
    fields = document.fields(node, "a rule", _RULE, required=("path",))
    if not fields.keys() & {"allow", "deny"} and fields.get("hide", False) is False:
        document.fault(node, "the rule decides nothing", "give it allow: [...], deny: [...] or hide: true")
    if fields.get("hide") and "allow" in fields:
        document.fault(node, "the rule both hides and allows", "what is hidden does not exist for anyone: keep one of the two")
    fields = {name: value for name, value in fields.items() if value is not None or name == "path"}
    both = fields.get("allow", 0) & fields.get("deny", 0)
    if both:
        names = " and ".join(name for name, bit in PERMISSIONS.items() if bit & both)
        document.fault(node, f"the rule both allows and denies {names}", "keep it in one of the two lists")
    return Rule(place=document.place(node), **fields)


def _classes(what: str, limit: Reader) -> Reader:
    """A mapping from classes of operations to limits."""

    def read(document: Document, node: yaml.Node) -> dict[str, Any]:
        return document.fields(node, what, dict.fromkeys(_CLASSES, limit))

    return read


_TOKEN: Final = {"sha256": _digest, "expires": values.date, "note": values.text}
_RULE: Final = {"path": _pattern, "allow": _permissions, "deny": _permissions, "hide": values.boolean}
_LIMITS: Final = {
    "operations": _classes("limits.operations", values.quantity("a rate", units.rate, units.RATE_FORM, 0.001, 1e9)),
    "bytes": _classes("limits.bytes", values.quantity("a rate of bytes", units.byte_rate, units.BYTE_RATE_FORM, 1, 2**62)),
    "on_excess": values.one_of("delay", "refuse"),
    "scope": values.one_of("session", "tenant"),
    "open_files": values.whole(1, 10_000_000),
    "file_size": values.size(1, 2**63 - 1),
}
_CACHE: Final = {
    "mode": values.one_of("watched", "ttl", "strict"),
    "ttl": values.duration(0.001, 86400),
    "size": values.size(2**20, 2**36),
}
_LOCAL: Final = {"size": values.size(1, 2**39), "files": values.whole(1, 10_000_000)}
_OUTAGE: Final = {"mode": values.one_of("wait", "fail", "cached"), "grace": values.duration(0, 7 * 86400)}
