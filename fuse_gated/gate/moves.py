"""The proof that a directory may move: nothing beneath the new place may what it may not beneath the old one.

The proof looks at what each rule's pattern still has to match, at the old place and at the new one, and asks for every path
beneath at once: the rule may match it at both, at one, or at neither. Where the rest is the same on both sides, so is the
answer; where it is `**`, the rule matches for certain; where nothing is left, it does not. Going through the rules in order
with every course that this leaves open, the new side must never grant what the old side does not. More courses are looked at
than real names can take, so what is proved is true, and some of what is true is not proved.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fuse_gated.gate.pattern import Pattern
from fuse_gated.gate.verdict import DELETE, EXECUTE, PERMISSIONS, READ, WRITE, Rule

_NONE: Final = 0
"""The rule's pattern matches nothing beneath a path."""
_SOME: Final = 1
"""It may match something there."""
_EVERYTHING: Final = 2
"""It matches everything there."""

Decision = bool | None
"""Granted, denied, or left to a later rule."""
Decide = Callable[[Rule, int], Decision]
Events = Callable[[Pattern, int], tuple[int, ...]]


def proves_narrower(rules: Sequence[Rule], patterns: Sequence[Pattern], old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether, of all that the gate decides, nothing is granted beneath the new place that is not at the same path beneath the
    old one. `old` and `new` are each pattern's rest there; neither place may be hidden or the root."""
    live = [
        (rule, pattern, before, after)
        for rule, pattern, before, after in zip(rules, patterns, old, new, strict=True)
        if before or after
    ]

    def implies(now: Decide, then: Decide, events: Events, *, default: bool = False) -> bool:
        return _never_wider(_courses(live, now, then, events), default=default)

    # Seen: what is hidden at the old place, or has a hidden ancestor there, is hidden at the new one by the same ancestor.
    if not implies(_seen, _seen, _matches, default=True):
        return False
    for permission in PERMISSIONS.values():
        granted, found_beneath = _granted(permission), _found_beneath(permission)
        if not implies(granted, granted, _matches) or not implies(found_beneath, found_beneath, _reaches):
            return False
    # A directory that may something but not be read lists less than one that may nothing: what may something at the old place
    # must be readable there, or may something at the new one too.
    beside = [(rule, pattern, before, before) for rule, pattern, before, _after in live]
    backward = [(rule, pattern, after, before) for rule, pattern, before, after in live]
    others = (WRITE, EXECUTE, DELETE)
    return all(
        _never_wider(_courses(beside, _granted(permission), _granted(READ), _matches))
        or any(_never_wider(_courses(backward, _granted(permission), _granted(other), _matches)) for other in others)
        for permission in others
    )


def _never_wider(choices: Iterable[set[tuple[Decision, Decision]]], *, default: bool = False) -> bool:
    """Whether no course ends with the first granted and the second not. `choices` has, rule by rule, what it may decide for
    the one and for the other; what no rule decides is `default`."""
    courses: set[tuple[Decision, Decision]] = {(None, None)}
    for pairs in choices:
        courses = {
            (first if first is not None else one, second if second is not None else other)
            for first, second in courses
            for one, other in pairs
        }
        if (True, False) in courses:
            return False
        # Once the one is denied or the other granted, nothing can go wrong in that course any more.
        courses = {(first, second) for first, second in courses if first is not False and second is not True}
    return all(default if second is None else second for first, second in courses if first or (first is None and default))


def _courses(
    live: Iterable[tuple[Rule, Pattern, int, int]], now: Decide, then: Decide, events: Events
) -> Iterable[set[tuple[Decision, Decision]]]:
    """For each rule what it may decide: (`now` at the new place, `then` at the old one)."""
    for rule, pattern, before, after in live:
        if before == after:
            yield {(now(rule, event), then(rule, event)) for event in events(pattern, before)}
        else:
            yield {(now(rule, event), then(rule, other)) for event in events(pattern, after) for other in events(pattern, before)}


def _matches(pattern: Pattern, positions: int) -> tuple[int, ...]:
    """Whether a path beneath is matched (1) or not (0)."""
    if not positions:
        return (0,)
    return (1,) if pattern.is_universal(positions) else (0, 1)


def _reaches(pattern: Pattern, positions: int) -> tuple[int, ...]:
    """How much is matched beneath a path beneath."""
    if pattern.is_universal(positions):
        return (_EVERYTHING,)
    if not positions:
        return (_NONE,)
    reached = (_SOME,) if pattern.stays_live(positions) else (_NONE, _SOME)
    return (*reached, _EVERYTHING) if pattern.may_become_universal(positions) else reached


def _seen(rule: Rule, matched: int) -> Decision:
    return not rule.hide if matched and (rule.hide or rule.allow | rule.deny) else None


def _granted(permission: int) -> Decide:
    def decide(rule: Rule, matched: int) -> Decision:
        if not matched or not (rule.allow | rule.deny) & permission:
            return None
        return not rule.deny & permission

    return decide


def _found_beneath(permission: int) -> Decide:
    """As `Standing.beneath` has it: an allowing rule that may still match, with no rule before it that denies all."""

    def decide(rule: Rule, reach: int) -> Decision:
        if rule.allow & ~rule.deny & permission:
            return True if reach else None
        return False if reach == _EVERYTHING and rule.deny & permission else None

    return decide
