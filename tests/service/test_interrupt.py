"""A program that waits for a client that has fallen silent ends on Ctrl-C, and else by the deadline; nobody else notices.

What the kernel promises is in fs/fuse/dev.c (request_wait_answer): a signal sends FUSE_INTERRUPT, and then even a process that
is to die waits until its request is answered.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from harness import Server
from harness.hostile import SILENCE, Child, HostileClient, honest
from harness.waiting import allowed, until

PROMISED: Final = 1.0
"""Seconds from Ctrl-C to the program's end."""
SLACK: Final = 1.5
"""What a busy machine may take beyond."""


def read(mount: Path) -> None:
    (mount / "f").read_bytes()


def open_only(mount: Path) -> None:
    os.open(mount / "f", os.O_RDONLY)


def write(mount: Path) -> None:
    os.write(os.open(mount / "f", os.O_WRONLY), b"12345")


def sync(mount: Path) -> None:
    os.fsync(os.open(mount / "f", os.O_RDONLY))


def lock(mount: Path) -> None:
    fcntl.flock(os.open(mount / "f", os.O_RDONLY), fcntl.LOCK_EX)


def record_lock(mount: Path) -> None:
    fcntl.lockf(os.open(mount / "f", os.O_RDWR), fcntl.LOCK_EX)


OPERATIONS: Final[dict[str, tuple[str, Callable[[Path], object]]]] = {
    # what a program does: the operation that is never answered, and the doing
    "stat": ("getattr", lambda mount: os.stat(mount / "f")),
    "open": ("open", open_only),
    "create": ("create", lambda mount: os.open(mount / "new", os.O_CREAT | os.O_WRONLY)),
    "read": ("read", read),
    "write": ("write", write),
    "fsync": ("fsync", sync),
    "flock": ("setlk", lock),
    "lockf": ("setlk", record_lock),
    "list": ("readdir", os.listdir),
    "mkdir": ("mkdir", lambda mount: os.mkdir(mount / "new")),
    "unlink": ("unlink", lambda mount: os.unlink(mount / "f")),
    "rename": ("rename", lambda mount: os.rename(mount / "f", mount / "g")),
    "readlink": ("readlink", lambda mount: os.readlink(mount / "l")),
    "statvfs": ("statfs", os.statvfs),
}
KILLED_ONLY: Final = {"read"}
"""Where a program that catches SIGINT goes on waiting: a cached read (the kernel's rule, proven here)."""


class Silent:
    """Answers all but one operation."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.asked = False
        # The worker itself asks once, for what it shows while a client is away (turnstile/memory.py).
        self.own = operation == "statfs"

    def __call__(self, asked: str, arguments: Any, request: Any) -> Any:
        # The root's attributes, and a name that is free, are always told.
        if asked == self.operation and getattr(arguments, "target", None) != b"":
            if not self.own:
                self.asked = True
                return SILENCE
            self.own = False
        return "ENOENT" if asked == "getattr" and arguments.target in (b"new", b"g") else honest(asked, arguments, request)


def wait_until_asked(client: HostileClient) -> None:
    client.pump(lambda: isinstance(client.answer, Silent) and client.answer.asked)


@pytest.mark.parametrize("doing", OPERATIONS)
def test_ctrl_c_ends_a_program_that_waits(unharmed: Server, witness: Any, doing: str) -> None:
    operation, function = OPERATIONS[doing]
    with HostileClient(unharmed) as client:
        mount = client.open(Silent(operation))
        with Child(function, mount) as program:
            wait_until_asked(client)
            witness.works()
            assert not program.wait(0), "it waits"
            start = time.monotonic()
            program.send(signal.SIGINT)
            client.pump(lambda: False, program.fileno())
            seconds = time.monotonic() - start
            assert program.reap() == -signal.SIGINT
        assert seconds < allowed(PROMISED + SLACK)
        # A page that is read ahead has no caller whose signal could be told.
        client.pump(lambda: bool(client.cancelled) or doing == "read")
        client.answer = honest
        assert client.during(os.stat, mount / "f").st_size == 5
        client.leave()
        assert client.closed == (1000, "")


@pytest.mark.parametrize("doing", [doing for doing in OPERATIONS if doing not in KILLED_ONLY])
def test_a_program_that_catches_the_signal_hears_of_it(unharmed: Server, doing: str) -> None:
    operation, function = OPERATIONS[doing]

    def catching(mount: Path) -> str:
        signal.signal(signal.SIGINT, _caught)
        try:
            function(mount)
        except KeyboardInterrupt:
            return "caught"
        return "not interrupted"

    with HostileClient(unharmed) as client:
        mount = client.open(Silent(operation))
        with Child(catching, mount) as program:
            wait_until_asked(client)
            start = time.monotonic()
            program.send(signal.SIGINT)
            client.pump(lambda: False, program.fileno())
            seconds = time.monotonic() - start
            assert program.result() == "caught"
            assert seconds < allowed(PROMISED + SLACK)
        client.leave()


def _caught(*_: object) -> None:
    raise KeyboardInterrupt


def test_without_a_signal_the_deadline_ends_it(unharmed: Server, witness: Any) -> None:
    """All at once, each in a session of its own."""
    with contextlib.ExitStack() as stack:
        waiting = {}
        for doing, (operation, function) in OPERATIONS.items():
            client = stack.enter_context(HostileClient(unharmed))
            mount = client.open(Silent(operation))
            start = time.monotonic()
            waiting[doing] = (client, mount, start, stack.enter_context(Child(function, mount)))
            wait_until_asked(client)
        witness.works()
        for doing, (client, mount, start, program) in waiting.items():
            assert client.terms is not None
            # The kernel asks once more for a page whose reading ahead has failed.
            deadlines = 2 if doing == "read" else 1
            client.pump(lambda: False, program.fileno(), client.terms.deadline * (deadlines + 2))
            assert time.monotonic() - start >= client.terms.deadline - 0.1
            with pytest.raises(TimeoutError):
                program.result()
            client.answer = honest
            assert client.during(os.stat, mount / "f").st_size == 5
            client.leave()


def test_a_program_with_a_timer_hears_no_eintr(stage: Any) -> None:
    """As on a local filesystem, where no call but a wait for a lock is interrupted by signals that are caught (signal(7))."""
    server = stage.server()
    mount = stage.export(server, name="timer").mount_path()
    (mount / "f").write_bytes(b"12345")

    def working(mount: Path) -> list[str]:
        libc = ctypes.CDLL(None, use_errno=True)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        found = []
        # By libc: Python itself makes a call again that was interrupted (PEP 475).
        path, buffer = os.fsencode(mount / "f"), ctypes.create_string_buffer(4096)
        for _ in range(200):
            descriptor = libc.open(path, os.O_RDWR)
            for result in (
                descriptor,
                libc.access(path, os.R_OK),
                libc.statfs(path, buffer),
                libc.pread(descriptor, buffer, 5, 0),
                libc.pwrite(descriptor, b"12345", 5, 0),
                libc.fsync(descriptor),
            ):
                if result < 0:
                    found.append(errno.errorcode[ctypes.get_errno()])
            libc.close(descriptor)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return found

    with Child(working, mount) as program:
        assert program.result() == []


def test_a_program_behind_anothers_lock_ends_with_it(unharmed: Server) -> None:
    """mkdir holds the directory while it waits; who makes another name there waits behind it, and cannot be interrupted."""
    with HostileClient(unharmed) as client:
        quiet = Silent("mkdir")
        mount = client.open(quiet)
        with Child(os.mkdir, mount / "new") as first:
            wait_until_asked(client)
            client.answer = lambda asked, arguments, request: (
                "EEXIST" if asked == "mkdir" else quiet(asked, arguments, request)
            )
            with Child(os.mkdir, mount / "g") as second:
                first.send(signal.SIGINT)
                client.pump(lambda: False, first.fileno())
                client.pump(lambda: False, second.fileno())
                with pytest.raises(FileExistsError):
                    second.result()
        client.leave()


def test_what_was_not_sent_yet_is_interrupted_at_once(stage: Any) -> None:
    """One request at a time may be with the client: the second waits in the server, and never reaches it."""
    server = stage.server(settings={"max_in_flight": 1, "request_deadline": "20s"})
    with HostileClient(server, tenant="acme") as client:
        mount = client.open(Silent("open"))
        with Child(open_only, mount) as first:
            wait_until_asked(client)
            asked = len(client.requests)
            with Child(os.statvfs, mount) as second:
                until(second.waits_in_fuse, "it waits")
                start = time.monotonic()
                second.send(signal.SIGINT)
                client.pump(lambda: False, second.fileno())
                assert time.monotonic() - start < allowed(PROMISED + SLACK)
                assert second.reap() == -signal.SIGINT
            assert len(client.requests) == asked
            first.send(signal.SIGINT)
            client.pump(lambda: False, first.fileno())
    server.stop()
