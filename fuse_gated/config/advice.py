"""What a policy without faults may still have wrong: for `fuse-gatectl check`."""

import datetime
from collections.abc import Iterator, Sequence

from fuse_gated.gate.pattern import Pattern, text_of
from fuse_gated.gate.policy import compile_pattern
from fuse_gated.gate.tenant import Tenant
from fuse_gated.gate.verdict import ALL, PERMISSIONS, Rule


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
    yield from _deciding_nothing(tenant.rules)
    yield from _restricting_nothing(tenant.rules)


def _deciding_nothing(rules: Sequence[Rule]) -> Iterator[tuple[str, str]]:
    """Rules that come too late: earlier ones decide all that they name, on all of their paths."""
    patterns = [compile_pattern(rule.path) for rule in rules]
    decides: list[int] = []
    for index, rule in enumerate(rules):
        names, earlier, places = rule.allow | rule.deny, 0, []
        # A hide rule comes too late as soon as anything is decided on its paths.
        wanted = ALL if rule.hide else names
        for other, pattern, bits in zip(rules[:index], patterns, decides, strict=False):
            if bits & wanted & ~earlier and _covers(pattern, patterns[index]):
                earlier |= bits
                places.append(other.place)
        if places and not names & ~earlier:
            before = f"{places[0]} does" if len(places) == 1 or rule.hide else f"{', '.join(places)} do"
            yield rule.place, f"the rule for {rule.path} never decides: {before} before it"
        # The root is never hidden, so what follows a hide rule that matches it still decides there.
        hides_all = rule.hide and not earlier and not patterns[index].accepts(patterns[index].start)
        decides.append(ALL if hides_all else names)


def _restricting_nothing(rules: Sequence[Rule]) -> Iterator[tuple[str, str]]:
    """Rules that look as if they allowed no more than they say, and change nothing: a later one allows the same, and the rest."""
    patterns = [compile_pattern(rule.path) for rule in rules]
    for index, rule in enumerate(rules):
        if rule.deny or rule.hide or not rule.allow:
            continue
        later = [
            (other, _covers(pattern, patterns[index]))
            for other, pattern in zip(rules[index + 1 :], patterns[index + 1 :], strict=True)
            if not _apart(pattern, patterns[index])
        ]
        heirs = {name: _heir(later, bit) for name, bit in PERMISSIONS.items()}
        if any(heirs[name] is None for name, bit in PERMISSIONS.items() if rule.allow & bit):
            continue
        more = {name: heir for name, heir in heirs.items() if heir is not None and not rule.allow & PERMISSIONS[name]}
        for heir in dict.fromkeys(more.values()):
            names = [name for name in more if more[name] == heir]
            yield (
                rule.place,
                f"the rule for {rule.path} restricts nothing: {heir.place} allows {', '.join(names)} there "
                f"(what is not to be allowed must be denied: deny: [{', '.join(names)}])",
            )


def _heir(later: Sequence[tuple[Rule, bool]], permission: int) -> Rule | None:
    """The rule that allows the permission on all of the paths, were they left to it; None if that cannot be said."""
    for rule, covers in later:
        if rule.hide or (rule.allow | rule.deny) & permission:
            return rule if covers and rule.allow & permission else None
    return None


def _covers(wide: Pattern, narrow: Pattern) -> bool:
    """Whether the one certainly matches every path that the other matches."""
    positions = wide.start
    for part in narrow.parts:
        if wide.is_universal(positions):
            return True
        if not isinstance(part, bytes):
            return wide.text == narrow.text
        positions = wide.step(positions, part, text_of(part))
    return wide.accepts(positions)


def _apart(one: Pattern, other: Pattern) -> bool:
    """Whether certainly no path is matched by both."""
    return _misses(one, other) or _misses(other, one)


def _misses(pattern: Pattern, other: Pattern) -> bool:
    positions = pattern.start
    for part in other.parts:
        if not isinstance(part, bytes):
            return not positions
        positions = pattern.step(positions, part, text_of(part))
    return not pattern.accepts(positions)
