"""Completion in bash and zsh: what the shells offer is what the parsers take."""

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commandline import Command, command_line
from completion import PROGRAMS
from harness import need

TOP = Path(__file__).parents[2]
COMPLETION = TOP / "packaging" / "completion"
POLICY = """\
tenants:
  acme: {users: [root], rules: [{path: "/**", allow: [read]}]}
  beta: {users: [root], rules: [{path: "/**", allow: [read]}]}
"""


def offered(words: str, path: str = os.environ["PATH"]) -> list[str]:
    """What bash offers behind these words; the last one is what has been typed of the next."""
    typed = words.split(" ")
    program = typed[0]
    script = (
        f"source {COMPLETION}/{program}.bash; COMP_WORDS=({shlex.join(typed)}); COMP_CWORD={len(typed) - 1}; "
        f'_{program.replace("-", "_")} 2>/dev/null; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    environment = {**os.environ, "PATH": path}
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment, cwd="/")
    assert said.stderr == ""
    return said.stdout.split()


def beneath(command: Command) -> list[Command]:
    return [command, *(one for child in command.commands for one in beneath(child))]


ALL = [command for program in PROGRAMS for command in beneath(command_line(program))]


@pytest.mark.parametrize("command", ALL, ids=lambda command: " ".join(command.path))
def test_bash_offers_every_option(command: Command) -> None:
    need("bash")
    wanted = {name for option in command.options for name in option.names if name.startswith("--")}
    assert set(offered(" ".join([*command.path, "--"]))) == wanted


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with a fuse-gatectl that knows the tenants acme and beta."""
    (tmp_path / "etc").mkdir(mode=0o755)
    policy = tmp_path / "etc" / "policy.yaml"
    policy.write_text(POLICY)
    policy.chmod(0o644)
    program = tmp_path / "fuse-gatectl"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={TOP} exec "{sys.executable}" -m fuse_gated.commands.fuse_gatectl --etc {tmp_path}/etc "$@"\n'
    )
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_bash_offers_commands_and_names(path: str) -> None:
    need("bash")
    assert offered("fuse-gatectl e") == ["explain"]
    assert offered("fuse-gatectl --etc /tmp token ") == ["new"]
    assert offered("fuse-gatectl explain ", path) == ["acme", "beta"]
    assert offered("fuse-gatectl audit --tenant b", path) == ["beta"]
    assert offered("fuse-gatectl audit --decision ") == ["allowed", "denied", "failed"]
    assert "unlink" in offered("fuse-gatectl explain acme /a ")
    assert offered("fuse-gatectl show ", path) == []  # no daemon runs
    assert offered("fuse-gate export --read-only /et") == ["/etc"]
    assert "/etc/passwd" in offered("fuse-gate export --token-file /etc/passw")


def test_names_that_are_none_never_reach_the_shell(tmp_path: Path) -> None:
    """A control socket's answer, or a policy, might hold anything."""
    need("bash")
    program = tmp_path / "fuse-gatectl"
    lines = ['"name": "$(touch hit)",', '"name": "fine",', '"name": "a b",', '"session": "../x",', '"session": "0a1b"']
    program.write_text("\n  ".join(["#!/bin/sh\ncat <<'END'", *lines]) + "\nEND\n")
    program.chmod(0o755)
    there = f"{tmp_path}:{os.environ['PATH']}"
    assert offered("fuse-gatectl explain ", there) == ["fine"]
    assert offered("fuse-gatectl kick ", there) == ["0a1b"]


def test_zsh_completes(path: str) -> None:
    need("zsh")
    for typed, wanted in (
        ("fuse-gatectl expl", "fuse-gatectl explain "),
        ("fuse-gatectl token n", "fuse-gatectl token new "),
        ("fuse-gatectl explain ac", "fuse-gatectl explain acme "),
        ("fuse-gatectl audit --deci", "fuse-gatectl audit --decision "),
        ("fuse-gatectl audit --decision den", "fuse-gatectl audit --decision denied "),
        ("fuse-gate export --read", "fuse-gate export --read-only "),
        ("fuse-gated --list", "fuse-gated --listen "),
    ):
        assert in_zsh(typed, path) == wanted


def in_zsh(typed: str, path: str) -> str:
    """The command line after a Tab, in a real zsh on a terminal of its own."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], {"PATH": path, "TERM": "dumb", "HOME": "/nonexistent"})
    try:
        # Ctrl-X shows the line as it is by then. What is shown has marks that what is echoed has not.
        setup = (
            f"fpath=({COMPLETION} $fpath); autoload -U compinit; compinit -D -u; "
            'show() { print -r -- "<""$BUFFER""|>" }; zle -N show; bindkey "^X" show; print rea""dy\n'
        )
        os.write(terminal, setup.encode())
        expect(terminal, r"ready\r?\n")
        os.write(terminal, f"{typed}\t\x18".encode())
        return expect(terminal, r"<([^<|]*)\|>")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)


def expect(terminal: int, pattern: str) -> str:
    seen, end = "", time.monotonic() + 30
    while not (found := re.search(pattern, seen)):
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, seen
        with contextlib.suppress(BlockingIOError):
            seen += os.read(terminal, 4096).decode(errors="replace")
    return found[found.lastindex or 0]
