"""What stat(2) tells, as it travels on the wire."""

import os

from fuse_gated.operations import EARLIEST, LATEST, Attributes, carried


def attributes(status: os.stat_result) -> Attributes:
    """inode(7), with nothing rounded but times that cannot travel: the server shows the client's own inode, device and times."""
    atime, mtime, ctime = status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
    if not (EARLIEST <= atime <= LATEST and EARLIEST <= mtime <= LATEST and EARLIEST <= ctime <= LATEST):
        atime, mtime, ctime = carried(atime), carried(mtime), carried(ctime)
    return Attributes(
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        encode_device(status.st_rdev) if status.st_rdev else 0,
        status.st_size,
        status.st_blocks,
        status.st_blksize,
        atime,
        mtime,
        ctime,
    )


def encode_device(device: int) -> int:
    """A dev_t as Linux's 32 bits (new_encode_dev, linux/kdev_t.h), which do not depend on the C library."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def decode_device(device: int) -> int:
    """The dev_t of Linux's 32 bits."""
    return os.makedev((device & 0xFFF00) >> 8, (device & 0xFF) | ((device >> 12) & 0xFFF00))
