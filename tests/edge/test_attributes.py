import os
from pathlib import Path

import pytest

from fuse_gated.edge.attributes import attributes, decode_device, encode_device


def test_every_field_is_the_files_own(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    path.chmod(0o640)
    os.utime(path, ns=(-5, 1_700_000_000_123_456_789))
    status = path.stat()
    found = attributes(status)
    assert (found.device, found.inode, found.mode, found.nlink) == (status.st_dev, status.st_ino, 0o100640, 1)
    assert (found.uid, found.gid, found.rdev, found.size) == (os.getuid(), os.getgid(), 0, 5000)
    assert (found.blocks, found.block_size) == (status.st_blocks, status.st_blksize)
    assert (found.atime, found.mtime, found.ctime) == (-5, 1_700_000_000_123_456_789, status.st_ctime_ns)


def test_a_devices_number_is_encoded_as_the_kernel_does() -> None:
    assert attributes(os.stat("/dev/null")).rdev == 0x103
    assert encode_device(os.makedev(8, 0x12345)) == 0x12300845


@pytest.mark.parametrize("device", [(0, 0), (1, 3), (8, 17), (259, 1_048_575), (4095, 256)])
def test_devices_survive_the_wire(device: tuple[int, int]) -> None:
    number = os.makedev(*device)
    assert 0 <= encode_device(number) < 2**32
    assert decode_device(encode_device(number)) == number
