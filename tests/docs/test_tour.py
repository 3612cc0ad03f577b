"""The tour of `make demo`: as root with the kernel driver, as an ordinary user with libfuse, and where it cannot begin."""

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from harness import mounts_beneath, need, need_that, processes_marked
from harness.leftovers import MARK, clear_away

TOP = Path(__file__).parents[2]
TOUR = TOP / "docs/examples/tour/tour.py"
NOBODY = ("--reuid=65534", "--regid=65534", "--clear-groups")
READING = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
"""For the interpreter and the checkout of a root who has them where nobody else may walk."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
DEADLINE = 90


class Place:
    """Where a tour plays, and who takes it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = os.urandom(8).hex()

    def command(self, *options: str) -> list[str]:
        """The tour; with `options` as whom setpriv(1) makes of us."""
        return [*(["setpriv", *options, "--"] if options else []), sys.executable, str(TOUR)]

    def environment(self, **other: str) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.directory), MARK: self.mark, **other}

    def take(self, *options: str) -> "subprocess.CompletedProcess[str]":
        """The tour from its beginning to its end, told into a file."""
        return subprocess.run(
            self.command(*options), env=self.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=DEADLINE, check=False,
        )  # fmt: skip

    def left(self) -> list[str]:
        return [str(path) for path in (*self.directory.iterdir(), *mounts_beneath(self.directory))]


@pytest.fixture
def place() -> Iterator[Place]:
    """Not tmp_path, to which others may not walk."""
    directory = Path(tempfile.mkdtemp(prefix="fuse-gated-docs-")).resolve()
    directory.chmod(0o1777)
    place = Place(directory)
    yield place
    left = clear_away(place.mark, directory)
    shutil.rmtree(directory)
    assert not left


def check(said: str, driver: str) -> None:
    """What every tour has shown."""
    assert "Traceback" not in said
    assert f"{driver} driver" in said
    for promise in (
        "built on the server, from files that never left the client",
        "+/* written on the client */\n    +/* written on the server */\n",
        "    all there\n",
        "PASSWORD=hunter2",
        "cat: .env: No such file or directory",
        "denied: create /.git/hooks/pre-commit (tenant acme)",
        ": whole: records 1..",
        ": not whole: ",
        "missing: record ",
        "That was the tour. Nothing is left behind.",
    ):
        assert promise in said
    assert said.count("Permission denied") == 3
    refused = {tuple(found) for found in re.findall(r"refused +(\S+) +(/\S+)", said)}
    hook, vendor = ("create", "/.git/hooks/pre-commit"), ("unlink", "/vendor/library.c")
    assert refused == {("lookup", "/.env"), hook, vendor, ("open", "/hello.c")}


def test_as_root(place: Place) -> None:
    need("root", "fuse", "git", "cc")
    done = place.take()
    assert done.returncode == 0, done.stdout
    check(done.stdout, "kernel")
    assert not COLOUR.search(done.stdout)
    assert not place.left()


def test_as_an_ordinary_user(place: Place) -> None:
    need("a mount by an ordinary user", "fusermount3", "git", "cc")
    options: tuple[str, ...] = ()
    if os.geteuid() == 0:
        need("setpriv")
        options = NOBODY if _works(*NOBODY) else (*NOBODY, *READING)
        need_that(_works(*options), "an ordinary user cannot read this checkout and its interpreter")
    done = place.take(*options)
    assert done.returncode == 0, done.stdout
    check(done.stdout, "libfuse")
    assert "What root's server can do besides" in done.stdout
    assert not place.left()


def test_without_a_device_that_may_be_opened_it_says_so(place: Place) -> None:
    need("root", "setpriv", "unshare")
    # A node of its own, so that the mode is nobody else's.
    script = 'mount -t tmpfs none "$0" && mknod -m 600 "$0/fuse" c 10 229 && mount --bind "$0/fuse" /dev/fuse && umount -l "$0"'
    command = ["unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', str(place.directory), *place.command(*NOBODY)]
    done = subprocess.run(command, env=place.environment(), capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "The tour cannot begin: you may not open /dev/fuse (its mode is 0600). As root: chmod 666 /dev/fuse, as udev does.\n"
    )
    assert not place.left()


@pytest.mark.parametrize(("columns", "options", "coloured"), [(60, {}, True), (120, {"NO_COLOR": "1"}, False)])
def test_on_a_terminal_it_keeps_to_its_width(place: Place, columns: int, options: dict[str, str], coloured: bool) -> None:
    need("root", "fuse", "git", "cc")
    said, status = _on_terminal(place.command(), columns, place.environment(TERM="xterm", **options))
    assert status == 0, said
    assert bool(COLOUR.search(said)) == coloured
    lines = COLOUR.sub("", said).split("\r\n")
    assert max(map(len, lines)) <= columns
    assert "That was the tour. Nothing is left behind." in lines
    assert not place.left()


def test_stopped_by_ctrl_c_it_leaves_nothing_behind(place: Place) -> None:
    need("root", "fuse", "git", "cc")
    process = subprocess.Popen(
        place.command(), env=place.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
        # Who runs the tests may ignore it, as nohup(1) and a shell's & do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    # Once it works on the mount. As from a terminal, all its programs hear the signal.
    for line in process.stdout:
        if "git log" in line:
            os.killpg(process.pid, signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(DEADLINE) == 130, rest
    assert rest.endswith("The tour was stopped.\n")
    assert not processes_marked(place.mark)
    assert not place.left()


def _works(*options: str) -> bool:
    command = ["setpriv", *options, "--", "sh", "-c", 'exec "$0" -c "import fuse_gated"', sys.executable]
    return subprocess.run(command, cwd=TOP, capture_output=True, check=False).returncode == 0


def _on_terminal(command: Sequence[str], columns: int, environment: dict[str, str]) -> tuple[str, int]:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(command, env=environment, stdin=follower, stdout=follower, stderr=follower, start_new_session=True)
    os.close(follower)
    said = b""
    try:
        while data := os.read(leader, 65536):
            said += data
    except OSError:
        pass  # EIO: nobody has the terminal open any more
    finally:
        os.close(leader)
    return said.decode(), process.wait(DEADLINE)
