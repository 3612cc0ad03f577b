import itertools
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_gated.gate import policy
from fuse_gated.gate.policy import DENIED, HIDDEN, WALKABLE, Rules
from fuse_gated.gate.verdict import ALL, DELETE, EXECUTE, PERMISSIONS, READ, WRITE, Rule
from fuse_gated.paths import components, join, split

NAMES = (b"a", b"b", b"ab")
PATHS = [b"/".join(names) for depth in range(5) for names in itertools.product(NAMES, repeat=depth)]

parts = st.sampled_from(["a", "b", "ab", "*", "a*", "*b", "?", "[!a]*", "**", "**"])
patterns = st.lists(parts, max_size=4).map(lambda chosen: "/" + "/".join(chosen))
bits = st.integers(0, ALL)


@st.composite
def rule(draw: st.DrawFn) -> Rule:
    path, hide = draw(patterns), draw(st.integers(0, 3)) == 0
    if hide:
        return Rule(path, deny=draw(st.sampled_from([0, 0, READ, ALL])), hide=True)
    return Rule(path, draw(bits), draw(bits))


rulesets = st.lists(rule(), max_size=6)


class Oracle:
    """The rules as the design words them, path by path, without any automaton."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules
        self.matching = cache(self._matching)
        self.hidden = cache(self._hidden)
        self.visible_beneath = cache(self._visible_beneath)

    def _matching(self, path: bytes) -> list[Rule]:
        return [rule for rule in self.rules if by_regex(rule.path, path)]

    def _hidden(self, path: bytes) -> bool:
        if not path:
            return False
        deciding = next((rule for rule in self.matching(path) if rule.hide or rule.allow | rule.deny), None)
        return self.hidden(split(path)[0]) or (deciding is not None and deciding.hide)

    def rights(self, path: bytes) -> int:
        if self.hidden(path):
            return 0
        granted = 0
        for bit in PERMISSIONS.values():
            deciding = next((rule for rule in self.matching(path) if (rule.allow | rule.deny) & bit), None)
            if deciding is not None and not deciding.deny & bit:
                granted |= bit
        return granted

    def _visible_beneath(self, path: bytes, wanted: int = ALL) -> bool:
        return len(components(path)) < 4 and any(
            self.rights(join(path, name)) & wanted or self.visible_beneath(join(path, name), wanted) for name in NAMES
        )


@cache
def by_regex(pattern: str, path: bytes) -> bool:
    expression = ""
    for part in pattern[1:].split("/") if pattern != "/" else ():
        if part == "**":
            expression += "(/[^/]+)*"
        else:
            expression += "/" + part.replace("*", "[^/]*").replace("?", "[^/]").replace("[!a]", "[^a/]")
    return re.fullmatch(expression, "/" + path.decode() if path else "") is not None


@given(rulesets)
@settings(max_examples=150, deadline=None)
def test_standing_is_what_the_design_says(chosen: list[Rule]) -> None:
    rules, oracle = Rules(chosen), Oracle(chosen)
    for path in PATHS:
        standing = rules.standing(path)
        assert (standing.level == HIDDEN) == oracle.hidden(path) or rules.standing(split(path)[0]).level == DENIED
        assert standing.rights == oracle.rights(path)
        if standing.rights or oracle.visible_beneath(path):
            # A way to everything that is visible.
            assert standing.level == WALKABLE
        if path and standing.level == WALKABLE:
            assert rules.standing(split(path)[0]).level == WALKABLE
        for bit, index in standing.deciders.items():
            assert (chosen[index].allow | chosen[index].deny) & bit
            assert bool(standing.rights & bit) == (not chosen[index].deny & bit)


@given(rulesets)
@settings(max_examples=150, deadline=None)
def test_listings_show_what_the_design_says(chosen: list[Rule]) -> None:
    rules, oracle = Rules(chosen), Oracle(chosen)
    for path in PATHS[: 1 + 3 + 9]:
        may = rules.standing(path)
        for name in NAMES:
            child = join(path, name)
            listed = rules.entry_is_listed(path, name)
            if may.rights & READ:
                assert listed == (not oracle.hidden(child))
            elif not may.rights:
                assert listed == (rules.standing(child).level == WALKABLE)
            else:
                assert not listed or rules.standing(child).level == WALKABLE
                if oracle.rights(child) & READ or oracle.visible_beneath(child, READ):
                    assert listed
            assert not listed or rules.may_be_listed(path)


@given(rulesets, st.sampled_from(PATHS[1:]), st.sampled_from(PATHS[1:]))
@settings(max_examples=1500, deadline=None)
def test_a_move_that_is_free_widens_nothing(chosen: list[Rule], old: bytes, new: bytes) -> None:
    rules = Rules(chosen)
    if not rules.moves_freely(old, new):
        return
    for rest in PATHS[: 1 + 3 + 9 + 27]:
        before, after = (rules.standing(base + b"/" + rest if rest else base) for base in (old, new))
        assert not after.rights & ~before.rights
        assert before.level == WALKABLE or after.level != WALKABLE
        for name in NAMES:
            if rules.entry_is_listed(join(new, rest) if rest else new, name):
                assert rules.entry_is_listed(join(old, rest) if rest else old, name)


def moves(old: str, new: str, *rules: Rule) -> bool:
    return Rules(rules).moves_freely(old.encode(), new.encode())


EVERYTHING = Rule("/**", allow=ALL)


def test_moves_that_must_be_free() -> None:
    wide, narrow = Rule("/wide/**", allow=ALL), Rule("/narrow/**", allow=READ | WRITE)
    keys = Rule("/**/*.key", hide=True)
    hooks = Rule("/**/.git/hooks/**", deny=WRITE | EXECUTE)
    objects = Rule("/**/*.o", deny=READ)
    common = (keys, hooks)
    assert moves("a", "b", EVERYTHING)
    assert moves("x/a", "y/z/b", *common, EVERYTHING)
    assert moves("wide/a", "wide/b/c", *common, wide, narrow)
    assert moves("wide/a", "narrow/a", *common, wide, narrow)
    assert moves("wide/a", "narrow/a", *common, narrow, wide)
    assert moves("wide/a", "narrow/a", keys, objects, wide, narrow)
    assert moves("wide/a", "nowhere", *common, wide, narrow)
    assert moves("a", "guarded/a", Rule("/guarded/**", deny=DELETE), EVERYTHING)
    assert moves("a", "guarded/a", Rule("/guarded/**/x", hide=True), EVERYTHING)
    assert moves("", "", EVERYTHING)
    assert moves("a", "a.o", objects, EVERYTHING)


def test_moves_that_must_not_be_free() -> None:
    wide, narrow = Rule("/wide/**", allow=ALL), Rule("/narrow/**", allow=READ | WRITE)
    assert not moves("narrow/a", "wide/a", wide, narrow)
    assert not moves("guarded/a", "a", Rule("/guarded/**", deny=DELETE), EVERYTHING)
    assert not moves("guarded/a", "a", Rule("/guarded/**/x", deny=READ), EVERYTHING)
    assert not moves("guarded/a", "a", Rule("/guarded/**/x", hide=True), EVERYTHING)
    assert not moves("a.o", "a", Rule("/*.o", deny=READ), EVERYTHING)
    # Nothing that the rules name lies beneath at depth one, but it may further down.
    assert not moves("a", "b", Rule("/a/*/*/*/secret", deny=READ), EVERYTHING)
    assert not moves("hidden", "a", Rule("/hidden", hide=True), EVERYTHING)
    assert not moves("a", "hidden", Rule("/hidden", hide=True), EVERYTHING)
    assert not moves("", "a", EVERYTHING)
    assert not moves("a", "", EVERYTHING)


def test_a_move_must_not_open_a_way_or_a_listing() -> None:
    # At a/* nothing may be seen, at b/* the way to b/*/x may.
    both = (Rule("/a", allow=ALL), Rule("/b", allow=ALL))
    assert not moves("a", "b", *both, Rule("/b/*/x", allow=READ), Rule("/a/*/x", hide=True))
    # Nothing may be done to what lies beneath either, but beneath b it is listed.
    assert not moves("a", "b", *both, Rule("/a/*", hide=True))
    assert moves("b", "a", *both, Rule("/a/*", hide=True))
    # Something beneath b may be written, nothing beneath a.
    assert not moves("a", "b", Rule("/a", allow=ALL), Rule("/b/**", allow=ALL))
    # The directory at a may be written but not listed; at b it may nothing, and would list the way to what is written there.
    assert not moves("a", "b", Rule("/a/**", allow=WRITE), Rule("/b/x", allow=WRITE))
    assert not moves("a", "b", Rule("/a/**", allow=WRITE), Rule("/b", allow=WRITE), Rule("/b/d/x", allow=WRITE))
    assert moves("a", "b", Rule("/a/**", allow=WRITE), Rule("/b/**", allow=WRITE))


def test_the_last_of_many_paths_is_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memo of paths stays within its bounds, and what falls out of it is derived anew."""
    monkeypatch.setattr(policy, "_MEMO_BYTES", 2000)
    rules = Rules([Rule("/**/x", deny=READ), EVERYTHING])
    for _round in range(2):
        for number in range(100):
            assert rules.standing(b"d%d/x" % number).rights == ALL & ~READ
            assert rules.standing(b"d%d" % number).rights == ALL
            assert rules.standing(b"").rights == ALL
    remembered = sum(len(path) + 128 for memo in (rules._recent, rules._older) for path in memo)
    assert remembered <= 2 * 2000 + 2 * 128


def test_a_path_deeper_than_the_memo_is_judged() -> None:
    rules = Rules([Rule("/**/x/y", deny=READ), EVERYTHING])
    deep = b"/".join([b"d"] * 100_000)
    assert rules.standing(deep + b"/x/y").rights == ALL & ~READ
    assert rules.standing(deep + b"/x").rights == ALL


def test_the_automaton_stays_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "_STEPS", 50)
    wanted = [Rule(f"/**/{letter}*/{letter}", deny=WRITE) for letter in "abcdefgh"]
    rules = Rules([*wanted, EVERYTHING])
    for names in itertools.product("abcdefgh", repeat=3):
        path = "/".join(names)
        denied = names[-1] == names[-2]
        assert rules.standing(path.encode()).rights == (ALL & ~WRITE if denied else ALL)
        assert len(rules._standings) <= 50


def test_a_faulty_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="slash"):
        Rules([Rule("src", allow=READ)])
