"""A program of the product as a process: its output in files, its end checked, its log looked through."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from harness.leftovers import MARK
from harness.log import DEADLINE, Log
from harness.needs import need

ROOT_OF_PROJECT: Final = Path(__file__).resolve().parents[2]
SUSPICIOUS: Final = re.compile(r"Traceback|Error|[Ee]xception|ResourceWarning|[Ll]eak")

LIVE: list["Program"] = []
"""Programs whose output has not been looked through to its end."""


class Program:
    """`python -m MODULE ARGUMENTS…`, running from the moment it is made.

    `mark` goes into the environment, so that what it starts can be found; `user` is a uid to run as (group of the same
    number), for which it is started through setpriv(1).
    """

    def __init__(self, name: str, module: str, arguments: list[str], directory: Path, mark: str, user: int | None = None) -> None:
        self.name = name
        self.stdout, self.stderr = Log(directory / f"{name}.stdout"), Log(directory / f"{name}.stderr")
        command = [sys.executable, "-W", "default::ResourceWarning", "-m", module, *arguments]
        if shutil.which("setpriv"):
            # A pytest that is killed takes it along. As somebody else: setpriv keeps root's way to the interpreter until
            # its exec, which Popen(user=…) loses before.
            somebody = [] if user is None else [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
            command = ["setpriv", "--pdeathsig=TERM", *somebody, "--", *command]
        elif user is not None:
            need("setpriv")
        path = os.pathsep.join(filter(None, [str(ROOT_OF_PROJECT), os.environ.get("PYTHONPATH")]))
        with self.stdout.path.open("wb") as stdout, self.stderr.path.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": path, MARK: mark},
                start_new_session=True,
            )
        self.awaited = False
        LIVE.append(self)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, deadline: float = DEADLINE) -> int:
        """Its exit status; negative for a signal. Raises AssertionError if it does not end."""
        self.awaited = True
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end within {deadline:g} s:\n{self.stderr.text()}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it in order: it must exit with 0."""
        if self.process.poll() is None:
            self.send(number)
        status = self.wait()
        if status != 0:
            raise AssertionError(f"{self.name} ended with {status}, not 0:\n{self.stderr.text()}")

    def ended_unasked(self) -> bool:
        """Whether it ended although no test waited for that or brought it about."""
        return self.process.poll() is not None and not self.awaited

    def kill(self) -> None:
        """End it at once, and expect nothing of it."""
        self.awaited = True
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def suspicious_lines(self) -> list[str]:
        """The lines since the last call that speak of a fault of our own."""
        return [f"{self.name}: {line}" for line in self.stderr.fresh_lines() if SUSPICIOUS.search(line)]
