"""What a policy without faults may still have wrong: for `fuse-gatectl check`."""

import datetime
from collections.abc import Iterator, Sequence

from fuse_gated.gate.policy import compile_pattern
from fuse_gated.gate.tenant import Tenant
from fuse_gated.gate.verdict import ALL


def warnings(tenants: Sequence[Tenant], today: datetime.date) -> tuple[str, ...]:
    """What a person should look at, each with its place. `today` is the day in UTC."""
    if not tenants:
        return ("no tenant is defined: nobody can log in",)
    return tuple(
        f"{place}: tenant '{tenant.name}': {warning}" for tenant in tenants for place, warning in _of_tenant(tenant, today)
    )


def _of_tenant(tenant: Tenant, today: datetime.date) -> Iterator[tuple[str, str]]:
    expired = [token for token in tenant.tokens if token.expires is not None and token.expires < today]
    for token in expired:
        name = f"'{token.note}'" if token.note else f"{token.sha256[:8]}…"
        yield tenant.place, f"the token {name} expired on {token.expires}"
    if len(expired) == len(tenant.tokens):
        yield tenant.place, "no token is valid, so nobody can log in (fuse-gatectl token new)"
    if "*" in tenant.users:
        yield tenant.place, "users '*' lets every user of this server into its mounts"
    elif not tenant.users and not tenant.groups:
        yield tenant.place, "neither users nor groups are named, so nobody on this server can enter its mounts"
    if not any(rule.allow for rule in tenant.rules):
        yield tenant.place, "no rule allows anything"
    decided: dict[str, tuple[int, str]] = {}
    for rule in tenant.rules:
        names = rule.allow | rule.deny
        earlier, place = decided.get(rule.path, (0, rule.place))
        # A hide rule comes too late as soon as a rule for the same paths decides anything.
        if (earlier or not rule.hide) and not names & ~earlier:
            yield rule.place, f"the rule for {rule.path} never decides: {place} does before it"
        pattern = compile_pattern(rule.path)
        # The root is never hidden, so what follows a hide rule that matches it still decides there.
        hides_all = rule.hide and not earlier and not pattern.accepts(pattern.start)
        decided[rule.path] = ALL if hides_all else earlier | names, place
