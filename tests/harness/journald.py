"""A real systemd-journald of the test's own: in a mount namespace whose /run is a tmpfs, so that it meets no other journald."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from harness.needs import need, need_that

_PROGRAM: Final = "/lib/systemd/systemd-journald"
_CONFIGURATION: Final = """\
[Journal]
Storage=volatile
ReadKMsg=no
Audit=
RateLimitIntervalSec=0
ForwardToSyslog=no
ForwardToWall=no
"""
# cgroup2 is mounted so that journald can tell, as under systemd, from which unit a record came.
_START: Final = """\
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journald.conf.d
printf %s "$1" >/run/systemd/journald.conf.d/test.conf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec "$2"
"""


class Journald:
    """A running journald. `socket` is the path of its native socket, `journal` the directory of its files."""

    def __init__(self) -> None:
        told = "\0fuse-gated-journald-" + os.urandom(8).hex()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(told)
            notify.settimeout(30)
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _START, "sh", _CONFIGURATION, _PROGRAM],
                env=os.environ | {"NOTIFY_SOCKET": told.replace("\0", "@")},
                stderr=subprocess.DEVNULL,
            )
            try:
                while b"READY=1" not in notify.recv(4096).split(b"\n"):
                    pass
            except BaseException:
                self.stop()
                raise
        self._root = Path(f"/proc/{self._process.pid}/root")
        self.socket = str(self._root / "run/systemd/journal/socket")
        self.journal = str(self._root / "run/log/journal")

    def command(self, *arguments: str) -> str:
        """Run a program beside journald; returns its output."""
        beside = ["nsenter", "--mount", f"--target={self._process.pid}", *arguments]
        return subprocess.run(beside, check=True, capture_output=True, text=True, timeout=60).stdout

    def sync(self) -> None:
        """Wait until everything that was sent is in the files."""
        self.command("journalctl", "--sync")

    def pause(self) -> None:
        """Let it read nothing; returns when it has stopped."""
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def run_in_unit(self, unit: str, program: str, *arguments: str) -> None:
        """Run a Python program as a process of `unit`, and keep it until journald has read what it sent."""
        group = self._root / "sys/fs/cgroup" / unit
        group.mkdir()
        try:
            enter = 'echo $$ >"$0" && exec "$@"'
            program += "\nprint(flush=True); import sys; sys.stdin.read()"
            with subprocess.Popen(
                ["sh", "-c", enter, str(group / "cgroup.procs"), sys.executable, "-c", program, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            ) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"\n"
                self.sync()
            assert process.returncode == 0
        finally:
            group.rmdir()

    def stop(self) -> None:
        """End it for good; doing so twice does nothing."""
        if self._process.poll() is None:
            self.resume()
            self._process.terminate()
            self._process.wait(60)


@contextlib.contextmanager
def running_journald() -> Iterator[Journald]:
    """Skips the test, or fails it under CI, where this machine has no journald or no namespaces to run it in."""
    need("root", "unshare", "nsenter", "journalctl")
    need_that(shutil.which(_PROGRAM), f"this machine lacks {_PROGRAM}")
    possible = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True, check=False)
    need_that(possible.returncode == 0, f"no mount namespaces here: {possible.stderr.decode(errors='replace').strip()}")
    journald = Journald()
    try:
        yield journald
    finally:
        journald.stop()
