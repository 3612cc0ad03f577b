"""Where the tour plays: two homes beside each other, a laptop's and a server's, in a directory that is removed at the end."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

from screen import Screen

TOP: Final = Path(__file__).resolve().parents[3]
_PROGRAMS: Final = ("fuse-gated", "fuse-gate", "fuse-gatectl")
_PATIENCE: Final = 20.0

Process = subprocess.Popen[bytes]


class TourError(Exception):
    """A step did not do what the tour promises."""


def fail(text: str) -> NoReturn:
    raise TourError(text)


class Stage:
    """`run` types a command on one of the two sides, `program` starts one that stays."""

    def __init__(self, base: Path, screen: Screen) -> None:
        self.screen = screen
        self.homes = {"client": base / "laptop", "server": base / "server"}
        for home in self.homes.values():
            home.mkdir()
        self.mount = Path()
        programs = base / "bin"
        programs.mkdir()
        for name in _PROGRAMS:
            script = programs / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fuse_gated.commands.{name.replace("-", "_")} "$@"\n')
            script.chmod(0o755)
        path = f"{programs}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        self._environment = {**os.environ, "PATH": path, "PYTHONPATH": str(TOP), "LC_ALL": "C.UTF-8", "GIT_PAGER": "cat"}
        (self.homes["client"] / ".gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.org\n")

    def server(self, command: str, *, expect: int = 0, show: int = 12, where: str = "~", silence: str = "") -> str:
        """Type a command on the server; `where` is '~' or 'project', the mount. `silence` is shown if it says nothing."""
        return self._run("server", command, where, expect, show, silence)

    def client(self, command: str, *, where: str = "~") -> str:
        """Type a command on the client; `where` is '~' or 'project', the directory that is exported."""
        return self._run("client", command, where, 0, 12, "")

    def unseen(self, command: str) -> str:
        """What is done on the server behind the scenes."""
        return self._call("server", command, self._directory("server", "~"), 0)

    def quietly(self, command: str) -> str:
        """What was done on the client before the tour begins."""
        return self._call("client", command, self._directory("client", "project"), 0)

    def _run(self, side: str, command: str, where: str, expect: int, show: int, silence: str) -> str:
        self.screen.command(side, where, command)
        said = self._call(side, command, self._directory(side, where), expect)
        self.screen.output(said.splitlines(), show, "" if said else silence)
        return said

    def _call(self, side: str, command: str, directory: Path, expect: int) -> str:
        done = subprocess.run(
            ["sh", "-c", command], cwd=directory, env=self._env(side), text=True, timeout=120, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if done.returncode != expect:
            fail(f"`{command}` ended with {done.returncode}, not {expect}:\n{done.stdout}")
        return self.shortened(side, done.stdout)

    @contextlib.contextmanager
    def program(self, side: str, name: str, arguments: list[str], log: Path) -> Iterator[Process]:
        """A program in the background, which ends in order at the latest with the tour."""
        self.screen.command(side, "~", " ".join([name, *arguments, "&"]))
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [name, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                cwd=self.homes[side], env=self._env(side),
            )  # fmt: skip
        try:
            yield process
        except BaseException:
            # What went wrong is more telling than how this one then ends.
            with contextlib.suppress(TourError):
                self.end(process, name)
            raise
        self.end(process, name)

    def end(self, process: Process, name: str) -> None:
        """SIGTERM, unless it has ended. It must end in order."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            fail(f"{name} did not end within {_PATIENCE:.0f} s")
        if status != 0:
            fail(f"{name} ended with {status}")

    def wait_for(self, side: str, log: Path, word: str, process: Process) -> str:
        """The first line of a program's log that has the word."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            ended = process.poll() is not None
            for line in log.read_text(errors="replace").splitlines():
                if word in line:
                    return self.shortened(side, line)
            if ended:
                break
            time.sleep(0.02)
        fail(f"waited in vain for {word!r}; it said:\n{log.read_text(errors='replace')}")

    def shortened(self, side: str, text: str) -> str:
        """With ~ for the side's home, as its shell would say."""
        return text.replace(str(self.homes[side]), "~")

    def _directory(self, side: str, where: str) -> Path:
        if where == "~":
            return self.homes[side]
        return self.mount if side == "server" else self.homes["client"] / "project"

    def _env(self, side: str) -> dict[str, str]:
        return {**self._environment, "HOME": str(self.homes[side])}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory that everybody may walk to (the daemon becomes another user), with nothing left of it at the end."""
    usual = [Path(os.sep, "tmp"), Path(os.sep, "var", "tmp")]
    places = [place for place in (Path(tempfile.gettempdir()), *usual) if _everybody_may_enter(place)]
    if not places:
        fail(f"others may not walk to {tempfile.gettempdir()}: set TMPDIR to a directory where they may")
    base = Path(tempfile.mkdtemp(prefix="fuse-gated-tour-", dir=places[0])).resolve()
    base.chmod(0o755)
    try:
        yield base
    finally:
        _remove(base)


def _everybody_may_enter(place: Path) -> bool:
    try:
        return all(step.stat().st_mode & 0o001 for step in (place.resolve(), *place.resolve().parents))
    except OSError:
        return False


def mounted_beneath(base: Path) -> list[str]:
    """Mount points, deepest first."""
    points = [line.split(" ")[1] for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines()]
    return sorted((point for point in points if point.startswith(f"{base}/")), reverse=True)


def _remove(base: Path) -> None:
    """Files that are seen through a mount are not ours to remove, so what a failure has left mounted goes first."""
    for point in mounted_beneath(base):
        unmount = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*unmount, point], check=False)
    if not mounted_beneath(base):
        shutil.rmtree(base, ignore_errors=True)
    if base.exists():
        print(f"{base} could not be removed: unmount what is mounted there, and remove it", file=sys.stderr)
