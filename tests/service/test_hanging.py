"""A filesystem that answers nothing, mounted inside the export on the client: the rest of the session goes on."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from harness import Mounted, Stage, need
from harness.hostile import Child
from harness.mounting import hanging
from harness.waiting import until

from fuse_gated.edge.pool import THREADS

HUNG: Final = [f"hung-{number:02}" for number in range(2 * THREADS + 2)]
"""More than the client has threads. One mount for each, as the kernel looks a name up once for all who wait."""


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    need("root", "fuse")
    with Stage("kernel") as stage:
        mounted = stage.mount(settings={"request_deadline": "6s"})
        (mounted.export / "d").mkdir()
        with contextlib.ExitStack() as mounts:
            for name in HUNG:
                (mounted.export / "d" / name).mkdir()
                mounts.enter_context(hanging(mounted.export / "d" / name))
            yield mounted


def works(mount: Path) -> list[str]:
    """Quick work and slow work beside what hangs. In its own directory nothing can be made meanwhile: the server's kernel
    keeps a directory's lock while a name is looked up in it."""
    file = mount / "file"
    with open(file, "wb") as writing:
        writing.write(b"x" * 2**20)
        os.fsync(writing.fileno())
    assert file.read_bytes() == b"x" * 2**20
    os.statvfs(mount)
    file.rename(mount / "moved")
    (mount / "moved").unlink()
    return sorted(os.listdir(mount / "d"))


def test_the_session_goes_on(mounted: Mounted) -> None:
    waiting = [Child(os.stat, mounted.path / "d" / name) for name in HUNG]
    try:
        for program in waiting:
            until(program.waits_in_fuse, "it waits for what hangs")
        with Child(works, mounted.path) as program:
            assert program.result() == HUNG
        assert not any(program.wait(0) for program in waiting), "what lies beside waits no longer than what hangs"
        # Each ends by the request's deadline.
        for program in waiting:
            with pytest.raises(TimeoutError):
                program.result()
    finally:
        for program in waiting:
            program.__exit__()
    with Child(works, mounted.path) as program:
        assert program.result() == HUNG
    # The threads that hang there do not keep the client.
    mounted.client.stop()
