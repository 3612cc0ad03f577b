"""Whether the notifier has something to write still, as a worker asks before it ends; and what it holds on to meanwhile."""

import os

import pytest
from harness.waiting import until

from fuse_gated.edge import syscalls
from fuse_gated.edge.notifying import Notifier


def test_it_is_idle_when_everything_is_written_and_not_before() -> None:
    reader, writer = os.pipe()
    notifier = Notifier()
    try:
        assert notifier.idle
        # More than a pipe takes: the thread waits in the kernel, as it does for a lock of the mount's.
        notifier.put(writer, bytes(2**17))
        notifier.put(writer, b"next")
        assert not notifier.idle
        missing = 2**17 + 4
        while missing:
            missing -= len(os.read(reader, missing))
        until(lambda: notifier.idle, "all is written")
    finally:
        notifier.stop()
        os.close(reader)
        os.close(writer)


def test_a_thread_that_waits_in_the_kernel_keeps_nothing_open_but_the_mount() -> None:
    """Of a process that was killed it is what is left, for as long as it waits."""
    reader, writer = os.pipe()
    notifier = Notifier()
    try:
        notifier.put(writer, bytes(2**17))
        # It writes: part of it is there.
        missing = 2**17 - len(os.read(reader, 1))
        task = f"/proc/self/task/{notifier._thread.native_id}/fd"
        own = {os.readlink(f"{task}/{fd}") for fd in os.listdir(task) if int(fd) > 2}
        assert {name for name in own if not name.startswith("socket:")} == {os.readlink(f"/proc/self/fd/{writer}")}
        assert len(own) == 2
        assert os.readlink(f"/proc/self/fd/{notifier.descriptors().pop()}") not in own
        while missing:
            missing -= len(os.read(reader, missing))
    finally:
        notifier.stop()
        os.close(reader)
        os.close(writer)


def test_where_it_may_have_no_descriptors_of_its_own_it_writes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "unshare_files", lambda: False)
    reader, writer = os.pipe()
    notifier = Notifier()
    try:
        notifier.put(writer, b"notice")
        assert os.read(reader, 100) == b"notice"
    finally:
        notifier.stop()
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("hurried", [True, False])
def test_what_is_to_come_last_comes_once_and_may_be_hurried(hurried: bool) -> None:
    reader, writer = os.pipe()
    behind_reader, behind_writer = os.pipe()
    os.set_blocking(behind_reader, False)
    notifier = Notifier()
    try:
        notifier.put(writer, bytes(2**17))
        hurry = notifier.put_last(behind_writer, b"answer")
        if hurried:
            hurry()
            assert os.read(behind_reader, 100) == b"answer"
        with pytest.raises(BlockingIOError):
            os.read(behind_reader, 100)
        missing = 2**17
        while missing:
            missing -= len(os.read(reader, missing))
        until(lambda: notifier.idle, "all is written")
        hurry()
        if not hurried:
            assert os.read(behind_reader, 100) == b"answer"
        with pytest.raises(BlockingIOError):
            os.read(behind_reader, 100)
    finally:
        notifier.stop()
        for fd in (reader, writer, behind_reader, behind_writer):
            os.close(fd)
