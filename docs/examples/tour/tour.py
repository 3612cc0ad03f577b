"""A tour of fuse-gated: `make demo`. A server and a client on this machine, real programs, nothing left behind.

Every line with a prompt is run as it stands (fuse-gated, fuse-gate and fuse-gatectl are this checkout's). What a step
promises is checked: the tour fails where the product does not keep it.
"""

import io
import json
import os
import pwd
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

from screen import Screen
from stage import TOP, Process, Stage, TourError, fail, mounted_beneath, scratch

sys.path.insert(0, str(TOP))
from fuse_gated.edge.libfuse import LACKS  # the checkout's

POLICY: Final = """\
tenants:
  acme:
    tokens:
      {line}
    users: [{user}]  # who on the server may enter the mounts
    rules:  # for each permission, the first rule that names it decides
      - {{path: "/.env*", hide: true}}
      - {{path: "/.git/hooks/**", deny: [write]}}
      - {{path: "/vendor/**", deny: [write, delete]}}
      - {{path: "/**", allow: [read, write, execute, delete]}}
    limits: {{file_size: 64MiB}}
"""
SETTINGS: Final = """\
user: nobody  # whom the daemon becomes, if root starts it
audit: {to: file}  # the tour's own; without this line it is the journal
"""
OPENING: Final = (
    "Two machines, played on one: 'client' is somebody's laptop, 'server' has the programs. Their homes lie in {base}, which is "
    "gone when this ends. Every command with a prompt is run as it stands, and checked."
)
AS_ROOT: Final = "As root it mounts and supervises, and no more."
AS_USER: Final = "It runs as you, and mounts with fusermount3."
CAGED: Final = "of its own, which has no privilege and is held to a list of system calls"
PROGRAM_C: Final = """\
#include <stdio.h>
int main(void) { puts("built on the server, from files that never left the client"); return 0; }
"""


class Tour:
    """Chapter by chapter."""

    def __init__(self, stage: Stage, screen: Screen) -> None:
        self.stage = stage
        self.screen = screen
        self.project = stage.homes["client"] / "project"
        self.home = stage.homes["server"]
        self.address = f"127.0.0.1:{_free_port()}"
        self.log = self.home / "server.log"
        self.chapters = 0

    def go(self) -> None:
        self.prepare()
        self.policy()
        self.chapter("The server starts")
        self.screen.say(f"{AS_ROOT if os.geteuid() == 0 else AS_USER} Whatever a client sends is read by a process {CAGED}.")
        arguments = ["--etc", "etc", "--runtime", "run", "--listen", self.address]
        with self.stage.program("server", "fuse-gated", arguments, self.log) as server:
            self.screen.output([self.stage.wait_for("server", self.log, "ready", server)], 1)
            self.client(server)
        if left := mounted_beneath(self.home):
            fail(f"mounts were left behind: {left}")
        if "Traceback" in (said := self.log.read_text()):
            fail(f"the server complained:\n{said}")
        if os.geteuid() != 0:
            self.limits()

    def chapter(self, title: str) -> None:
        self.chapters += 1
        self.screen.chapter(self.chapters, title)

    def prepare(self) -> None:
        """The client's files: a source tree with history, something secret, and somebody else's code."""
        self.project.mkdir()
        shutil.copytree(TOP / "fuse_gated", self.project / "src", ignore=shutil.ignore_patterns("__pycache__"))
        (self.project / "vendor").mkdir()
        (self.project / "vendor" / "library.c").write_text("/* not ours to change */\n")
        (self.project / "hello.c").write_text(PROGRAM_C)
        (self.project / ".env").write_text("PASSWORD=hunter2\n")
        (self.project / ".gitignore").write_text(".env\nhello\n")
        self.stage.quietly("git init -q -b main && git add -A && git commit -qm 'First import'")

    def policy(self) -> None:
        run = self.stage.server
        self.chapter("The operator: who may do what")
        self.screen.say("A client logs in with a token. The server keeps only its hash, in a line of the policy.")
        said = run("fuse-gatectl token new acme --note laptop")
        token = re.search(r"^fg_\S+$", said, re.MULTILINE)
        line = re.search(r"- \{sha256.*\}", said)
        if token is None or line is None:
            fail(f"no token in:\n{said}")
        secret = self.stage.homes["client"] / "token"
        secret.touch(mode=0o600)
        secret.write_text(token[0])
        etc = self.home / "etc"
        etc.mkdir(mode=0o755)
        user = pwd.getpwuid(os.geteuid()).pw_name
        for name, text in {"policy.yaml": POLICY.format(line=line[0], user=user), "fuse-gated.yaml": SETTINGS}.items():
            (etc / name).write_text(text)
            (etc / name).chmod(0o644)
        self.screen.say("This is the policy. What a rule hides does not exist on the server; what no rule allows is refused.")
        run("cat etc/policy.yaml", show=20)
        run("fuse-gatectl --etc etc check")

    def client(self, server: Process) -> None:
        self.chapter("The client offers a directory")
        self.screen.say("It makes one connection to the server and opens no port. The files stay where they are.")
        self.stage.client("ls -A project")
        arguments = ["export", "project", "--server", f"ws://{self.address}", "--token-file", "token"]
        log = self.stage.homes["client"] / "client.log"
        with self.stage.program("client", "fuse-gate", arguments, log) as client:
            said = self.stage.wait_for("client", log, "mounted at ", client)
            self.screen.output([self.stage.shortened("server", said)], 1)
            self.stage.mount = Path(said.removeprefix("mounted at "))
            self.screen.say("On the server it is a filesystem like any other:")
            self.stage.server("grep ~/run/mnt /proc/mounts")
            self.work()
            self.unbroken(server)
            self.gate(server)
            self.audit()
            self.chapter("The client leaves")
            self.screen.command("client", "~", f"kill {client.pid}")
            self.stage.end(client, "fuse-gate")
            self.screen.output([], 0, "(it says goodbye, and ends with status 0)")
            end = time.monotonic() + 10
            while mounted_beneath(self.home) and time.monotonic() < end:
                time.sleep(0.02)
            self.stage.server("ls run/mnt; grep ~/run/mnt /proc/mounts", expect=1, silence="(nothing)")

    def work(self) -> None:
        client, server = self.stage.client, self.stage.server
        self.chapter("The server's programs work on the client's files")
        self.screen.say("From here on 'project' is one directory, seen from both sides.")
        server("ls -A", where="project")
        server("grep -rn 'class Turnstile' src", where="project")
        server("git log --oneline && git status", where="project")
        server("cc -o hello hello.c && ./hello", where="project")
        self.chapter("An edit on either side is seen on the other")
        client("echo '/* written on the client */' >> hello.c", where="project")
        server("tail -n 1 hello.c", where="project")
        server("echo '/* written on the server */' >> hello.c", where="project")
        client("git diff --unified=0 hello.c | grep '^+/'", where="project")

    def unbroken(self, server: Process) -> None:
        """Programs notice nothing of a process that is killed below them."""
        self.chapter("What is lost in the middle of work, and is no loss")
        self.screen.say(
            "A copy is under way, and the process that serves the mount is killed. The mount stays, another process goes on, the "
            "client comes back to it, and whoever waited is answered. Nothing is done twice."
        )
        (session,) = json.loads(self.stage.unseen("fuse-gatectl --runtime run sessions --json"))
        self._copy_through(f"kill -9 {session['pid']}")
        if os.geteuid() == 0:
            self.screen.say("The same with the daemon itself:")
            self._copy_through(f"kill -9 {_daemon(server.pid)}")
        self.stage.server("fuse-gatectl audit --file run/audit.jsonl | grep -o 'session-re.*'")

    def _copy_through(self, fault: str) -> None:
        copy = f"cp -r src copied & sleep 0.3; {fault}; wait $!; diff -r src copied && echo all there"
        self.stage.server(copy, where="project")
        self.stage.unseen("rm -r run/mnt/acme/project/copied")

    def gate(self, server: Process) -> None:
        client, run = self.stage.client, self.stage.server
        self.chapter("The gate")
        self.screen.say("Hidden: the file is there on the client, and does not exist on the server.")
        client("cat .env", where="project")
        run("cat .env", where="project", expect=1)
        self.screen.say("Denied: a server must not plant hooks that run on the client, nor change what is not its own.")
        run("echo 'rm -rf ~' > .git/hooks/pre-commit", where="project", expect=2)
        run("rm -f vendor/library.c", where="project", expect=1)
        self.screen.say("Why? The very gate that decided explains itself, with the rule and its line:")
        run("fuse-gatectl --etc etc explain acme /.git/hooks/pre-commit create", expect=1)
        self.screen.say("A new policy applies to the live session, to open files too. From now on, only reading:")
        run("sed -i 's/allow: .*]/allow: [read]/' etc/policy.yaml")
        run(f"kill -HUP {server.pid}")
        self.stage.wait_for("server", self.log, "policy applied", server)
        run("echo more >> hello.c", where="project", expect=2)

    def audit(self) -> None:
        run = self.stage.server
        self.chapter("Who touched what")
        run("fuse-gatectl --runtime run sessions")
        self.screen.say("Each refusal and each change has a record (on a real server in the journal, in its own fields):")
        run("fuse-gatectl audit --file run/audit.jsonl --decision denied")
        run("fuse-gatectl audit --file run/audit.jsonl --path /hello.c")
        self.screen.say("Each record is chained to the one before. One that is taken away, or altered, shows:")
        run("fuse-gatectl audit --file run/audit.jsonl --verify", show=1)
        run("grep -v vendor run/audit.jsonl > forged.jsonl")
        run("fuse-gatectl audit --file forged.jsonl --verify", show=2, expect=1)

    def limits(self) -> None:
        """What an ordinary user's server does less well than root's."""
        self.chapter("What root's server can do besides")
        self.screen.say("You have seen the libfuse driver, which is all that an ordinary user can have. Started by root:")
        others = "others enter your mounts only with user_allow_other in /etc/fuse.conf; there, an access list says who does"
        self.screen.points(
            [
                ("entry", others),
                ("privilege", "here all processes are yours; there, mounting and the network are different users' processes"),
                ("speed", "each request makes one hop more here"),
            ]
        )
        self.screen.say(
            f"And these work there, and not here, or not fully: {', '.join(LACKS)}. `fuse-gatectl doctor` explains each."
        )


def _daemon(supervisor: int) -> int:
    """The daemon's pid: root's `fuse-gated` starts it, beside the mount keeper."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return next(int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "fuse-gated\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def obstacle() -> str:
    """Why this machine cannot mount, and what to do about it; '' if it can."""
    device, root = Path("/dev/fuse"), os.geteuid() == 0
    if not device.exists():
        return "this machine has no /dev/fuse. As root: modprobe fuse. A container needs --device /dev/fuse --cap-add SYS_ADMIN."
    if not os.access(device, os.R_OK | os.W_OK):
        mode = f"{device.stat().st_mode & 0o777:04o}"
        return f"you may not open /dev/fuse (its mode is {mode}). As root: chmod 666 /dev/fuse, as udev does."
    if root:
        held = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
        if held is not None and not int(held[1], 16) & 1 << 21:
            return "root may not mount here (no CAP_SYS_ADMIN). A container needs --cap-add SYS_ADMIN --device /dev/fuse."
        return ""
    program = shutil.which("fusermount3")
    if program is None:
        return "fusermount3 is missing. As root: apt-get install fuse3"
    status = os.stat(program)
    if status.st_uid != 0 or not status.st_mode & 0o4000:
        return f"{program} is not setuid root, so it cannot mount for you. As root: chown root {program}; chmod u+s {program}"
    if not os.path.exists("/etc/mtab"):
        return "there is no /etc/mtab, without which fusermount3 takes no mount away. As root: ln -s /proc/self/mounts /etc/mtab"
    return ""


def main() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Programs say what they like, and the terminal may not know all of it.
        sys.stdout.reconfigure(errors="replace")
    # Debian 13's users share with their group what they make; what a server trusts must be theirs alone.
    os.umask(0o022)
    screen = Screen()
    if reason := obstacle():
        print(screen.paint("bad", f"The tour cannot begin: {reason}"), file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    screen.title("fuse-gated: a client's directory, mounted on a server, past a gate")
    try:
        with scratch() as base:
            screen.say(OPENING.format(base=base))
            Tour(Stage(base, screen), screen).go()
    except TourError as error:
        print(screen.paint("bad", f"\nThe tour failed: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nThe tour was stopped.", file=sys.stderr)
        return 130
    screen.title("That was the tour. Nothing is left behind.")
    screen.say("On your own files: docs/getting-started/quick-start.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
