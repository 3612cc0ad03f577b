#!/usr/bin/env python3
"""completion.py [--check]: makes the completions in packaging/completion from the programs' parsers, or sees if they are right.

For bash NAME.bash, for zsh _NAME, as their systems look for them. Not shtab's: what it makes differs from version to version,
so what is committed could not be compared on every machine, and names of tenants and sessions it cannot ask for.
"""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from commandline import MODULES, TOP, Command, command_line

from fuse_gated.gate.judgement import OPERATIONS

TARGET = TOP / "packaging" / "completion"
PROGRAMS = [name for name in MODULES if name != "fuse-gated-mountd"]
"""The mount keeper is typed by nobody."""

_HEAD = "Made by packaging/dev/completion.py from the program's parser: change that, and run: make man"
_KINDS = {
    "DIR": "directories",
    "FILE": "files",
    "TENANT": "tenants",
    "T --tenant": "tenants",
    "SESSION": "sessions",
    "S": "sessions",
    "OPERATION": "operations",
    "O": "operations",
}
_HELPERS = r"""
# What can be named, one a line. Names are looked at once more: the shell must see nothing but names.
__fuse_gatectl_tenants() {
    fuse-gatectl check --json 2>/dev/null | sed -n 's/^ *"name": "\([a-z0-9][a-z0-9._-]*\)",\{0,1\}$/\1/p'
}
__fuse_gatectl_sessions() {
    fuse-gatectl sessions --json 2>/dev/null | sed -n 's/^ *"session": "\([0-9a-f]*\)",\{0,1\}$/\1/p'
}
"""


def kind(value: str, option: str = "") -> str:
    """What may stand for a value that usage shows so: a key of `_KINDS`, or '' for anything."""
    return _KINDS.get(f"{value} {option}", _KINDS.get(value, ""))


def bash(program: Command) -> Iterator[str]:
    """The completion for bash; it needs nothing of the package bash-completion."""
    function = f"_{program.path[0].replace('-', '_')}"
    operations = " ".join(OPERATIONS)
    yield f"# bash completion for {program.path[0]}"
    yield f"# {_HEAD}"
    if program.path[0] == "fuse-gatectl":
        yield _HELPERS.rstrip()
    yield ""
    yield f"{function}() {{"
    yield '    local word="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" command="" place=0 skip="" at part'
    yield "    COMPREPLY=()"
    yield "    for ((at = 1; at < COMP_CWORD; at++)); do"
    yield '        part="${COMP_WORDS[at]}"'
    yield '        if [[ -n $skip ]]; then skip=""; continue; fi'
    yield '        case "$command $part" in'
    for command in _all(program):
        name = " ".join(command.path[1:])
        valued = [spelled for option in command.options if option.value for spelled in option.names]
        if valued:
            yield f"        {_pattern([f'{name} {option}' for option in valued])}) skip=1 ;;"
        for child in command.commands:
            child_name = " ".join(child.path[1:])
            yield f"        {_pattern([f'{name} {child.path[-1]}'])}) command={shlex.quote(child_name)} place=0 ;;"
    yield "        *' '-*) ;;"
    yield "        *) ((place += 1)) ;;"
    yield "        esac"
    yield "    done"
    yield '    case "$command $previous" in'
    for command in _all(program):
        name = " ".join(command.path[1:])
        for option in command.options:
            if option.value:
                spellings = _pattern([f"{name} {spelled}" for spelled in option.names])
                yield f"    {spellings}) {_bash_reply(_words(option.choices), kind(option.value, option.names[-1]))}; return ;;"
    yield "    esac"
    yield '    case "$command" in'
    for command in _all(program):
        offered = " ".join(name for option in command.options for name in option.names)
        yield f"    {_pattern([' '.join(command.path[1:])])})"
        yield f'        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "{offered}" -- "$word")); return; fi'
        if command.commands:
            children = " ".join(child.path[-1] for child in command.commands)
            yield f'        COMPREPLY=($(compgen -W "{children}" -- "$word"))'
        elif command.arguments:
            yield "        case $place in"
            for number, argument in enumerate(command.arguments):
                label = "*" if argument.nargs in ("+", "*") else str(number)
                yield f"        {label}) {_bash_reply(_words(argument.choices), kind(argument.name))} ;;"
            yield "        esac"
        yield "        ;;"
    yield "    esac"
    yield "}"
    yield f"complete -F {function} {program.path[0]}"
    if program.path[0] == "fuse-gatectl":
        yield f"__fuse_gatectl_operations={shlex.quote(operations)}"


def _all(command: Command) -> list[Command]:
    return [command, *(beneath for child in command.commands for beneath in _all(child))]


def _pattern(texts: list[str]) -> str:
    return "|".join(shlex.quote(text) if text else "''" for text in texts)


def _words(choices: tuple[str, ...]) -> str:
    return " ".join(choices)


def _bash_reply(words: str, what: str) -> str:
    if words:
        return f'COMPREPLY=($(compgen -W "{words}" -- "$word"))'
    match what:
        case "directories":
            return 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$word")'
        case "files":
            return 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word")'
        case "operations":
            return 'COMPREPLY=($(compgen -W "$__fuse_gatectl_operations" -- "$word"))'
        case "tenants" | "sessions":
            return f'COMPREPLY=($(compgen -W "$(__fuse_gatectl_{what})" -- "$word"))'
    return ":"


def zsh(program: Command) -> Iterator[str]:
    """The completion for zsh, by its _arguments."""
    name = program.path[0]
    yield f"#compdef {name}"
    yield f"# {_HEAD}"
    if name == "fuse-gatectl":
        yield _HELPERS.rstrip()
        yield "_fuse_gatectl_tenants() { compadd -- ${(f)\"$(__fuse_gatectl_tenants)\"} }"
        yield "_fuse_gatectl_sessions() { compadd -- ${(f)\"$(__fuse_gatectl_sessions)\"} }"
        yield f"_fuse_gatectl_operations() {{ compadd -- {' '.join(OPERATIONS)} }}"
    for command in reversed(_all(program)):
        yield ""
        yield f"{_zsh_function(command)}() {{"
        yield "    local curcontext=$curcontext state line ret=1"
        yield "    typeset -A opt_args"
        specs = [_zsh_option(command, number) for number in range(len(command.options))]
        specs += [
            f"{'*' if argument.nargs in ('+', '*') else ''}{':' if argument.nargs == '?' else ''}"
            f":{_zsh_text(argument.name)}:{_zsh_action(argument.choices, kind(argument.name))}"
            for argument in command.arguments
        ]
        if command.commands:
            specs += [":command:->command", "*::argument:->argument"]
        yield "    _arguments -C \\"
        for spec in specs[:-1]:
            yield f"        {shlex.quote(spec)} \\"
        yield f"        {shlex.quote(specs[-1])} && ret=0"
        if command.commands:
            yield "    case $state in"
            yield "    command)"
            yield "        local -a commands"
            told = [f"{child.path[-1]}:{child.help or child.path[-1]}" for child in command.commands]
            yield f"        commands=({' '.join(shlex.quote(text) for text in told)})"
            yield "        _describe command commands && ret=0 ;;"
            yield "    argument)"
            yield "        case $words[1] in"
            for child in command.commands:
                yield f"        {child.path[-1]}) {_zsh_function(child)} && ret=0 ;;"
            yield "        esac ;;"
            yield "    esac"
        yield "    return ret"
        yield "}"
    yield ""
    yield f'{_zsh_function(program)} "$@"'


def _zsh_function(command: Command) -> str:
    return "_" + "_".join(command.path).replace("-", "_")


def _zsh_option(command: Command, number: int) -> str:
    option = command.options[number]
    # The two spellings of one option are not offered after each other.
    exclusive = "*" if option.repeats else f"({' '.join(option.names)})" if len(option.names) > 1 else ""
    spec = f"{exclusive}{option.names[-1]}[{_zsh_text(option.help)}]"
    if option.value:
        spec += f":{_zsh_text(option.value)}:{_zsh_action(option.choices, kind(option.value, option.names[-1]))}"
    return spec


def _zsh_text(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "[]:\\" else sign for sign in text)


def _zsh_action(choices: tuple[str, ...], what: str) -> str:
    if choices:
        return f"({' '.join(choices)})"
    known = {"directories": "_files -/", "files": "_files", "": " "}
    return known.get(what, f"_fuse_gatectl_{what}")


def made() -> Iterator[tuple[Path, str]]:
    """(file, its text) of everything."""
    for name in PROGRAMS:
        program = command_line(name)
        yield TARGET / f"{name}.bash", "\n".join(bash(program)) + "\n"
        yield TARGET / f"_{name}", "\n".join(zsh(program)) + "\n"


def main(check: bool) -> int:
    wrong = []
    for path, text in made():
        if not check:
            path.write_text(text, "utf-8")
        elif not path.exists() or path.read_text("utf-8") != text:
            wrong.append(path)
    for path in wrong:
        print(f"{path.relative_to(TOP)} is not what the parser says: make man", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
