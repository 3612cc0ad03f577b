"""The proof that a directory may move: nothing beneath the new place may what it may not beneath the old one.

The proof looks at what each rule's pattern still has to match, at the old place and at the new one, and asks for every path
beneath at once: the rule may match it at both, at one, or at neither. Where the rest is the same on both sides, so is the
answer; where it is `**`, the rule matches for certain; where nothing is left, it does not. Going through the rules in order
with every course that this leaves open, the new side must never grant what the old side does not. More courses are looked at
than real names can take, so what is proved is true, and some of what is true is not proved.

That no way is opened to what could not be reached before needs no proof of its own: `Standing.beneath` counts a rule that
allows and is shadowed by none, and in the course where just that rule matches, what it allows is granted.
"""

from collections.abc import Callable, Sequence

from fuse_gated.gate.pattern import Pattern
from fuse_gated.gate.verdict import DELETE, EXECUTE, PERMISSIONS, READ, WRITE, Rule

Decision = bool | None
"""Granted, denied, or left to a later rule."""
Decide = Callable[[Rule], Decision]
"""What a rule decides where it matches."""
Live = Sequence[tuple[Rule, Pattern, int, int]]
"""Each rule that may match anything, with the rests of its pattern at two places."""


def proves_narrower(rules: Sequence[Rule], patterns: Sequence[Pattern], old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether, of all that the gate decides, nothing is granted beneath the new place that is not at the same path beneath the
    old one. `old` and `new` are each pattern's rest there; neither place may be hidden or the root."""
    forward = [entry for entry in zip(rules, patterns, new, old, strict=True) if entry[2] or entry[3]]
    # Seen: what is hidden at the old place, or has a hidden ancestor there, is hidden at the new one by the same ancestor.
    if not _implies(forward, _seen, _seen, default=True):
        return False
    if not all(_implies(forward, _granted(permission), _granted(permission)) for permission in PERMISSIONS.values()):
        return False
    # A directory that may something but not be read lists less than one that may nothing: what may something at the old place
    # must be readable there, or may something at the new one too.
    beside = [(rule, pattern, before, before) for rule, pattern, _after, before in forward]
    backward = [(rule, pattern, before, after) for rule, pattern, after, before in forward]
    others = (WRITE, EXECUTE, DELETE)
    return all(
        _implies(beside, _granted(permission), _granted(READ))
        or any(_implies(backward, _granted(permission), _granted(other)) for other in others)
        for permission in others
    )


def _implies(live: Live, one: Decide, other: Decide, *, default: bool = False) -> bool:
    """Whether, for every path beneath, the `other` is granted at the second place if the `one` is at the first. What no rule
    decides is `default`."""
    courses: set[tuple[Decision, Decision]] = {(None, None)}
    for rule, pattern, here, there in live:
        decisions = {
            (one(rule) if matched else None, other(rule) if matched_there else None)
            for matched, matched_there in _matches(pattern, here, there)
        }
        courses = {
            (first if first is not None else now, second if second is not None else then)
            for first, second in courses
            for now, then in decisions
        }
        # Once the one is denied or the other granted, nothing can go wrong in that course any more.
        courses = {(first, second) for first, second in courses if first is not False and second is not True}
        if (True, False) in courses:
            return False
    if default:
        return (None, False) not in courses
    return (True, None) not in courses


def _matches(pattern: Pattern, here: int, there: int) -> list[tuple[bool, bool]]:
    """Whether one path beneath both places may be matched: (at the first, at the second)."""
    if here == there:
        return [(matched, matched) for matched in _may_match(pattern, here)]
    return [(first, second) for first in _may_match(pattern, here) for second in _may_match(pattern, there)]


def _may_match(pattern: Pattern, rest: int) -> tuple[bool, ...]:
    if not rest:
        return (False,)
    return (True,) if pattern.is_universal(rest) else (False, True)


def _seen(rule: Rule) -> Decision:
    return not rule.hide if rule.hide or rule.allow | rule.deny else None


def _granted(permission: int) -> Decide:
    def decide(rule: Rule) -> Decision:
        return not rule.deny & permission if (rule.allow | rule.deny) & permission else None

    return decide
