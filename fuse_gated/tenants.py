"""The policy in force, as the daemon uses it: whose token it is, what that tenant may open, and what a new policy changes."""

import datetime
from pathlib import Path

from fuse_gated import supervision
from fuse_gated.config.settings_file import at_fault
from fuse_gated.edge import etc
from fuse_gated.errors import ConfigurationError
from fuse_gated.gate.admission import Login, Logins, may_open
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.supervision import CLOSE_LIMIT, CLOSE_LOGIN, CLOSE_POLICY

Entry = tuple[Tenant, Identity]


class Tenants:
    """All tenants, with their users and groups looked up."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._entries = entries
        self._logins = Logins(tenant for tenant, _ in entries.values())

    @classmethod
    def read(cls, directory: Path) -> "Tenants":
        """The policy in `directory`. Raises ConfigurationError with every fault."""
        faults: list[str] = []
        read: dict[str, Entry] = {}
        for tenant in etc.read_policy(directory):
            try:
                read[tenant.name] = (tenant, etc.identity(tenant))
            except ConfigurationError as error:
                faults += error.faults
        if faults:
            raise ConfigurationError(*at_fault(tuple(faults)), faults=tuple(faults))
        return cls(read)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def log_in(self, digest: str) -> Entry | str:
        """Whose token has this digest, or for people why it is nobody's."""
        login = self._find(digest)
        if login.outcome == "tenant" and login.tenant is not None:
            return self._entries[login.tenant.name]
        if login.outcome == "expired" and login.token is not None:
            return f"the token has expired on {login.token.expires}: ask for a new one"
        return "the token is not known here"

    def open(self, tenant: Tenant, export: str, others: list[str]) -> Entry | supervision.OpenRefused:
        """What a mount of `export` is to be made with, beside these exports of the same tenant; or why not."""
        entry = self._entries.get(tenant.name)
        if entry is None:
            return supervision.OpenRefused("the tenant is gone from the policy", CLOSE_LOGIN)
        refusal = may_open(entry[0], export, others)
        if refusal is not None:
            return supervision.OpenRefused(refusal.reason, CLOSE_LIMIT if refusal.status in (409, 429) else CLOSE_POLICY)
        return entry

    def renew(self, tenant: Tenant, digest: str) -> Entry | supervision.End:
        """What a session goes on with that logged in with that token as `tenant` of an earlier policy; or why it ends."""
        return self.renew_as(tenant.name, digest, _settled(tenant))

    def renew_as(self, name: str, digest: str, settled: tuple[str, bool]) -> Entry | supervision.End:
        """As `renew`, for a tenant of that name; `settled`: its ownership, and whether it had symlinks: deny."""
        entry = self._entries.get(name)
        if entry is None:
            return supervision.End(CLOSE_LOGIN, "the tenant is gone from the policy")
        login = self._find(digest)
        if login.outcome != "tenant" or login.tenant is None or login.tenant.name != name:
            return supervision.End(CLOSE_LOGIN, "the token is no longer valid")
        if _settled(entry[0]) != settled:
            return supervision.End(CLOSE_POLICY, "the policy's ownership or symlinks changed: connect again")
        return entry

    def _find(self, digest: str) -> Login:
        return self._logins.find(digest, datetime.datetime.now(datetime.UTC).date())


def _settled(tenant: Tenant) -> tuple[str, bool]:
    """What is settled when the mount is made, and cannot change while it is there."""
    return tenant.ownership, tenant.symlinks == "deny"
