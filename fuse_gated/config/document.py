"""One YAML file, read so that every value knows its line and column, and every fault is told, not only the first.

What YAML can do beyond plain data is refused: aliases and anchors (a small file that unfolds into a huge one, and a value
that is not where it seems to be), tags (types of another language), deep nesting, large files.

A reader turns a node into a value, or raises `Unfit`. Once a fault is told the whole result is thrown away, so None may
stand in for a value that could not be read.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import yaml
import yaml.composer
import yaml.reader

MAX_BYTES: Final = 2**20
MAX_DEPTH: Final = 20
_SHOWN: Final = 60

Reader = Callable[["Document", yaml.Node], Any]


class Unfit(ValueError):
    """A value that may not stand where it stands: why, and what would be right."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Document:
    """The file `name` as nodes with their faults. `root` is None for an empty file, and for one that is not YAML."""

    def __init__(self, text: bytes, name: str) -> None:
        self.name = name
        self.root: yaml.Node | None = None
        self._faults: list[tuple[int, int, str]] = []
        self._refused: set[int] = set()  # ids of nodes, which `root` keeps alive
        self._compose(text)

    @property
    def faults(self) -> tuple[str, ...]:
        """Every fault told so far, in the file's order: 'policy.yaml:12:7: message (hint)'."""
        return tuple(f"{self.name}:{line}:{column}: {text}" for line, column, text in sorted(self._faults))

    def fault(self, node: yaml.Node, message: str, hint: str = "") -> None:
        self._fault_at(node.start_mark.line, node.start_mark.column, message, hint)

    def refuse(self, node: yaml.Node, message: str, hint: str) -> None:
        """Tells what YAML allows and we do not; nothing more is said of the node."""
        self.fault(node, message, hint)
        self._refused.add(id(node))

    def place(self, node: yaml.Node) -> str:
        """Where the node stands, for people: 'policy.yaml:12'."""
        return f"{self.name}:{node.start_mark.line + 1}"

    def read(self, node: yaml.Node, reader: Reader) -> Any:
        """What the reader makes of the node, or None after telling why it could make nothing."""
        if self._is_refused(node):
            return None
        try:
            return reader(self, node)
        except Unfit as unfit:
            self.fault(node, unfit.message, unfit.hint)
            return None

    def fields(self, node: yaml.Node, what: str, readers: Mapping[str, Reader], required: Iterable[str] = ()) -> dict[str, Any]:
        """The values of a mapping with known keys. A key that is left out is left out here, too; one whose value is at
        fault, or that is required and missing, is None."""
        values: dict[str, Any] = {}
        for key, child in self.entries(node, what):
            reader = readers.get(key.value)
            if reader is None:
                self.fault(key, f"unknown key {quoted(key.value)} in {what}", _known(key.value, readers))
            else:
                values[key.value] = self.read(child, reader)
        for name in required:
            if name not in values:
                self.fault(node, f"{what} lacks {quoted(name)}")
                values[name] = None
        return values

    def entries(
        self, node: yaml.Node, what: str, places: dict[str, str] | None = None
    ) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        """The keys and values of a mapping, whatever the keys. A key's second appearance is told. `places` remembers where
        keys stood, for mappings that go on in other files."""
        if not isinstance(node, yaml.MappingNode):
            raise unlike(f"a mapping for {what}", node)
        places = {} if places is None else places
        found: list[tuple[yaml.ScalarNode, yaml.Node]] = []
        for key, child in node.value:
            if self._is_refused(key):
                continue
            if not isinstance(key, yaml.ScalarNode):
                self.fault(key, f"{describe(key)} cannot be a key in {what}")
                continue
            if key.value in places:
                self.fault(key, f"{quoted(key.value)} is given a second time in {what}", f"the first is at {places[key.value]}")
            places.setdefault(key.value, self.place(key))
            found.append((key, child))
        return found

    def _is_refused(self, node: yaml.Node) -> bool:
        return id(node) in self._refused

    def _fault_at(self, line: int, column: int, message: str, hint: str) -> None:
        self._faults.append((line + 1, column + 1, f"{message} ({hint})" if hint else message))

    def _compose(self, data: bytes) -> None:
        if len(data) > MAX_BYTES:
            self._fault_at(0, 0, "the file is larger than 1 MiB", "no configuration needs that much")
            return
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            self._fault_in(data[: error.start].decode(), f"the byte 0x{data[error.start]:02x} is not UTF-8", "save it as UTF-8")
            return
        try:
            composer = _Composer(text, self)
            self.root = composer.get_single_node()
        except yaml.reader.ReaderError as error:
            self._fault_in(text[: error.position], "a control character", "remove it")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line, mark.column) if mark else (0, 0)
            context, problem = error.context or "", error.problem or ""
            shown = f"{context}, {problem}" if problem.startswith("but ") else problem
            self._fault_at(line, column, f"not YAML: {shown}", _cure(context, problem))

    def _fault_in(self, before: str, message: str, hint: str) -> None:
        self._fault_at(before.count("\n"), len(before) - before.rfind("\n") - 1, message, hint)


class _Composer(yaml.SafeLoader):
    """Nodes of plain data."""

    def __init__(self, text: str, document: Document) -> None:
        super().__init__(text)
        self._document = document
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        events: Any = self  # typeshed leaves this interface of PyYAML's untyped
        event = events.peek_event()
        if events.check_event(yaml.AliasEvent):
            events.get_event()
            alias = yaml.ScalarNode("", f"*{event.anchor}", start_mark=event.start_mark)
            self._document.refuse(alias, "aliases are not taken", "write the value out; put one that begins with * in quotes")
            return alias
        if self._depth == MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None and node is not None:
            self._document.refuse(node, "anchors are not taken", "write the value out; put one that begins with & in quotes")
        elif event.tag is not None and node is not None:
            self._document.refuse(node, "tags are not taken", "put a value that begins with ! in quotes")
        return node


def quoted(text: str) -> str:
    """The text in quotes, safe to print and not too long."""
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown) + "'"


def describe(node: yaml.Node) -> str:
    """What the node is, for people."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    kind = kind_of(node)
    if kind == "null":
        return "nothing"
    return f"the {_KINDS.get(kind, 'text')} {quoted(node.value)}"


def kind_of(node: yaml.Node) -> str:
    """YAML's type of a node: 'str', 'int', 'float', 'bool', 'null', 'timestamp', 'seq', 'map', …"""
    return str(node.tag).rpartition(":")[2]


def unlike(expected: str, node: yaml.Node) -> Unfit:
    """The fault of a node that is of another type."""
    hint = "leave the key out to have its default" if kind_of(node) == "null" else ""
    return Unfit(f"expected {expected}, found {describe(node)}", hint)


def resembling(text: str, choices: Iterable[str]) -> str:
    """A hint at the choice that was probably meant, or none."""
    # Long text resembles no key, and comparing it would take long.
    close = difflib.get_close_matches(text, list(choices), n=1) if len(text) <= _SHOWN else []
    return f"did you mean {quoted(close[0])}?" if close else ""


def _known(text: str, choices: Iterable[str]) -> str:
    known = sorted(choices)
    return resembling(text, known) or "known are " + ", ".join(known)


def _cure(context: str, problem: str) -> str:
    """What is usually behind PyYAML's words for what it could not parse."""
    told = context + problem
    return next((cure for sign, cure in _CURES if sign in told), "")


_CURES: Final = (
    ("alias", "put a value that begins with * in quotes"),
    ("'\\t'", "indent with spaces"),
    ("cannot start any token", "put the value in quotes"),
    ("end of stream", "a quote or a bracket is not closed"),
    ("expected ',' or", "a bracket is not closed, or a comma is missing"),
    ("another document", "one document a file: remove the line with ---"),
    ("mapping values are not allowed", "look at the indentation, and put a value that holds ': ' in quotes"),
    ("block end", "look at the indentation, and put a value that begins with a bracket in quotes"),
    ("node content", "look at the indentation, and put a value that begins with a bracket in quotes"),
)
_KINDS: Final = {"int": "number", "float": "number", "bool": "truth value", "timestamp": "date"}
