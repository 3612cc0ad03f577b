#!/usr/bin/env python3
"""man.py [--check]: makes the man pages docs/man/NAME.N from their sources docs/man/NAME.N.md, or sees whether they are right.

A source is prose. What a program or another document knows better stands in it as a line of its own:

    <!-- synopsis PROGRAM -->            how its commands are typed       (its argparse parser)
    <!-- options PROGRAM -->             what its options mean            (same)
    <!-- commands PROGRAM -->            its commands, with their options (same)
    <!-- command-options PROGRAM COMMAND -->   one command's options     (same)
    <!-- include FILE HEADING -->        a section of another document, without its heading; FILE is relative to docs
"""

import re
import sys
import textwrap
from pathlib import Path

from commandline import TOP, Command, command_line
from roff import page

from fuse_gated import __version__

DOCS = TOP / "docs"
MANUALS = {"1": "User Commands", "5": "File Formats", "7": "Miscellaneous", "8": "System Administration"}
_DIRECTIVE = re.compile(r"^<!-- (synopsis|options|commands|command-options|include) (.*) -->$", re.MULTILINE)
_DATE = re.compile(r"^<!-- date (\d{4}-\d{2}-\d{2}) -->$", re.MULTILINE)


def expanded(markdown: str) -> str:
    """The source with its directives carried out. Raises ValueError for one that cannot be."""

    def carried_out(found: re.Match[str]) -> str:
        what, words = found[1], found[2]
        if what == "include":
            file, _, heading = words.partition(" ")
            return section((DOCS / file).read_text("utf-8"), heading, whole=not heading.startswith("# "))
        program, *names = words.split()
        command = command_line(program)
        for name in names:
            command = next(one for one in command.commands if one.path[-1] == name)
        return {"synopsis": synopsis, "options": options, "commands": commands, "command-options": arguments}[what](command)

    return _DIRECTIVE.sub(carried_out, markdown)


def section(text: str, heading: str, *, whole: bool = True) -> str:
    """What stands under a heading, up to the next one of its level or a higher; without `whole`, up to any next one. Raises
    ValueError where there is none."""
    hashes = heading.partition(" ")[0] if whole else "#" * 6
    start = re.search(rf"^{re.escape(heading)}$\n", text, re.MULTILINE)
    if start is None:
        raise ValueError(f"there is no {heading!r}")
    # A line of '#' in a fenced block is a comment there.
    fences = [found.span() for found in re.finditer(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)]
    for end in re.finditer(rf"^#{{1,{len(hashes)}}} ", text[start.end() :], re.MULTILINE):
        place = start.end() + end.start()
        if not any(first <= place < last for first, last in fences):
            return text[start.end() : place].strip("\n")
    return text[start.end() :].strip("\n")


def synopsis(command: Command) -> str:
    """The usage of every command, as a fenced block."""
    lines: list[str] = []
    shared = "" if not command.commands else "".join(f" {part}" for part in command.usage())
    for leaf in command.leaves():
        first = f"{leaf.path[0]}{shared if command.commands else ''} {' '.join(leaf.path[1:])}".rstrip()
        # Blanks within a part must not be where it is broken.
        parts = " ".join(part.replace(" ", "\0") for part in leaf.usage())
        wrapped = textwrap.wrap(f"{first} {parts}", 76, subsequent_indent="        ", break_on_hyphens=False)
        lines += [line.replace("\0", " ") for line in wrapped]
    return "\n".join(["```synopsis", *lines, "```"])


def options(command: Command) -> str:
    """The options, as a definition list."""
    return "\n\n".join(_definition(_names(option.names, option.value), option.help or "?") for option in command.options)


def arguments(command: Command) -> str:
    """One command's arguments and options, as a definition list."""
    told = [_definition(f"`{argument.name}`", argument.help) for argument in command.arguments if argument.help]
    told += [_definition(_names(o.names, o.value), o.help) for o in command.options if not {"--help", "--version"} & {*o.names}]
    return "\n\n".join(told)


def commands(program: Command) -> str:
    """Every command: how it is typed, what it does, its arguments and options."""
    made = []
    for leaf in program.leaves():
        told = leaf.description or f"{leaf.help[:1].upper()}{leaf.help[1:]}."
        parts = [f"### {' '.join(leaf.path[1:])}", told]
        parts += [arguments(leaf), leaf.epilog]
        made.append("\n\n".join(filter(None, parts)))
    return "\n\n".join(made)


def _names(names: tuple[str, ...], value: str) -> str:
    return ", ".join(f"`{name} {value}`" if value else f"`{name}`" for name in names)


def _definition(term: str, text: str) -> str:
    filled = textwrap.fill(f"{text[:1].upper()}{text[1:]}.".replace("..", "."), 120, subsequent_indent="    ")
    return f"{term}\n:   {filled}"


def made(source: Path) -> str:
    """The page of one source. Raises ValueError for a source without its date."""
    name, number = source.name.removesuffix(".md").rsplit(".", 1)
    text = source.read_text("utf-8")
    date = _DATE.search(text)
    if date is None:
        raise ValueError(f"{source} has no date: <!-- date YYYY-MM-DD -->")
    body = expanded(_DATE.sub("", text).partition("\n")[2])
    return page(name, number, date[1], f"fuse-gated {__version__}", MANUALS[number], body)


def main(check: bool) -> int:
    wrong = []
    for source in sorted((DOCS / "man").glob("*.md")):
        target = source.with_suffix("")
        text = made(source)
        if check and (not target.exists() or target.read_text("ascii") != text):
            wrong.append(target.relative_to(TOP))
        elif not check:
            target.write_text(text, "ascii")
    for path in wrong:
        print(f"{path} is not what its sources say: make man", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
