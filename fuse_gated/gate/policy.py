"""The policy's rules: what each path may, and what is hidden.

The rules are looked at in order, and each permission is decided by the first rule that matches the path and names it; what no
rule decides is denied. A path is hidden when a `hide` rule matches it or one of its ancestors before any rule that allows or
denies something there; everything beneath a hidden directory is hidden, the root never is. What is not hidden is *visible* if
it may anything at all, and *walkable* if it is visible or something visible may lie beneath; the rest is denied, and so is
everything beneath it.

All rules together are one automaton over the components of a path. Where a path stands in it says all that the rules say of
it, so a path's standing is its parent's and one step more. Steps and standings are remembered, within bounds.
"""

from collections.abc import Sequence
from typing import Final

from fuse_gated.gate.moves import proves_narrower
from fuse_gated.gate.pattern import Glob, Pattern, compile_pattern, text_of, validate_pattern
from fuse_gated.gate.verdict import ALL, READ, Rule
from fuse_gated.paths import components, split

__all__ = ["DENIED", "HIDDEN", "WALKABLE", "Rules", "Standing", "compile_pattern", "validate_pattern"]

HIDDEN: Final = 0
"""The path does not exist for anyone."""
DENIED: Final = 1
"""The name may be listed, nothing else."""
WALKABLE: Final = 2
"""Its attributes are shown, and ways go through it."""

_LIST_NOTHING: Final = 0
_LIST_READABLE: Final = 1
_LIST_WALKABLE: Final = 2
_LIST_ALL: Final = 3

_MEMO_BYTES: Final = 4 * 2**20
"""What the memo of paths may hold in each of its two generations: its keys' bytes, and `_MEMO_ENTRY` for each."""
_MEMO_ENTRY: Final = 128
_STEPS: Final = 8192
"""Steps of the automaton that are remembered: so many at most, however a client names its files."""


class Standing:
    """What the rules say of a path: its `level` (HIDDEN, DENIED or WALKABLE), its `rights` (permission bits) and which rule
    decided each of them (`deciders`: permission -> the rule's index), or which rule hides it (`hidden_by`, an index).
    `beneath` has the permissions that something beneath may have."""

    __slots__ = (
        "beneath",
        "deciders",
        "globs",
        "hidden_by",
        "is_root",
        "level",
        "listing",
        "literals",
        "positions",
        "rights",
        "steps",
    )

    def __init__(
        self, positions: tuple[int, ...], hidden_by: int | None, deciders: dict[int, int], rights: int, beneath: int
    ) -> None:
        self.positions = positions
        self.hidden_by = hidden_by
        self.deciders = deciders
        self.rights = rights
        self.beneath = beneath
        self.level = HIDDEN if hidden_by is not None else WALKABLE if rights or beneath else DENIED
        self.listing = _listing(rights, beneath)
        self.is_root = False
        self.literals: frozenset[bytes] = frozenset()
        self.globs: tuple[Glob, ...] = ()
        self.steps: dict[tuple[bytes | None, int], Standing] = {}


def _listing(rights: int, beneath: int) -> int:
    """Which names a directory lists. One that may something but not be read shows only the ways to what can be read, so that
    `deny: [read]` means what it says; one that may nothing itself is only walked through, and shows what is walkable."""
    if rights & READ:
        return _LIST_ALL
    if rights:
        return _LIST_READABLE if beneath & READ else _LIST_NOTHING
    return _LIST_WALKABLE if beneath else _LIST_NOTHING


class Rules:
    """A tenant's rules, compiled. Paths are bytes without a leading slash, b'' is the root.

    Raises ValueError for a rule whose pattern is faulty.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._patterns: tuple[Pattern, ...] = tuple(compile_pattern(rule.path) for rule in rules)
        self._standings: dict[tuple[int, ...], Standing] = {}
        self._recent: dict[bytes, Standing] = {}
        self._older: dict[bytes, Standing] = {}
        self._room = self._steps = 0
        self._forget()

    def standing(self, path: bytes) -> Standing:
        """What the rules say of a path."""
        found = self._recent.get(path)
        return found if found is not None else self._derived(path)

    def entry_is_listed(self, directory: bytes, name: bytes) -> bool:
        """Whether a listing of `directory` shows `name`."""
        parent = self.standing(directory)
        kind = parent.listing
        # Not remembered: a listing of a large directory would drive everything else out of the memo.
        child = self._step(parent, name)
        if kind == _LIST_ALL:
            return child.level != HIDDEN
        if kind == _LIST_WALKABLE:
            return child.level == WALKABLE
        return kind == _LIST_READABLE and child.level != HIDDEN and (child.rights | child.beneath) & READ != 0

    def may_be_listed(self, path: bytes) -> bool:
        """Whether a listing of the directory may show anything."""
        standing = self.standing(path)
        return standing.level == WALKABLE and standing.listing != _LIST_NOTHING

    def moves_freely(self, old: bytes, new: bytes) -> bool:
        """Whether the rules alone prove that nothing is granted at `new` or beneath that is denied or hidden at the same place
        at or beneath `old`. Never true when it is false; it may be false of what would do no harm."""
        before, after = self.standing(old), self.standing(new)
        if HIDDEN in (before.level, after.level):
            return False
        # The root is the one directory that cannot be hidden, so its positions say less of it than another's.
        if not (old and new):
            return old == new
        if after.rights & ~before.rights:
            return False
        if before.rights and not before.rights & READ and not after.rights:
            # One that may nothing is walked through, and lists more than one that may something but not be read.
            return False
        rests = [
            tuple(pattern.rest(at) for pattern, at in zip(self._patterns, standing.positions, strict=True))
            for standing in (before, after)
        ]
        return rests[0] == rests[1] or proves_narrower(self.rules, self._patterns, *rests)

    def _derived(self, path: bytes) -> Standing:
        found = self._older.get(path)
        if found is None:
            parent, name = split(path)
            known = self._recent.get(parent) or self._older.get(parent)
            if known is None:
                # From the root on, and not from ancestor to ancestor: that would copy a very deep path once a component.
                known = self._root
                for component in components(parent):
                    known = self._step(known, component)
                self._remember(parent, known)
            found = self._step(known, name)
        self._remember(path, found)
        return found

    def _remember(self, path: bytes, standing: Standing) -> None:
        self._room -= len(path) + _MEMO_ENTRY
        if self._room < 0:
            self._older = self._recent
            self._recent = {b"": self._root}
            self._room = _MEMO_BYTES
        self._recent[path] = standing

    def _forget(self) -> None:
        self._root = self._stand(tuple(pattern.start for pattern in self._patterns), root=True)
        self._standings = {}
        self._steps = 0
        self._recent = {b"": self._root}
        self._older = {}
        self._room = _MEMO_BYTES

    def _step(self, standing: Standing, name: bytes) -> Standing:
        literal = name if name in standing.literals else None
        matched = 0
        if standing.globs:
            text = text_of(name)
            bit = 1
            for glob in standing.globs:
                if glob.matches(text):
                    matched |= bit
                bit <<= 1
        # Names that differ neither as a literal nor for a glob lead to the same place.
        found = standing.steps.get((literal, matched))
        if found is None:
            found = self._new_step(standing, name)
            standing.steps[literal, matched] = found
        return found

    def _new_step(self, standing: Standing, name: bytes) -> Standing:
        if standing.hidden_by is not None or (standing.level == DENIED and not standing.is_root):
            # Nobody gets any further: what lies beneath is hidden, or denied, as this is.
            return standing
        if self._steps >= _STEPS:
            self._forget()
        self._steps += 1
        text = text_of(name)
        positions = tuple(
            pattern.step(at, name, text) if at else 0 for pattern, at in zip(self._patterns, standing.positions, strict=True)
        )
        found = self._standings.get(positions)
        if found is None:
            found = self._standings[positions] = self._stand(positions, root=False)
        return found

    def _stand(self, positions: tuple[int, ...], *, root: bool) -> Standing:
        rights = beneath = 0
        undecided = open_beneath = ALL
        touched = False
        deciders: dict[int, int] = {}
        literals: set[bytes] = set()
        globs: dict[str, Glob] = {}
        for index, at in enumerate(positions):
            if not at:
                continue
            rule, pattern = self.rules[index], self._patterns[index]
            names, allowed = rule.allow | rule.deny, rule.allow & ~rule.deny
            if pattern.accepts(at):
                if rule.hide and not touched and not root:
                    return Standing(positions, index, {}, 0, 0)
                touched = touched or names != 0
                fresh = names & undecided
                undecided &= ~fresh
                rights |= allowed & fresh
                deciders |= {1 << bit: index for bit in range(4) if fresh >> bit & 1}
            if pattern.is_live(at):
                beneath |= allowed & open_beneath
                if pattern.is_universal(at):
                    open_beneath &= ~names
                for part in pattern.next_parts(at):
                    if isinstance(part, bytes):
                        literals.add(part)
                    else:
                        globs[part.text] = part
        standing = Standing(positions, None, deciders, rights, beneath)
        standing.is_root = root
        standing.literals, standing.globs = frozenset(literals), tuple(globs.values())
        return standing
