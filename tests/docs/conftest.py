"""The documents, cut into what tests look at: headings, tables and blocks."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
# What makes the manual pages and the completions is no package.
sys.path.insert(0, str(TOP / "packaging" / "dev"))
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: `info` is what stands behind its first fence."""

    info: str
    body: str


class Page:
    """One Markdown file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path.relative_to(TOP))
        self.text = path.read_text("utf-8")
        self.prose = _FENCE.sub("", self.text)
        self.blocks = [Block(found["info"].strip(), found["body"]) for found in _FENCE.finditer(self.text)]

    def section(self, heading: str) -> str:
        """What stands under a heading, up to the next one of its level or a higher."""
        level = heading.partition(" ")[0]
        parts = re.split(rf"^{re.escape(heading)}\n", self.prose, flags=re.MULTILINE)
        assert len(parts) == 2, f"{self.name} has {len(parts) - 1} headings {heading!r}"
        return re.split(rf"^#{{1,{len(level)}}} ", parts[1], maxsplit=1, flags=re.MULTILINE)[0]

    def anchors(self) -> set[str]:
        """The names by which headings can be linked to, as GitHub makes them."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tables(text: str) -> Iterator[list[list[str]]]:
    """The tables of a text: rows of cells, without the heading and the line beneath it."""
    for found in re.finditer(r"^\|.*\|\n\| *-.*\|\n((?:\|.*\|\n?)*)", text, re.MULTILINE):
        yield [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found[1].splitlines()]


def pages() -> list[Page]:
    """README, CHANGELOG and everything beneath docs."""
    return [Page(path) for path in sorted([*TOP.glob("*.md"), *TOP.glob("docs/**/*.md")])]


@pytest.fixture(scope="session", name="protocol")
def _protocol() -> Page:
    return Page(TOP / "docs/api/websocket-protocol.md")


@pytest.fixture(scope="session", name="operations")
def _operations() -> Page:
    return Page(TOP / "docs/api/fuse-operations.md")


@pytest.fixture(scope="session", name="authentication")
def _authentication() -> Page:
    return Page(TOP / "docs/api/authentication.md")


@pytest.fixture(scope="session", name="configuration")
def _configuration() -> Page:
    return Page(TOP / "docs/getting-started/configuration.md")


@pytest.fixture(scope="session", name="quick_start")
def _quick_start() -> Page:
    return Page(TOP / "docs/getting-started/quick-start.md")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", pages(), ids=lambda page: page.name)


@pytest.fixture(scope="session", name="tables_of")
def _tables_of() -> object:
    return lambda text: list(tables(text))
