import os
import struct
from pathlib import Path

import pytest
from harness.leftovers import descriptors

from fuse_gated.edge import fuse_probe
from fuse_gated.edge.fuse_probe import Offer, decode_init, probe
from fuse_gated.errors import KernelError, OperatorError

needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs root and /dev/fuse"
)


@needs_fuse
def test_the_kernel_tells_what_it_offers_and_nobody_sees_the_mount() -> None:
    children = Path("/proc/thread-self/children")
    before = children.read_text()
    opened = descriptors()
    offer = probe()
    assert (offer.major, offer.minor) >= (7, 31)
    assert offer.flags & 1  # FUSE_ASYNC_READ, which every such kernel has
    release = tuple(int(number) for number in os.uname().release.split(".")[:2])
    assert offer.resends == (release >= (6, 9))
    assert " probe " not in Path("/proc/self/mountinfo").read_text()
    assert descriptors() == opened
    assert children.read_text() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a moment")
def test_who_may_not_mount_is_told_why() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(KernelError, match="a mount namespace of its own was refused: Operation not permitted") as raised:
            probe()
    finally:
        os.seteuid(0)
    assert raised.value.hint == "only root may mount by itself"


@needs_fuse
def test_a_namespace_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_probe, "_MS_REC_PRIVATE", 3 << 18)  # MS_PRIVATE and MS_SLAVE at once make no sense
    with pytest.raises(KernelError, match="a mount namespace of its own was refused: Invalid argument"):
        probe()


@needs_fuse
def test_a_mount_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_directory: int, *, source: str) -> int:
        raise OperatorError(f"no {source}", "modprobe fuse")

    monkeypatch.setattr(fuse_probe, "mount_fuse", refused)
    with pytest.raises(KernelError, match="no probe") as raised:
        probe()
    assert raised.value.hint == "modprobe fuse"


@needs_fuse
def test_an_answer_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_probe, "_asked", lambda: os._exit(1))
    with pytest.raises(KernelError, match="could not be asked"):
        probe()


def test_requests_of_older_kernels() -> None:
    header = bytes(40)
    assert decode_init(header + struct.pack("=IIII", 7, 31, 65536, 0x5)) == Offer(7, 31, 0x5)
    extended = header + struct.pack("=IIIII", 7, 40, 65536, 1 << 30, 1 << 7) + bytes(44)
    assert decode_init(extended) == Offer(7, 40, 1 << 39 | 1 << 30)
    assert decode_init(extended).resends
    assert not Offer(7, 45, 1 << 30).resends
