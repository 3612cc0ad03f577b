"""What this kernel's FUSE offers, asked of the kernel itself.

A mount tells it in its first request, FUSE_INIT (linux/fuse.h). The mount is made by a child in a mount namespace of its own,
so that nobody sees it, and it is gone with the child whatever happens.
"""

import ctypes
import os
import struct
from typing import Final

import msgspec

from fuse_gated.edge.fuse_requests import IN_HEADER
from fuse_gated.edge.mounts import mount_fuse
from fuse_gated.errors import GateError, KernelError

_CLONE_NEWNS: Final = 0x00020000  # linux/sched.h
_MS_REC_PRIVATE: Final = 0x44000  # linux/mount.h: MS_REC | MS_PRIVATE
_MIN_READ_BUFFER: Final = 8192  # linux/fuse.h
_INIT_IN: Final = struct.Struct("=IIII")
_INIT_EXT: Final = 1 << 30
_HAS_RESEND: Final = 1 << 39


class Offer(msgspec.Struct, frozen=True):
    """The protocol's version, and the flags of fuse_init_in, both words."""

    major: int
    minor: int
    flags: int

    @property
    def resends(self) -> bool:
        """Whether requests in flight can be sent anew to a successor (FUSE_HAS_RESEND)."""
        return bool(self.flags & _HAS_RESEND)


def probe() -> Offer:
    """Raises KernelError or OperatorError where this process may not mount, or has no /dev/fuse."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # Nothing of the parent's may run twice: neither its exit handlers nor its buffers.
        try:
            os.write(writing, msgspec.msgpack.encode(_asked()))
        except GateError as error:
            os.write(writing, msgspec.msgpack.encode((error.message, error.hint)))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    try:
        answer: Offer | tuple[str, str] = _ANSWERS.decode(told)
    except msgspec.DecodeError:
        raise KernelError("the kernel's FUSE could not be asked", "") from None
    if isinstance(answer, Offer):
        return answer
    raise KernelError(*answer)


def _asked() -> Offer:
    libc = ctypes.CDLL(None, use_errno=True)
    nowhere = ctypes.c_char_p(None)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", nowhere, ctypes.c_ulong(_MS_REC_PRIVATE), nowhere) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise KernelError(f"a mount namespace of its own was refused: {reason}", "only root may mount by itself")
    device = mount_fuse(os.open("/", os.O_PATH | os.O_DIRECTORY), source="probe")
    return decode_init(os.read(device, _MIN_READ_BUFFER))


def decode_init(request: bytes) -> Offer:
    """The offer in a FUSE_INIT request. Kernels before 5.16 send no second word of flags."""
    major, minor, _, flags = _INIT_IN.unpack_from(request, IN_HEADER.size)
    if flags & _INIT_EXT:
        flags |= struct.unpack_from("=I", request, IN_HEADER.size + _INIT_IN.size)[0] << 32
    return Offer(major, minor, flags)


_ANSWERS: Final = msgspec.msgpack.Decoder(Offer | tuple[str, str])
