"""edge/fuse_requests.py: what the kernel sends, structure by structure (linux/fuse.h)."""

import struct

import pytest

from fuse_gated import operations as op
from fuse_gated.edge import fuse_requests
from fuse_gated.edge.fuse_requests import OPCODES, decode

NODE = 7


def packed(form, *values, tail=b""):
    return struct.pack("=" + form, *values) + tail


def setattr_in(valid, handle=0, size=0, atime=0, mtime=0, atime_ns=0, mtime_ns=0, mode=0, uid=0, gid=0):
    """struct fuse_setattr_in: valid, padding, fh, size, lock_owner, times in seconds, in nanoseconds, mode, unused4, uid, gid,
    unused5."""
    return packed("IIQQQqqqIIIIIIII", valid, 0, handle, size, 0, atime, mtime, 0, atime_ns, mtime_ns, 0, mode, 0, uid, gid, 0)


def io_in(handle, offset, size, flags=0, tail=b"", descriptor=0o2):
    """struct fuse_read_in and fuse_write_in: fh, offset, size, flags, lock_owner, the file's flags, padding."""
    return packed("QQIIQII", handle, offset, size, flags, 2**64 - 1, descriptor, 0, tail=tail)


def lk_in(kind, flags):
    """struct fuse_lk_in: fh, owner, {start, end, type, pid}, lk_flags, padding."""
    return packed("QQQQIIII", 5, 9, 0, 2**63 - 1, kind, 4321, flags, 0)


SERVED = [
    ("LOOKUP", b"name\0", op.Lookup(NODE, b"name")),
    ("LOOKUP", b"\xff\xfe\0", op.Lookup(NODE, b"\xff\xfe")),
    ("FORGET", packed("Q", 3), op.Forget(((NODE, 3),))),
    ("BATCH_FORGET", packed("IIQQQQ", 2, 0, 11, 1, 12, 2**40), op.Forget(((11, 1), (12, 2**40)))),
    ("BATCH_FORGET", packed("II", 0, 0), op.Forget(())),
    ("GETATTR", packed("IIQ", 0, 0, 99), op.Getattr(NODE)),
    ("GETATTR", packed("IIQ", 1, 0, 5), op.Getattr(NODE, 5)),
    ("SETATTR", setattr_in(0, 99, 99, 99, 99, 99, 99, 0o777, 99, 99), op.Setattr(NODE)),
    ("SETATTR", setattr_in(1, mode=0o100640), op.Setattr(NODE, mode=0o640)),
    ("SETATTR", setattr_in(2 | 4, uid=1000, gid=2**32 - 2), op.Setattr(NODE, uid=1000, gid=2**32 - 2)),
    ("SETATTR", setattr_in(8 | 64, handle=5, size=2**40), op.Setattr(NODE, 5, size=2**40)),
    ("SETATTR", setattr_in(8 | 2048, size=0), op.Setattr(NODE, size=0, kill_suidgid=True)),
    ("SETATTR", setattr_in(16, atime=5, atime_ns=6), op.Setattr(NODE, atime=5_000_000_006)),
    ("SETATTR", setattr_in(32, mtime=-2, mtime_ns=999_999_999), op.Setattr(NODE, mtime=-1_000_000_001)),
    ("SETATTR", setattr_in(16 | 128 | 32 | 256, atime=5, mtime=6), op.Setattr(NODE, atime=op.NOW, mtime=op.NOW)),
    ("SETATTR", setattr_in(16, atime=-1, atime_ns=999_999_999), op.Setattr(NODE, atime=-2)),
    ("READLINK", b"", op.Readlink(NODE)),
    ("SYMLINK", b"name\0../target\0", op.Symlink(NODE, b"name", b"../target")),
    ("MKNOD", packed("IIII", 0o10644, 0x0801, 0o22, 0, tail=b"name\0"), op.Mknod(NODE, b"name", 0o10644, 0x0801, 0o22)),
    ("MKDIR", packed("II", 0o755, 0o22, tail=b"name\0"), op.Mkdir(NODE, b"name", 0o755, 0o22)),
    ("UNLINK", b"name\0", op.Unlink(NODE, b"name")),
    ("RMDIR", b"name\0", op.Rmdir(NODE, b"name")),
    ("RENAME", packed("Q", 8, tail=b"old\0new\0"), op.Rename(NODE, b"old", 8, b"new", 0)),
    ("RENAME2", packed("QII", 8, 2, 0, tail=b"old\0new\0"), op.Rename(NODE, b"old", 8, b"new", 2)),
    ("LINK", packed("Q", 8, tail=b"new\0"), op.Link(8, NODE, b"new")),
    ("OPEN", packed("II", 0o2, 0), op.Open(NODE, 0o2)),
    ("OPEN", packed("II", 0o1001, 1), op.Open(NODE, 0o1001, True)),
    ("CREATE", packed("IIII", 0o102, 0o644, 0o22, 0, tail=b"name\0"), op.Create(NODE, b"name", 0o102, 0o644, 0o22)),
    ("READ", io_in(5, 2**40, 4096), op.Read(NODE, 5, 2**40, 4096)),
    ("WRITE", io_in(5, 10, 4, tail=b"datamore"), op.Write(NODE, 5, 10, b"data")),
    ("WRITE", io_in(5, 10, 4, 1 | 2, tail=b"data"), op.Write(NODE, 5, 10, b"data", True)),
    ("WRITE", io_in(5, 10, 4, tail=b"data", descriptor=0o2002), op.Write(NODE, 5, 10, b"data", append=True)),
    ("WRITE", io_in(5, 10, 0, 4), op.Write(NODE, 5, 10, b"", False, True)),
    ("STATFS", b"", op.Statfs(NODE)),
    ("RELEASE", packed("QIIQ", 5, 0, 1, 9), op.Release(NODE, 5)),
    ("RELEASE", packed("QIIQ", 5, 0, 2, 9), op.Release(NODE, 5, 9)),
    ("FSYNC", packed("QII", 5, 0, 0), op.Fsync(NODE, 5, False)),
    ("FSYNC", packed("QII", 5, 1, 0), op.Fsync(NODE, 5, True)),
    ("SETXATTR", packed("II", 5, 2, tail=b"user.a\0value"), op.Setxattr(NODE, b"user.a", b"value", 2)),
    ("SETXATTR", packed("II", 3, 0, tail=b"user.a\0a\0b"), op.Setxattr(NODE, b"user.a", b"a\0b", 0)),
    ("GETXATTR", packed("II", 64, 0, tail=b"user.a\0"), op.Getxattr(NODE, b"user.a", 64)),
    ("LISTXATTR", packed("II", 64, 0), op.Listxattr(NODE, 64)),
    ("REMOVEXATTR", b"user.a\0", op.Removexattr(NODE, b"user.a")),
    ("FLUSH", packed("QIIQ", 5, 0, 0, 2**63 + 9), op.Flush(NODE, 5, 2**63 + 9)),
    ("OPENDIR", packed("II", 0o200000, 0), op.Opendir(NODE, 0o200000)),
    ("READDIR", io_in(5, 3, 4096), op.Readdir(NODE, 5, 3, 4096, False)),
    ("READDIRPLUS", io_in(5, 3, 4096), op.Readdir(NODE, 5, 3, 4096, True)),
    ("RELEASEDIR", packed("QIIQ", 5, 0, 0, 0), op.Releasedir(NODE, 5)),
    ("FSYNCDIR", packed("QII", 5, 1, 0), op.Fsyncdir(NODE, 5, True)),
    ("GETLK", lk_in(1, 0), op.Getlk(NODE, 5, 9, 0, 2**63 - 1, 1, 4321)),
    ("SETLK", lk_in(2, 0), op.Setlk(NODE, 5, 9, 0, 2**63 - 1, 2, 4321, False, False)),
    ("SETLK", lk_in(1, 1), op.Setlk(NODE, 5, 9, 0, 2**63 - 1, 1, 4321, False, True)),
    ("SETLKW", lk_in(0, 0), op.Setlk(NODE, 5, 9, 0, 2**63 - 1, 0, 4321, True, False)),
    ("ACCESS", packed("II", 5, 0), op.Access(NODE, 5)),
    ("INTERRUPT", packed("Q", 40), op.Interrupt(40)),
    ("DESTROY", b"", op.Destroy()),
    ("FALLOCATE", packed("QQQII", 5, 10, 20, 3, 0), op.Fallocate(NODE, 5, 10, 20, 3)),
    ("LSEEK", packed("QQII", 5, 10, 3, 0), op.Lseek(NODE, 5, 10, 3)),
    ("LSEEK", packed("QqII", 5, -1, 4, 0), op.Lseek(NODE, 5, -1, 4)),
    ("COPY_FILE_RANGE", packed("QQQQQQQ", 5, 10, 8, 6, 20, 30, 0), op.CopyFileRange(NODE, 5, 10, 8, 6, 20, 30)),
]
REFUSED = {
    "BMAP": "ENOSYS", "IOCTL": "ENOTTY", "POLL": "ENOSYS", "SETUPMAPPING": "ENOSYS", "REMOVEMAPPING": "ENOSYS",
    "SYNCFS": "ENOSYS", "TMPFILE": "ENOSYS", "STATX": "ENOSYS", "COPY_FILE_RANGE_64": "ENOSYS", "CUSE_INIT": "ENOSYS",
}  # fmt: skip
NUMBERS = {name: number for number, (name, _) in OPCODES.items()}


@pytest.mark.parametrize(("name", "body", "request_"), SERVED)
def test_a_request_is_decoded(name, body, request_):
    assert decode(NUMBERS[name], NODE, memoryview(bytearray(body))) == request_


@pytest.mark.parametrize(("name", "errno"), REFUSED.items())
def test_what_is_not_served_is_answered_by_the_table(name, errno):
    assert decode(NUMBERS[name], NODE, memoryview(b"")) == op.Unserved(NUMBERS[name], errno)


def test_an_opcode_newer_than_the_table_is_answered_too():
    assert decode(999, NODE, memoryview(b"x" * 100)) == op.Unserved(999, "ENOSYS")


def test_every_opcode_of_the_table_is_tried_here():
    assert {name for name, _, _ in SERVED} | set(REFUSED) == set(NUMBERS)
    assert len(NUMBERS) == len(OPCODES), "no name twice"


def test_a_writes_data_is_a_view_of_the_buffer():
    buffer = bytearray(io_in(5, 0, 4, tail=b"data"))
    request = decode(NUMBERS["WRITE"], NODE, memoryview(buffer))
    assert isinstance(request, op.Write)
    buffer[-4:] = b"DATA"
    assert request.data == b"DATA"


def test_what_must_outlive_the_buffer_is_no_view():
    for name, body, expected in SERVED:
        buffer = bytearray(body)
        request = decode(NUMBERS[name], NODE, memoryview(buffer))
        if not isinstance(request, op.Write):
            buffer[:] = bytes(len(buffer))
            assert request == expected


def test_the_header_is_forty_bytes():
    assert fuse_requests.IN_HEADER.size == 40
    fields = (48, 3, 2**63 + 2, 7, 1000, 1001, 4321, 0, 0)
    assert fuse_requests.IN_HEADER.unpack(packed("IIQQIIIHH", *fields)) == fields
