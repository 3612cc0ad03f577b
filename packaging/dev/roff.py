"""Markdown, as our documents use it, to the man macros (man(7), groff_man(7)).

Known are headings, paragraphs, bullets, definition lists, fenced blocks, tables, and within a line code, bold and links. A
table becomes a list of its rows: a terminal of 80 columns has no room for three columns of sentences. What comes out is ASCII.
"""

import re
import textwrap
from collections.abc import Callable, Iterator

_SIGNS = {
    "\N{RIGHTWARDS ARROW}": r"\(->",
    "\N{LEFT RIGHT ARROW}": r"\(<>",
    "\N{EN DASH}": r"\(en",
    "\N{EM DASH}": r"\(em",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{MULTIPLICATION SIGN}": r"\(mu",
    "\N{LEFT DOUBLE QUOTATION MARK}": r"\(lq",
    "\N{RIGHT DOUBLE QUOTATION MARK}": r"\(rq",
    "\N{RIGHT SINGLE QUOTATION MARK}": r"\(cq",
}
_CODE_SIGNS = {"-": r"\-", "'": r"\(aq", "~": r"\(ti", "^": r"\(ha", "`": r"\(ga"}
_INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>[^*]+)\*\*|\*(?P<italic>[^*\s][^*]*)\*|\[(?P<text>[^\]]+)\]\((?P<link>[^)\s]+)\)"
)
_PAGE = re.compile(r"\b([a-z][a-z0-9_.-]*)\(([1-8])\)")
_WIDTH = 78


def inline(text: str) -> str:
    """One paragraph's text, with its marks as roff's."""
    made, at = [], 0
    for found in _INLINE.finditer(text):
        made.append(_plain(text[at : found.start()]))
        at = found.end()
        if found["code"] is not None:
            made.append(rf"\fB{code(found['code'])}\fR")
        elif found["bold"] is not None:
            made.append(rf"\fB{_plain(found['bold'], pages=False)}\fR")
        elif found["italic"] is not None:
            made.append(rf"\fI{_plain(found['italic'])}\fR")
        else:
            made.append(inline(found["text"]))
            if re.match(r"https?:", found["link"]):
                made.append(rf" (\fI{_escaped(found['link'])}\fR)")
    made.append(_plain(text[at:]))
    return "".join(made)


def code(text: str) -> str:
    """Text that is to be typed as it stands."""
    return "".join(_CODE_SIGNS.get(sign, sign) for sign in _escaped(text))


def _escaped(text: str) -> str:
    text = text.replace("\\", r"\e")
    return "".join(_SIGNS.get(sign, sign if sign.isascii() else rf"\[u{ord(sign):04X}]") for sign in text)


def _plain(text: str, *, pages: bool = True) -> str:
    text = _escaped(text.replace(r"\|", "|")).replace("~", r"\(ti").replace("^", r"\(ha")
    return _PAGE.sub(r"\\fB\1\\fR(\2)", text) if pages else text


def _filled(text: str) -> list[str]:
    lines = textwrap.wrap(inline(" ".join(text.split())), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [_guarded(line) for line in lines] or [r"\&"]


def _guarded(line: str) -> str:
    """A dot or an apostrophe at a line's beginning would make it a request."""
    return rf"\&{line}" if line.startswith((".", "'")) else line


def page(title: str, section: str, date: str, source: str, manual: str, markdown: str) -> str:
    """A whole page. `markdown` has its sections as headings of the second level."""
    head = [
        r'.\" Made by packaging/dev/man.py: change its source, and run: make man',
        f'.TH {title.upper()} {section} {date} "{source}" "{manual}"',
        # Left-aligned and without hyphenation: what is to be typed is not broken.
        ".nr HY 0",
        ".ad l",
    ]
    return "\n".join([*head, *body(markdown)]) + "\n"


def body(markdown: str) -> Iterator[str]:
    """The lines of roff for a text of Markdown. Raises ValueError for what is not known here."""
    lines = markdown.splitlines()
    at = 0
    heading = True  # right beneath one, no .PP: it would be empty
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
            continue
        was_heading, heading = heading, False
        if found := re.match(r"(#{2,4}) (.*)", line):
            heading = True
            at += 1
            # An argument's quotes; what stands in it is bold already.
            text = inline(found[2]).replace(r"\fB", "").replace(r"\fR", "").replace('"', r"\(dq")
            yield f'.{"SH" if len(found[1]) == 2 else "SS"} "{text}"'
        elif found := re.match(r"( *)```(.*)", line):
            block, at = _fenced(lines, at, found[1])
            if not was_heading:
                yield ".PP"
            yield from _synopsis(block) if found[2] == "synopsis" else _example(block)
        elif line.startswith("|"):
            rows, at = _while(lines, at, lambda text: text.startswith("|"))
            yield from _table(rows)
        elif line.startswith("* "):
            items, at = _items(lines, at)
            for item in items:
                yield r".IP \(bu 2"
                yield from _filled(item)
        elif at + 1 < len(lines) and lines[at + 1].startswith(":   "):
            text, at = _definition(lines, at + 1)
            yield ".TP"
            yield _guarded(inline(line))
            yield from _filled(text)
        else:
            paragraph, at = _while(lines, at, lambda text: bool(text.strip()) and not text.startswith(("```", "|", "* ", "#")))
            if not was_heading:
                yield ".PP"
            yield from _filled(" ".join(paragraph))


def _while(lines: list[str], at: int, holds: Callable[[str], bool]) -> tuple[list[str], int]:
    start = at
    while at < len(lines) and holds(lines[at]):
        at += 1
    return lines[start:at], at


def _fenced(lines: list[str], at: int, indent: str) -> tuple[list[str], int]:
    end = next(number for number in range(at + 1, len(lines)) if lines[number] == f"{indent}```")
    return [line.removeprefix(indent) for line in lines[at + 1 : end]], end + 1


def _items(lines: list[str], at: int) -> tuple[list[str], int]:
    items: list[str] = []
    while at < len(lines) and lines[at].startswith(("* ", "  ")):
        if lines[at].startswith("* "):
            items.append(lines[at][2:])
        else:
            items[-1] += " " + lines[at].strip()
        at += 1
    return items, at


def _definition(lines: list[str], at: int) -> tuple[str, int]:
    text = lines[at][4:]
    at += 1
    while at < len(lines) and lines[at].startswith("    "):
        text += " " + lines[at].strip()
        at += 1
    return text, at


def _example(block: list[str]) -> Iterator[str]:
    yield from (".RS 4", ".EX")
    yield from (_guarded(code(line)) for line in block)
    yield from (".EE", ".RE")


def _synopsis(block: list[str]) -> Iterator[str]:
    """Lines of a program's usage: its words bold, what stands for something else underlined."""
    yield ".nf"
    for line in block:
        shown = re.sub(r"(?<![\w-])(-{1,2}[a-z][\w-]*|fuse-[\w-]+|[a-z][a-z-]+)(?![\w:])", r"\\fB\1\\fR", line)
        shown = re.sub(r"(?<![\w\\-])([A-Z][A-Z_]*)(?![\w])", r"\\fI\1\\fR", shown)
        yield _guarded(_escaped(shown).replace(r"\ef", r"\f").replace("-", r"\-"))
    yield ".fi"


def _table(rows: list[str]) -> Iterator[str]:
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    (_, *heads), _, *cells = cells
    for first, *others in cells:
        tag, text = first, ""
        if len(heads) > 1 and not heads[-1]:
            tag = f"{first} ({', '.join(other for other in others[:-1] if other)})"
            text = others[-1]
        elif len(heads) == 1:
            text = others[0]
        else:
            text = "; ".join(f"{head}: {other}" if head else other for head, other in zip(heads, others, strict=True) if other)
        yield ".TP"
        yield _guarded(inline(tag))
        yield from _filled(text)
