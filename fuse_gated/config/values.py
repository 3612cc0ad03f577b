"""Readers: from a node of a document to one value, with the words for what is wrong with it.

Numbers are read from the text that stands in the file, not by YAML's own rules, by which 010 is eight and 1:30 is ninety.
"""

import datetime
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import yaml

from fuse_gated.config import units
from fuse_gated.config.document import Document, Reader, Unfit, kind_of, quoted, resembling, unlike

_WHOLE: Final = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
Number = TypeVar("Number", int, float)

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


def scalar(expected: str, node: yaml.Node) -> str:
    """The text that stands in the file for a single value, whatever its type."""
    if not isinstance(node, yaml.ScalarNode) or kind_of(node) == "null":
        raise unlike(expected, node)
    return str(node.value)


def text(_document: Document, node: yaml.Node) -> str:
    value = scalar("text", node)
    if kind_of(node) != "str":
        fault = unlike("text", node)
        raise Unfit(fault.message, "put it in quotes if it is meant")
    if not value:
        raise Unfit("the text is empty")
    if not value.isprintable():
        raise Unfit(f"{quoted(value)} holds control characters")
    return value


def boolean(_document: Document, node: yaml.Node) -> bool:
    if kind_of(node) != "bool":
        raise unlike("true or false", node)
    return str(node.value).lower() in ("true", "yes", "on")


def whole(least: int, most: int) -> Reader:
    """A whole number within these bounds."""

    def read(_document: Document, node: yaml.Node) -> int:
        if kind_of(node) not in ("int", "float"):
            fault = unlike("a whole number", node)
            is_quoted = kind_of(node) == "str" and _WHOLE.fullmatch(node.value)
            raise Unfit(fault.message, "remove the quotes" if is_quoted else fault.hint)
        if not _WHOLE.fullmatch(node.value):
            raise Unfit(f"{quoted(node.value)} is not a whole number", "digits only, and no leading zero")
        return _within(int(node.value), least, most, str)

    return read


def quantity(what: str, parse: Callable[[str], float], form: str, least: float, most: float) -> Reader:
    """A number with a unit, as `config.units` reads it, within these bounds."""

    def read(_document: Document, node: yaml.Node) -> float:
        value = scalar(what, node)
        try:
            number = parse(value)
        except ValueError:
            raise Unfit(f"{quoted(value)} is not {what}", form) from None
        return _within(number, least, most, lambda bound: f"{bound:.12g}")

    return read


def duration(least: float, most: float) -> Reader:
    return quantity("a duration", units.duration, units.DURATION_FORM, least, most)


def size(least: int, most: int = 2**62) -> Reader:
    return quantity("a size", units.size, units.SIZE_FORM, least, most)


def one_of(*choices: str) -> Reader:
    """One of these words."""

    def read(_document: Document, node: yaml.Node) -> str:
        value = scalar("one of " + ", ".join(choices), node)
        if value not in choices:
            raise Unfit(f"{quoted(value)} is not one of {', '.join(choices)}", resembling(value, choices))
        return value

    return read


def date(_document: Document, node: yaml.Node) -> datetime.date:
    value = scalar("a date", node)
    if _DATE.fullmatch(value):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            raise Unfit(f"{quoted(value)} is no day of the calendar") from None
    raise Unfit(f"{quoted(value)} is not a date", "such as 2027-01-31")


def absolute_path(document: Document, node: yaml.Node) -> str:
    value = text(document, node)
    if not value.startswith("/"):
        raise Unfit(f"{quoted(value)} is not an absolute path", "begin it with /")
    return value


def account(document: Document, node: yaml.Node) -> str:
    """A user's or group's name, by the loosest rules that systemd takes (systemd.io/USER_NAMES)."""
    value = text(document, node)
    if value.isdigit() or value in (".", "..") or len(value) > 255 or value != value.strip() or set(value) & set(":/,"):
        raise Unfit(f"{quoted(value)} cannot be a user's or group's name", "names as in /etc/passwd and /etc/group")
    return value


def many(what: str, item: Reader, least: int = 0) -> Reader:
    """A list, none of whose values appears twice."""

    def read(document: Document, node: yaml.Node) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            fault = unlike(f"a list of {what}", node)
            raise Unfit(fault.message, fault.hint or "write it in brackets: [one, another]")
        if len(node.value) < least:
            raise Unfit(f"the list of {what} is empty")
        values: list[Any] = []
        for child in node.value:
            value = document.read(child, item)
            if isinstance(child, yaml.ScalarNode) and value is not None and value in values:
                document.fault(child, f"{quoted(child.value)} is in the list of {what} already")
            values.append(value)
        return tuple(values)

    return read


def structure(kind: type[Any], what: str, readers: Mapping[str, Reader], required: tuple[str, ...] = ()) -> Reader:
    """A mapping whose keys are fields of the struct `kind`; what is left out has the struct's default."""

    def read(document: Document, node: yaml.Node) -> Any:
        return kind(**document.fields(node, what, readers, required))

    return read


def _within(number: Number, least: float, most: float, show: Callable[[float], str]) -> Number:
    if not least <= number <= most:
        raise Unfit(f"{show(number)} is not within {show(least)} and {show(most)}")
    return number
