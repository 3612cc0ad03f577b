"""What the daemon can see of a worker's end before the kernel tells it."""

import ctypes
import os
import signal
import subprocess
import sys
import threading

import pytest

from fuse_gated.guest import main_thread_has_ended

SYS_EXIT = {"x86_64": 60, "aarch64": 93}[os.uname().machine]


def test_a_process_that_lives() -> None:
    assert not main_thread_has_ended(os.getpid())


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pid = gone.pid
    assert main_thread_has_ended(pid)


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
        while not main_thread_has_ended(pid):
            os.sched_yield()
        if other_thread:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)
