"""The programs' command lines as data, read from their argparse parsers: what man pages and completions are made of."""

import argparse
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP))

MODULES = {
    "fuse-gated": "fuse_gated.commands.fuse_gated",
    "fuse-gated-mountd": "fuse_gated.commands.fuse_gated_mountd",
    "fuse-gate": "fuse_gated.commands.fuse_gate",
    "fuse-gatectl": "fuse_gated.commands.fuse_gatectl",
}
"""The module of each program; its function `parser` makes the parser."""


_VARYING = {("fuse-gated", "runtime"): "/run/fuse-gated, or for an ordinary user $XDG_RUNTIME_DIR/fuse-gated"}
"""Defaults that depend on who asks, and must not get into a page that is made once for all."""


@dataclass(frozen=True)
class Option:
    """`value` is what follows it ('' for a flag), `choices` what that may be."""

    names: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    help: str
    required: bool
    repeats: bool


@dataclass(frozen=True)
class Argument:
    """One that is known by its place. `nargs` as argparse has it: '' for exactly one."""

    name: str
    choices: tuple[str, ...]
    help: str
    nargs: str


@dataclass(frozen=True)
class Command:
    """A program, or a command of one. `path` is what is typed, such as ('fuse-gatectl', 'token', 'new')."""

    path: tuple[str, ...]
    help: str
    description: str
    epilog: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    commands: tuple["Command", ...]

    def leaves(self) -> list["Command"]:
        """The commands that can be run: itself, or those beneath it."""
        return [leaf for command in self.commands for leaf in command.leaves()] if self.commands else [self]

    def usage(self) -> list[str]:
        """What may follow its name, in parts that should not be broken."""
        parts = [_bracketed(option) for option in self.options if option.names[-1] not in ("--help", "--version")]
        return parts + [_shown(argument) for argument in self.arguments]


def parser(program: str) -> argparse.ArgumentParser:
    """The parser of one of our programs."""
    module: Any = importlib.import_module(MODULES[program])
    make = getattr(module, "parser", None) or module._parser
    made: argparse.ArgumentParser = make()
    return made


def command_line(program: str) -> Command:
    """The command line of one of our programs."""
    return _command(parser(program), (program,), "")


def _command(made: argparse.ArgumentParser, path: tuple[str, ...], help_: str) -> Command:
    options, arguments, commands = [], [], []
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands += [_command(sub, (*path, name), helps.get(name, "")) for name, sub in action.choices.items()]
            continue
        choices = tuple(str(choice) for choice in action.choices or ())
        told = _help(made, action)
        if action.option_strings:
            value = "" if action.nargs == 0 else _value(action, choices)
            repeats = isinstance(action, argparse._AppendAction)
            options.append(Option(tuple(action.option_strings), value, choices, told, action.required, repeats))
        else:
            arguments.append(Argument(_value(action, choices), choices, told, str(action.nargs or "")))
    epilog = " ".join((made.epilog or "").split())
    return Command(path, help_, made.description or "", epilog, tuple(options), tuple(arguments), tuple(commands))


def _value(action: argparse.Action, choices: tuple[str, ...]) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return "|".join(choices) if choices else action.dest.upper()


def _help(made: argparse.ArgumentParser, action: argparse.Action) -> str:
    default = _VARYING.get((made.prog, action.dest), str(action.default))
    told = (action.help or "").replace("%(default)s", default).replace("%(prog)s", made.prog).replace("%%", "%")
    return " ".join(told.split())


def _bracketed(option: Option) -> str:
    name = option.names[-1] if option.names[-1].startswith("--") else option.names[0]
    shown = f"{name} {option.value}" if option.value else name
    return (shown if option.required else f"[{shown}]") + (" …" if option.repeats else "")


def _shown(argument: Argument) -> str:
    return {"?": f"[{argument.name}]", "*": f"[{argument.name} …]", "+": f"{argument.name} …"}.get(argument.nargs, argument.name)
