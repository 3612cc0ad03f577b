"""Whether the notifier has something to write still, as a worker asks before it ends."""

import os

from harness.waiting import until

from fuse_gated.edge.fuse_kernel import Notifier


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
