"""Patterns: how a rule says which paths it is about.

A pattern has a leading slash and components between slashes. Inside a component `*` stands for any characters, none
included and a leading dot too, `?` for one character, `[...]` and `[!...]` for one character of a set or outside it. `**` as
a whole component stands for any number of components, none included, so `/src/**` matches /src and everything beneath.
Case counts and nothing is normalised: names are bytes. A character is one of UTF-8's, and a byte that is not part of one
counts as a character too, so that `?` and sets mean what people read, while different bytes never compare as equal.

A compiled pattern is an automaton over components. Where a path has got to in it is a set of positions, kept as the bits of
an int: bit i says that what is left to match are the parts from i on.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

_SET_HINT: Final = "a set is written [abc], [a-z] or [!abc]"


class Glob:
    """One component with wildcards. `matches` takes a name as text (UTF-8, what is not as surrogate escapes)."""

    __slots__ = ("matches", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matches: Callable[[str], object] = _matcher(text)

    def __repr__(self) -> str:
        return f"Glob({self.text!r})"


Part = bytes | Glob
"""A component of a pattern: a name, or wildcards."""


class Pattern:
    """A compiled pattern. `start` is the set of positions at the root; a set of 0 can match nothing any more."""

    __slots__ = ("_final", "_stars", "_tail", "parts", "start", "text")

    def __init__(self, text: str, parts: tuple[Part, ...]) -> None:
        self.text = text
        self.parts = parts
        self._stars = sum(1 << index for index, part in enumerate(parts) if part is GLOBSTAR)
        self._final = 1 << len(parts)
        self._tail = 1 << (len(parts) - 1) if parts and parts[-1] is GLOBSTAR else 0
        self.start = self._settled(1)

    def step(self, positions: int, name: bytes, text: str) -> int:
        """The positions one component further down: `name`, which is `text` as characters."""
        reached = positions & self._stars
        left = positions & ~self._stars & ~self._final
        while left:
            position = left & -left
            left ^= position
            part = self.parts[position.bit_length() - 1]
            if part == name if isinstance(part, bytes) else part.matches(text):
                reached |= position << 1
        return self._settled(reached)

    def accepts(self, positions: int) -> bool:
        """Whether the path itself is matched."""
        return positions & self._final != 0

    def rest(self, positions: int) -> int:
        """The positions that matter for what lies beneath the path."""
        return positions & ~self._final

    def is_live(self, positions: int) -> bool:
        """Whether something beneath the path may be matched."""
        return positions & ~self._final != 0

    def is_universal(self, positions: int) -> bool:
        """Whether the path and everything beneath it is matched."""
        return positions & self._tail != 0

    def next_parts(self, positions: int) -> list[Part]:
        """What the name of the next component is compared with; `**` and `*` take every name."""
        return [
            part for index, part in enumerate(self.parts) if positions >> index & 1 and part is not GLOBSTAR and part is not ANY
        ]

    def _settled(self, positions: int) -> int:
        positions |= (positions & self._stars) << 1
        stars = positions & self._stars
        if stars:
            # From an earlier position only paths can be matched that the last `**` matches as well: without them, equal
            # rests of a pattern are equal numbers.
            positions &= -(1 << (stars.bit_length() - 1))
        return positions


def validate_pattern(text: str) -> str | None:
    """What is wrong with a pattern, for people; None for a good one."""
    try:
        compile_pattern(text)
    except ValueError as fault:
        return str(fault)
    return None


def compile_pattern(text: str) -> Pattern:
    """The pattern, ready to match. Raises ValueError, whose text says what is wrong."""
    if not text.startswith("/"):
        raise ValueError("a pattern begins with a slash: it is a path beneath the export's root")
    if "\0" in text:
        raise ValueError("a pattern holds no NUL: no name has one")
    try:
        # Escapes that together are UTF-8 become the characters that a name with those bytes is read as.
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("a pattern holds characters that no name can have (lone surrogates)") from None
    parts: list[Part] = []
    for component in text[1:].split("/") if text != "/" else ():
        part = _part(component)
        if not (part is GLOBSTAR and parts and parts[-1] is GLOBSTAR):
            parts.append(part)
    return Pattern(text, tuple(parts))


def text_of(name: bytes) -> str:
    """A name as the characters that globs compare."""
    return name.decode("utf-8", "surrogateescape")


def _part(component: str) -> Part:
    if not component:
        raise ValueError("a pattern has no empty component: no double slash, and none at its end")
    if component in (".", ".."):
        raise ValueError(f"a pattern has no '{component}' component: no path has one")
    if component == "**":
        return GLOBSTAR
    if component == "*":
        return ANY
    if "**" in component:
        raise ValueError("'**' is a component of its own: write /**/ or a single '*'")
    if "\\" in re.sub(r"\[!?\\\]", "", component):
        raise ValueError(r"a backslash escapes nothing: write [*] for a star as such, and [\] for a backslash")
    if any(character in component for character in "*?["):
        return _glob(component)
    return component.encode("utf-8", "surrogateescape")


@lru_cache(maxsize=1024)
def _glob(component: str) -> Glob:
    return Glob(component)


def _matcher(component: str) -> Callable[[str], object]:
    if component.count("*") == 1 and "?" not in component and "[" not in component:
        head, _, tail = component.partition("*")
        if not head:
            return lambda text: text.endswith(tail)
        if not tail:
            return lambda text: text.startswith(head)
    return re.compile(_expression(component), re.DOTALL).fullmatch


def _expression(component: str) -> str:
    """The component as a regular expression. What follows a star is matched at its first place and never again elsewhere (an
    atomic group), so that a long name costs no more than its length times the pattern's."""
    runs = [""]
    index = 0
    while index < len(component):
        character = component[index]
        if character == "*":
            runs.append("")
        elif character == "?":
            runs[-1] += "."
        elif character == "[":
            piece, index = _set(component, index)
            runs[-1] += piece
        else:
            runs[-1] += re.escape(character)
        index += 1
    if len(runs) == 1:
        return runs[0]
    return runs[0] + "".join(f"(?>.*?{run})" for run in runs[1:-1]) + ".*" + runs[-1]


def _set(component: str, opening: int) -> tuple[str, int]:
    """A set that begins at `opening`, as a regular expression, and where it ends."""
    start = opening + 1
    if component.startswith("^", start):
        raise ValueError("'[^' means different things to different programs: write [! for 'none of'")
    negated = component.startswith("!", start)
    start += negated
    # A ] in the first place stands for itself (glob(7)).
    closing = component.find("]", start + 1)
    if closing < 0:
        raise ValueError(f"'[' without its ']': {_SET_HINT}; [[] is the bracket as such")
    members = component[start:closing]
    if "[:" in members:
        raise ValueError(f"classes such as [:alpha:] are not known: {_SET_HINT}")
    pieces = []
    index = 0
    while index < len(members):
        first = last = members[index]
        if members[index + 1 : index + 2] == "-" and index + 2 < len(members):
            last = members[index + 2]
            index += 2
        if first > last:
            raise ValueError(f"the range {first}-{last} is the wrong way round")
        pieces.append(f"{re.escape(first)}-{re.escape(last)}")
        index += 1
    return f"[{'^' if negated else ''}{''.join(pieces)}]", closing


GLOBSTAR: Final = Glob("**")
"""Any number of components."""
ANY: Final = Glob("*")
"""Any one component."""
