"""Admission: who may connect, who a token belongs to, and which exports its tenant may open."""

import datetime
import hmac
import ipaddress
from collections import Counter
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from fuse_gated.gate.tenant import Identity, Tenant, Token
from fuse_gated.paths import is_mount_name

NOT_A_USER: Final = "the policy's users and groups say who may, and you are none of them"


class Refusal(msgspec.Struct, frozen=True):
    """Why not: the HTTP status that says so (RFC 9110, RFC 6585), and the reason for people."""

    status: int
    reason: str


class Startups:
    """Counts the connections that have not logged in yet (sshd calls the limit MaxStartups): at most `most` of them, and
    `per_address` from one address. An IPv6 /64 counts as one address, since whoever has one address there has them all."""

    def __init__(self, most: int, per_address: int) -> None:
        self._addresses: Counter[str] = Counter()
        self.change(most, per_address)

    def change(self, most: int, per_address: int) -> None:
        """New limits; who is in stays in."""
        self.most = most
        self.per_address = per_address

    @property
    def count(self) -> int:
        """How many there are."""
        return self._addresses.total()

    def admit(self, address: str, *, proxy: bool = False) -> Refusal | None:
        """Count a new connection, or say why it is refused; then it is not counted. `address` as getpeername(2) has it, '' if
        it has none. Those of a `proxy` are not limited by its address, but by that which they `move` to."""
        if self.count >= self.most:
            return Refusal(503, f"{self.most} connections have not logged in yet, as many as may: try again in a few seconds")
        group = _group(address)
        if not proxy and self._addresses[group] >= self.per_address:
            return self._too_many(group)
        self._addresses[group] += 1
        return None

    def move(self, proxy: str, address: str) -> Refusal | None:
        """A connection that was admitted as the proxy's turns out to come from `address`: count it there, or say why it is
        refused; then it stays counted as the proxy's."""
        group = _group(address)
        if self._addresses[group] >= self.per_address:
            return self._too_many(group)
        self._addresses[group] += 1
        self.done(proxy)
        return None

    def _too_many(self, group: str) -> Refusal:
        reason = f"{self.per_address} connections from {group or 'here'} have not logged in yet, as many as may"
        return Refusal(429, f"{reason}: try again in a few seconds")

    def done(self, address: str) -> None:
        """A connection that was admitted has logged in or is gone."""
        group = _group(address)
        self._addresses[group] -= 1
        if self._addresses[group] <= 0:
            del self._addresses[group]


class Login(msgspec.Struct, frozen=True):
    """What a token turned out to be: 'tenant', 'expired' or 'unknown'. Only 'tenant' lets anyone in; an expired one still
    says whose it is, for the audit."""

    outcome: str
    tenant: Tenant | None = None
    token: Token | None = None


class Logins:
    """The tokens of all tenants."""

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self._tokens = [(_comparable(token.sha256), tenant, token) for tenant in tenants for token in tenant.tokens]

    def find(self, digest_hex: str, today: datetime.date) -> Login:
        """Whose token has this SHA-256 (hex)? Every token is compared, each in constant time, so that the time it takes tells
        nothing of how near a guess was. A token is valid to the end of its last day; `today` is UTC's."""
        digest = _comparable(digest_hex)
        login = Login("unknown")
        for known, tenant, token in self._tokens:
            if hmac.compare_digest(known, digest) and login.outcome != "tenant":
                expired = token.expires is not None and token.expires < today
                login = Login("expired" if expired else "tenant", tenant, token)
        return login


def may_open(tenant: Tenant, export: str, open_exports: Collection[str]) -> Refusal | None:
    """Why `tenant` may not open an export of that name beside those that it has open; None if it may."""
    if not is_mount_name(export):
        return Refusal(403, f"{_quoted(export)} is no export's name: lower-case letters, digits, '.', '_' and '-', at most 64")
    if not fnmatchcase(export, tenant.exports.name):
        return Refusal(403, f"tenant {tenant.name} may not use the export name '{export}', only '{tenant.exports.name}'")
    if export in open_exports:
        return Refusal(409, f"an export named '{export}' is already open: choose another name, or close that one")
    if len(open_exports) >= tenant.exports.max_sessions:
        return Refusal(429, f"tenant {tenant.name} has {len(open_exports)} exports open, as many as it may: close one first")
    return None


def may_attach(tenant: Tenant, identity: Identity, uid: int, gids: Collection[int]) -> str | None:
    """Why a program of that user and those groups may not use the tenant's exports without a mount; None if it may.

    Who may enter the mounts may, as the kernel decides it there (acl(5)); and root. With ownership 'passthrough' the files' own
    modes decide besides, which only a mount's kernel judges: then nobody else may.
    """
    if uid == 0:
        return None
    if not (identity.anyone or uid in identity.uids or not set(gids).isdisjoint(identity.gids)):
        return NOT_A_USER
    if tenant.ownership == "passthrough":
        return f"tenant {tenant.name} passes ownership through: files' own modes count, and only a mount's kernel judges them"
    return None


def _group(address: str) -> str:
    """What counts as one address: IPv6 by its /64, an IPv4 address mapped into IPv6 (RFC 4291) as what it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))


def _comparable(digest_hex: str) -> bytes:
    return digest_hex.lower().encode("ascii", "backslashreplace")


def _quoted(name: str) -> str:
    return ascii(name if len(name) <= 64 else name[:64] + "...")
