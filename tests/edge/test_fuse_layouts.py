"""The structures that edge/fuse_*.py read and write, against this machine's linux/fuse.h, as its C compiler lays them out."""

import re
import struct
import subprocess
from pathlib import Path

import pytest
from harness import need, need_that

from fuse_gated.edge import fuse_answers, fuse_kernel, fuse_requests
from fuse_gated.edge.fuse_requests import OPCODES

HEADER = Path("/usr/include/linux/fuse.h")

# Our structure, the kernel's, and the kernel's fields in our order ('' for padding and for what is not read); `whole` says
# that ours covers all of it. A field of an inner structure has its dots.
LAYOUTS = [
    (fuse_requests.IN_HEADER, "fuse_in_header", "len opcode unique nodeid uid gid pid", False),
    (fuse_requests._U64, "fuse_forget_in", "nlookup", True),
    (fuse_requests._U32_2, "fuse_batch_forget_in", "count dummy", True),
    (struct.Struct("=QQ"), "fuse_forget_one", "nodeid nlookup", True),
    (fuse_requests._GETATTR, "fuse_getattr_in", "getattr_flags dummy fh", True),
    (
        fuse_requests._SETATTR,
        "fuse_setattr_in",
        "valid padding fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode unused4 uid gid unused5",
        True,
    ),
    (fuse_requests._MKNOD, "fuse_mknod_in", "mode rdev umask padding", True),
    (fuse_requests._U32_2, "fuse_mkdir_in", "mode umask", True),
    (fuse_requests._U64, "fuse_rename_in", "newdir", True),
    (fuse_requests._RENAME2, "fuse_rename2_in", "newdir flags padding", True),
    (fuse_requests._U64, "fuse_link_in", "oldnodeid", True),
    (fuse_requests._U32_2, "fuse_open_in", "flags open_flags", True),
    (fuse_requests._CREATE, "fuse_create_in", "flags mode umask open_flags", True),
    (fuse_requests._IO, "fuse_read_in", "fh offset size read_flags", False),
    (fuse_requests._IO, "fuse_write_in", "fh offset size write_flags", False),
    (fuse_requests._FH_OWNER, "fuse_flush_in", "fh unused padding lock_owner", True),
    (fuse_requests._FH_OWNER, "fuse_release_in", "fh flags release_flags lock_owner", True),
    (fuse_requests._FSYNC, "fuse_fsync_in", "fh fsync_flags padding", True),
    (fuse_requests._U32_2, "fuse_getxattr_in", "size padding", True),
    (fuse_requests._U32_2, "fuse_access_in", "mask padding", True),
    (fuse_requests._U64, "fuse_interrupt_in", "unique", True),
    (fuse_requests._LK, "fuse_lk_in", "fh owner lk.start lk.end lk.type lk.pid lk_flags", False),
    (fuse_requests._FALLOCATE, "fuse_fallocate_in", "fh offset length mode", False),
    (fuse_requests._LSEEK, "fuse_lseek_in", "fh offset whence", False),
    (fuse_requests._COPY, "fuse_copy_file_range_in", "fh_in off_in nodeid_out fh_out off_out len flags", True),
    (fuse_kernel._INIT_IN, "fuse_init_in", "major minor max_readahead flags", False),
    (
        fuse_kernel._INIT_OUT,
        "fuse_init_out",
        "major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages map_alignment flags2",
        True,
    ),
    (fuse_answers.OUT_HEADER, "fuse_out_header", "len error unique", True),
    (
        fuse_answers._ATTR,
        "fuse_attr",
        "ino size blocks atime mtime ctime atimensec mtimensec ctimensec mode nlink uid gid rdev blksize",
        True,
    ),
    (fuse_answers._ENTRY, "fuse_entry_out", "nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec", False),
    (fuse_answers._ATTR_OUT, "fuse_attr_out", "attr_valid attr_valid_nsec dummy", False),
    (fuse_answers._OPEN, "fuse_open_out", "fh open_flags", True),
    (fuse_answers._U32_2, "fuse_write_out", "size padding", True),
    (fuse_answers._U32_2, "fuse_getxattr_out", "size padding", True),
    (fuse_answers._U64, "fuse_lseek_out", "offset", True),
    (fuse_answers._LOCK, "fuse_lk_out", "lk.start lk.end lk.type lk.pid", True),
    (
        fuse_answers._STATFS,
        "fuse_statfs_out",
        "st.blocks st.bfree st.bavail st.files st.ffree st.bsize st.namelen st.frsize st.padding",
        True,
    ),
    (fuse_answers._DIRENT, "fuse_dirent", "ino off namelen type", True),
    (fuse_answers._INVAL_INODE, "fuse_notify_inval_inode_out", "ino off len", True),
    (fuse_answers._INVAL_ENTRY, "fuse_notify_inval_entry_out", "parent namelen", True),
]
SIZES = {
    "fuse_attr_out": fuse_answers._ATTR_OUT.size + fuse_answers._ATTR.size,
    "fuse_entry_out": fuse_answers._ENTRY.size + fuse_answers._ATTR.size,
    "fuse_direntplus": 128 + fuse_answers._DIRENT.size,
    "fuse_write_in": fuse_requests._IO_SIZE,
    "fuse_in_header": fuse_requests.IN_HEADER.size,
}
CONSTANTS = {
    "FATTR_MODE": fuse_requests._FATTR_MODE,
    "FATTR_UID": fuse_requests._FATTR_UID,
    "FATTR_GID": fuse_requests._FATTR_GID,
    "FATTR_SIZE": fuse_requests._FATTR_SIZE,
    "FATTR_ATIME": fuse_requests._FATTR_ATIME,
    "FATTR_MTIME": fuse_requests._FATTR_MTIME,
    "FATTR_FH": fuse_requests._FATTR_FH,
    "FATTR_ATIME_NOW": fuse_requests._FATTR_ATIME_NOW,
    "FATTR_MTIME_NOW": fuse_requests._FATTR_MTIME_NOW,
    "FATTR_KILL_SUIDGID": fuse_requests._FATTR_KILL_SUIDGID,
    "FUSE_GETATTR_FH": 1,
    "FUSE_WRITE_CACHE": 1,
    "FUSE_WRITE_KILL_SUIDGID": 4,
    "FUSE_OPEN_KILL_SUIDGID": 1,
    "FUSE_RELEASE_FLOCK_UNLOCK": 2,
    "FUSE_FSYNC_FDATASYNC": 1,
    "FUSE_LK_FLOCK": 1,
    "FOPEN_DIRECT_IO": 1,
    "FOPEN_KEEP_CACHE": 2,
    "FOPEN_CACHE_DIR": 8,
    "FOPEN_NOFLUSH": 32,
    "FUSE_NOTIFY_INVAL_INODE": fuse_answers._NOTIFY_INVAL_INODE,
    "FUSE_NOTIFY_INVAL_ENTRY": fuse_answers._NOTIFY_INVAL_ENTRY,
    "FUSE_INIT": fuse_requests.INIT,
    "FUSE_NOTIFY_REPLY": fuse_requests.NOTIFY_REPLY,
    "FUSE_ROOT_ID": 1,
    "FUSE_KERNEL_VERSION": fuse_kernel.MAJOR,
}


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    """What the compiler says: expression -> number."""
    need("cc")
    need_that(HEADER.exists(), f"there is no {HEADER} (linux-libc-dev)")
    expressions = [f"sizeof(struct {name})" for name in {name for _, name, _, _ in LAYOUTS} | set(SIZES)]
    for _, name, fields, _ in LAYOUTS:
        expressions += [f"offsetof(struct {name}, {field})" for field in fields.split()]
    expressions += [*CONSTANTS, *(f"FUSE_{name}" for name in fuse_kernel.FLAGS if f"FUSE_{name}" in HEADER.read_text())]
    directory = tmp_path_factory.mktemp("layouts")
    lines = "\n".join(f'    printf("%llu\\n", (unsigned long long)({expression}));' for expression in expressions)
    source = directory / "layouts.c"
    source.write_text(
        f"#include <linux/fuse.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{\n{lines}\n    return 0;\n}}\n"
    )
    subprocess.run(["cc", "-o", directory / "layouts", source], check=True, timeout=60)
    output = subprocess.run([directory / "layouts"], check=True, capture_output=True, text=True, timeout=60).stdout
    return dict(zip(expressions, map(int, output.split()), strict=True))


def offsets(form):
    """Where each value of a struct format begins, without alignment; '24x' is padding and no value."""
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", form.removeprefix("=")):
        for _ in range(int(count or 1)):
            if code != "x":
                found.append(at)
            at += struct.calcsize(f"={code}")
    return found


@pytest.mark.parametrize(("ours", "name", "fields", "whole"), LAYOUTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_structure_is_laid_out_as_the_kernels(header, ours, name, fields, whole):
    places = dict(zip(fields.split(), offsets(ours.format), strict=False))
    assert places == {field: header[f"offsetof(struct {name}, {field})"] for field in places}
    assert len(places) == len(fields.split())
    if whole:
        assert ours.size == header[f"sizeof(struct {name})"]
    else:
        assert ours.size <= header[f"sizeof(struct {name})"]


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_a_structure_that_is_put_together_has_the_kernels_size(header, name, size):
    assert size == header[f"sizeof(struct {name})"]


def test_the_constants_are_the_kernels(header):
    assert {name: header[name] for name in CONSTANTS} == CONSTANTS


def test_the_flags_of_init_are_the_kernels(header):
    known = {name: flag for name, flag in fuse_kernel.FLAGS.items() if f"FUSE_{name}" in header}
    assert known == {name: header[f"FUSE_{name}"] for name in known}
    assert len(known) >= len(fuse_kernel.FLAGS) - 2, "all but what is newer than this header"


def test_the_opcodes_are_the_kernels():
    need_that(HEADER.exists(), f"there is no {HEADER} (linux-libc-dev)")
    listing = re.search(r"enum fuse_opcode \{(.*?)\};", HEADER.read_text(), re.DOTALL)
    assert listing is not None
    theirs = {int(number): name for name, number in re.findall(r"FUSE_(\w+)\s*=\s*(\d+)", listing[1])}
    theirs.update({4096: "CUSE_INIT"})
    ours = {number: name for number, (name, _) in OPCODES.items()} | {26: "INIT", 41: "NOTIFY_REPLY"}
    theirs = {number: name for number, name in theirs.items() if "BSWAP" not in name}
    assert {number: ours.get(number) for number in theirs} == theirs
