"""A tour of fuse-gated: `make demo`. A server and a client on this machine, real programs, nothing left behind.

Every line that starts with `$` is run as it stands (fuse-gated, fuse-gate and fuse-gatectl from this checkout). What a
step promises is checked: the tour fails where the product does not keep it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

TOP = Path(__file__).resolve().parents[3]
COLOUR = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

POLICY = """\
tenants:
  acme:
    tokens: [{{sha256: "{digest}", note: "the tour"}}]
    users: [{user}]                 # who on the server may enter the mounts
    rules:                         # the first rule that decides wins
      - {{path: "/.env*", hide: true}}
      - {{path: "/.git/hooks/**", deny: [write]}}
      - {{path: "/vendor/**", deny: [write, delete]}}
      - {{path: "/**", allow: [read, write, execute, delete]}}
    limits: {{file_size: 64MiB}}
    audit: writes
"""

PROGRAM_C = """\
#include <stdio.h>
int main(void) { puts("built on the server, from files that never left the client"); return 0; }
"""


def paint(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def chapter(number: int, title: str) -> None:
    print(f"\n{paint(f'{number}. {title}', '1;36')}")


def say(text: str) -> None:
    print(f"   {text}")


def fail(text: str) -> NoReturn:
    raise SystemExit(paint(f"\nThe tour failed: {text}", "1;31"))


class Stage:
    """Where the tour plays: a directory of its own for the client, the server and their configuration."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.project = base / "laptop" / "project"
        self.etc = base / "etc"
        self.runtime = base / "run"
        self.mount = Path()
        self.port = _free_port()
        (base / "bin").mkdir()
        for name in ("fuse-gated", "fuse-gate", "fuse-gatectl"):
            module = f"fuse_gated.commands.{name.replace('-', '_')}"
            script = base / "bin" / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
            script.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{base / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(TOP),
            "GIT_CONFIG_GLOBAL": str(base / "gitconfig"),
            "LC_ALL": "C.UTF-8",
        }
        (base / "gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.org\n[safe]\ndirectory = *\n")

    def run(self, command: str, *, where: Path | None = None, expect: int | None = 0, show: int = 8, quiet: bool = False) -> str:
        """Run a command as a person would type it, and show what it says."""
        if not quiet:
            print(f"   {paint('$', '1;32')} {command.replace(str(self.base) + '/', '')}")
        done = subprocess.run(
            ["sh", "-c", command], cwd=where or self.base, env=self.environment, text=True, timeout=120,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", check=False,
        )  # fmt: skip
        lines = done.stdout.replace(str(self.base) + "/", "").splitlines()
        if not quiet:
            for line in lines[:show]:
                print(f"     {line[:150]}")
            if len(lines) > show:
                print(paint(f"     … {len(lines) - show} more lines", "2"))
        if expect is not None and done.returncode != expect:
            fail(f"`{command}` ended with {done.returncode}, not {expect}:\n{done.stdout}")
        return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prepare(stage: Stage) -> None:
    """The client's side: a source tree with history, something secret, and a hook."""
    shutil.copytree(TOP / "fuse_gated", stage.project / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (stage.project / "vendor").mkdir()
    (stage.project / "vendor" / "library.c").write_text("/* not ours to change */\n")
    (stage.project / "hello.c").write_text(PROGRAM_C)
    (stage.project / ".env").write_text("PASSWORD=hunter2\n")
    (stage.project / ".gitignore").write_text(".env\nhello\n")
    stage.run("git init -q && git add -A && git commit -qm 'First import'", where=stage.project, quiet=True)


def configure(stage: Stage) -> None:
    import pwd

    token = "fg_" + os.urandom(24).hex()
    (stage.base / "token").write_text(token)
    (stage.base / "token").chmod(0o600)
    stage.etc.mkdir(mode=0o755)
    user = pwd.getpwuid(os.geteuid()).pw_name
    text = POLICY.format(digest=hashlib.sha256(token.encode()).hexdigest(), user=user)
    (stage.etc / "policy.yaml").write_text(text)
    (stage.etc / "policy.yaml").chmod(0o644)


@contextlib.contextmanager
def program(stage: Stage, name: str, arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs in the background, and ends in order."""
    shown = " ".join([name, *arguments]).replace(str(stage.base) + "/", "")
    print(f"   {paint('$', '1;32')} {shown} &")
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [stage.base / "bin" / name, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=stage.environment,
            cwd=stage.base,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                fail(f"{name} did not end in order")


def wait_for(log: Path, word: str, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for line in log.read_text().splitlines():
            if word in line:
                return line
        if process.poll() is not None:
            break
        time.sleep(0.02)
    fail(f"waited in vain for {word!r}; it said:\n{log.read_text()}")


def tour(stage: Stage) -> None:
    chapter(1, "A server with a policy")
    say("The operator writes who may do what. Hidden names do not exist; denied ones are refused and told.")
    for line in (stage.etc / "policy.yaml").read_text().splitlines():
        print(paint(f"     {line[:120]}", "2"))
    stage.run(f"fuse-gatectl --etc {stage.etc} check")
    server_log, client_log = stage.base / "server.log", stage.base / "client.log"
    arguments = ["--etc", str(stage.etc), "--runtime", str(stage.runtime), "--listen", f"127.0.0.1:{stage.port}"]
    with program(stage, "fuse-gated", arguments, server_log) as server:
        say(paint(wait_for(server_log, "ready", server), "2"))

        chapter(2, "A client offers its directory")
        say("It stays where it is, on the client. The server mounts it.")
        export = ["export", str(stage.project), "--server", f"ws://127.0.0.1:{stage.port}", "--token-file",
                  str(stage.base / "token"), "--name", "project", "--json"]  # fmt: skip
        with program(stage, "fuse-gate", export, client_log) as client:
            stage.mount = Path(json.loads(wait_for(client_log, '"mounted"', client))["path"])
            stage.run(f"grep {stage.mount} /proc/mounts")
            visit(stage, server)
            chapter(7, "The client leaves, and the mount is gone")
            client.send_signal(signal.SIGTERM)
            if client.wait(20) != 0:
                fail(f"fuse-gate ended with {client.returncode}")
            end = time.monotonic() + 10
            while str(stage.mount) in Path("/proc/mounts").read_text() and time.monotonic() < end:
                time.sleep(0.02)
            stage.run(f"ls {stage.runtime}/mnt")
        if str(stage.runtime) in Path("/proc/mounts").read_text():
            fail("a mount was left behind")
    said = server_log.read_text()
    if "Traceback" in said:
        fail(f"the server complained:\n{said}")


def visit(stage: Stage, server: subprocess.Popen[bytes]) -> None:
    mount, project = stage.mount, stage.project
    chapter(3, "The server's programs work on the client's files")
    stage.run("ls -A", where=mount)
    stage.run("grep -rn 'class Turnstile' src", where=mount)
    stage.run("git log --oneline && git status --short && echo clean", where=mount)
    stage.run("cc -o hello hello.c && ./hello", where=mount)

    chapter(4, "An edit on either side is seen on the other")
    stage.run(f"echo '/* written on the client */' >> {project}/hello.c && tail -n 1 {mount}/hello.c")
    stage.run(f"echo '/* written on the server */' >> {mount}/hello.c && tail -n 2 {project}/hello.c")
    stage.run("git diff --stat", where=mount)

    chapter(5, "The gate")
    say("Hidden: the file is there on the client, and does not exist on the server.")
    stage.run(f"ls {project}/.env; cat {mount}/.env", expect=1)
    say("Denied: a server must not plant hooks that run on the client.")
    stage.run("echo 'rm -rf ~' > .git/hooks/pre-commit", where=mount, expect=2)
    stage.run("rm vendor/library.c", where=mount, expect=1)
    say("Why? The very gate that decided explains itself, rule and line.")
    stage.run(f"fuse-gatectl --etc {stage.etc} explain acme /.git/hooks/pre-commit create", expect=1)
    say("A new policy applies to the live session, open files included: from now on only reading.")
    policy = stage.etc / "policy.yaml"
    policy.write_text(policy.read_text().replace("allow: [read, write, execute, delete]", "allow: [read]"))
    server.send_signal(signal.SIGHUP)
    wait_for(stage.base / "server.log", "policy applied", server)
    stage.run("echo more >> hello.c", where=mount, expect=2)

    chapter(6, "Who touched what")
    stage.run(f"fuse-gatectl --runtime {stage.runtime} sessions")
    stage.run(f"fuse-gatectl --runtime {stage.runtime} audit --decision denied", show=10)
    stage.run(f"fuse-gatectl --runtime {stage.runtime} audit --path /hello.c", show=8)
    say("Every record is chained to the one before: a missing or altered one shows.")
    stage.run(f"fuse-gatectl --runtime {stage.runtime} audit --verify")


def main() -> int:
    print(paint("fuse-gated: a remote client's directory as a real mount, every operation past a gate", "1"))
    if os.geteuid() == 0:
        say("As root: the kernel driver, mounted by the mount keeper; the daemon itself runs without privilege.")
    else:
        say("As an ordinary user: the libfuse driver, mounted by fusermount3.")
    base = Path(tempfile.mkdtemp(prefix="fuse-gated-tour-"))
    base.chmod(0o755)
    try:
        stage = Stage(base)
        prepare(stage)
        configure(stage)
        tour(stage)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(paint("\nThat was the tour. Nothing is left behind.", "1;36"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
