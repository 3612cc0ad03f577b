"""What the daemon can see of a worker's end before the kernel tells it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from fuse_gated.guest import main_thread_has_ended, open_state

SYS_EXIT = {"x86_64": 60, "aarch64": 93}[os.uname().machine]


@contextlib.contextmanager
def state_of(pid: int) -> Iterator[int]:
    state = open_state(pid)
    assert state is not None
    yield state
    os.close(state)


def test_a_process_that_lives() -> None:
    with state_of(os.getpid()) as state:
        assert not main_thread_has_ended(state)
        assert not main_thread_has_ended(state)


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as gone, state_of(gone.pid) as state:
        assert not main_thread_has_ended(state)
        gone.communicate(b"\n")
        assert main_thread_has_ended(state)
    assert open_state(gone.pid) is None


@pytest.mark.parametrize("other_thread", [False, True])
def test_a_main_thread_that_has_ended(other_thread: bool) -> None:
    """With another thread that goes on, its pidfd tells nothing."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        if other_thread:
            threading.Thread(target=signal.pause).start()
        os.write(told, b"x")
        ctypes.CDLL(None).syscall(SYS_EXIT, 0)
    try:
        assert os.read(ready, 1) == b"x"
        with state_of(pid) as state:
            while not main_thread_has_ended(state):
                os.sched_yield()
        if other_thread:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)
