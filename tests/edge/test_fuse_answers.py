"""edge/fuse_answers.py: what the kernel is answered and told, structure by structure (linux/fuse.h)."""

import errno
import struct

import pytest

from fuse_gated import operations as op
from fuse_gated.edge import fuse_answers
from fuse_gated.edge.fuse_answers import encode
from fuse_gated.operations import Attributes

FILE = Attributes(
    device=7, inode=2**64 - 1, mode=0o100644, nlink=2, uid=1000, gid=2**32 - 2, rdev=0x0801, size=2**40, blocks=2**31,
    block_size=4096, atime=5_000_000_006, mtime=-1, ctime=-(2**63) * 10**9,
)  # fmt: skip
ATTR = struct.pack(
    "=QQQqqqIIIIIIIIII", 2**64 - 1, 2**40, 2**31, 5, -1, -(2**63), 6, 999_999_999, 0, 0o100644, 2, 1000, 2**32 - 2, 0x0801,
    4096, 0,
)  # fmt: skip
ENTRY = struct.pack("=QQQQII", 9, 0, 1, 0, 500_000_000, 1_000_000) + ATTR
DIRENT = struct.pack("=QQII", 31, 3, 3, 8) + b"abc" + bytes(5)

ANSWERS = [
    (op.Done(), b""),
    (op.Entry(9, FILE, 1.5, 0.001), ENTRY),
    (op.Entry(0, None), struct.pack("=QQQQII", 0, 0, 0, 0, 0, 0) + bytes(88)),
    (op.Attr(FILE, 2.25), struct.pack("=QII", 2, 250_000_000, 0) + ATTR),
    (op.Opened(5), struct.pack("=QIi", 5, 0, 0)),
    (op.Opened(5, keep_cache=True), struct.pack("=QIi", 5, 2, 0)),
    (op.Opened(5, direct_io=True), struct.pack("=QIi", 5, 1, 0)),
    (op.Opened(5, keep_cache=True, cache_listing=True), struct.pack("=QIi", 5, 10, 0)),
    (op.Opened(5, keep_cache=True, no_flush=True), struct.pack("=QIi", 5, 34, 0)),
    (op.Created(op.Entry(9, FILE, 1.5, 0.001), op.Opened(5)), ENTRY + struct.pack("=QIi", 5, 0, 0)),
    (op.Data(b"hello"), b"hello"),
    (op.Data(memoryview(b"hello")), b"hello"),
    (op.Data(b""), b""),
    (op.Count(2**32 - 1), struct.pack("=II", 2**32 - 1, 0)),
    (op.XattrSize(64), struct.pack("=II", 64, 0)),
    (op.Position(2**63 - 1), struct.pack("=Q", 2**63 - 1)),
    (op.Lock(0, 2**63 - 1, 1, 0), struct.pack("=QQII", 0, 2**63 - 1, 1, 0)),
    (op.Listing(()), b""),
    (op.Listing((op.DirectoryEntry(b"abc", 31, 3, 0o100000),)), DIRENT),
    (
        op.Listing((op.DirectoryEntry(b"abc", 31, 3, 0o100000), op.DirectoryEntry(b"12345678", 32, 4, 0o040000))),
        DIRENT + struct.pack("=QQII", 32, 4, 8, 4) + b"12345678",
    ),
    (
        op.Listing(
            (
                op.DirectoryEntry(b"abc", 31, 3, 0o100000),
                op.DirectoryEntry(b"abc", 31, 3, 0o100000, op.Entry(9, FILE, 1.5, 0.001)),
            ),
            plus=True,
        ),
        bytes(128) + DIRENT + ENTRY + DIRENT,
    ),
    (
        op.Filesystem(1000, 500, 400, 100, 50, 4096, 255, 512),
        struct.pack("=QQQQQIIII24x", 1000, 500, 400, 100, 50, 4096, 255, 512, 0),
    ),
]


@pytest.mark.parametrize(("answer", "body"), ANSWERS)
def test_an_answer_is_a_header_and_its_structure(answer, body):
    whole = b"".join(encode(2**63 + 6, answer))
    assert whole == struct.pack("=IiQ", 16 + len(body), 0, 2**63 + 6) + body


def test_every_kind_of_answer_is_tried_here():
    tried = {type(answer) for answer, _ in ANSWERS} | {op.Failed}
    assert tried == set(op.Answer.__subclasses__())


@pytest.mark.parametrize("name", ["ENOENT", "EACCES", "ENOSYS", "ESTALE"])
def test_a_failure_is_a_negative_errno_and_nothing_more(name):
    number = getattr(errno, name)
    assert encode(6, op.Failed(number)) == (struct.pack("=IiQ", 16, -number, 6),)


def test_file_data_is_not_copied():
    data = memoryview(bytes(2**20))
    parts = encode(6, op.Data(data))
    assert parts[1] is data


@pytest.mark.parametrize(("pages", "offset"), [(True, 0), (False, -1)])
def test_a_node_is_forgotten_with_or_without_its_pages(pages, offset):
    expected = struct.pack("=IiQ", 40, 2, 0) + struct.pack("=Qqq", 9, offset, 0)
    assert fuse_answers.invalidate_inode(9, pages=pages) == expected


def test_a_name_is_forgotten():
    expected = struct.pack("=IiQ", 16 + 16 + 5, 3, 0) + struct.pack("=QII", 9, 4, 0) + b"name\0"
    assert fuse_answers.invalidate_entry(9, b"name") == expected
