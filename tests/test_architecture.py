"""What depends on the machine's architecture: it is the same on all that are served, or it never leaves the machine.

The tables are the kernel's (asm-generic/fcntl.h, arch/*/include/uapi/asm/fcntl.h, asm-generic/errno*.h). Each machine that runs
this compares its own with what its C library says; `make arm64` runs it on that architecture.
"""

import ast
import ctypes
import errno
import fcntl
import itertools
import os
import struct
from pathlib import Path

import pytest

from fuse_gated.edge import contents, fuse_callbacks, locks, seccomp, syscalls
from fuse_gated.errors import errno_name
from fuse_gated.gate import gate
from fuse_gated.turnstile import files
from fuse_gated.wire import messages

TOP = Path(__file__).parents[1]

# The same on both: what the gate, the turnstile and the driver look at.
COMMON = {
    "O_WRONLY": 0o1, "O_RDWR": 0o2, "O_EXCL": 0o200, "O_NOCTTY": 0o400, "O_TRUNC": 0o1000, "O_APPEND": 0o2000,
    "O_NONBLOCK": 0o4000, "O_DSYNC": 0o10000, "O_NOATIME": 0o1000000, "O_CLOEXEC": 0o2000000, "O_SYNC": 0o4010000,
    "O_PATH": 0o10000000,
}  # fmt: skip
FLAGS = {
    "x86_64": COMMON | {"O_DIRECT": 0o40000, "O_LARGEFILE": 0o100000, "O_DIRECTORY": 0o200000, "O_NOFOLLOW": 0o400000},
    "aarch64": COMMON | {"O_DIRECTORY": 0o40000, "O_NOFOLLOW": 0o100000, "O_DIRECT": 0o200000, "O_LARGEFILE": 0o400000},
}
ACCESS = {0: os.O_RDONLY, COMMON["O_WRONLY"]: os.O_WRONLY, COMMON["O_RDWR"]: os.O_RDWR}
TOLD = ("O_TRUNC", "O_EXCL", "O_SYNC", "O_DSYNC")
"""What the client is told of, by the wire's own flags."""


def here() -> str:
    machine = os.uname().machine
    if machine not in FLAGS:
        pytest.skip(f"no table of {machine}")
    return machine


def test_the_tables_say_what_this_machine_says() -> None:
    table = FLAGS[here()]
    # The C library has 0 for O_LARGEFILE on 64 bits; the kernel's OPEN carries it all the same.
    assert {name: getattr(os, name) for name in table if name != "O_LARGEFILE"} == {
        name: value for name, value in table.items() if name != "O_LARGEFILE"
    }


def test_what_is_looked_at_has_one_value_everywhere() -> None:
    read = {
        "O_WRONLY": {gate.O_WRONLY, files._WRONLY},
        "O_RDWR": {files._RDWR},
        "O_TRUNC": {gate.O_TRUNC, files._TRUNC},
        "O_EXCL": {files._EXCL},
        "O_DSYNC": {files._DSYNC},
        "O_SYNC": {files._SYNC | files._DSYNC},
    }
    for table in FLAGS.values():
        for name, values in read.items():
            assert values == {table[name]}
        # FMODE_EXEC is no flag of anybody's.
        assert all(value & (gate.FMODE_EXEC | files._EXEC) == 0 for value in table.values())
    assert {gate.FMODE_EXEC, files._EXEC} == {0x20}
    assert {gate.O_ACCMODE, files._ACCMODE} == {0o3}


@pytest.mark.parametrize("server", FLAGS)
@pytest.mark.parametrize("access", ACCESS)
def test_open_flags_travel_by_the_wires_own_numbers(server: str, access: int) -> None:
    """What a program gives to open(2) on the server is opened likewise on a client of another architecture: nothing of what
    differs arrives as something else there."""
    table = FLAGS[server]
    others = [value for name, value in table.items() if name not in {*TOLD, "O_WRONLY", "O_RDWR"}]
    for count in range(len(TOLD) + 1):
        for names in itertools.combinations(TOLD, count):
            asked = access
            for name in names:
                asked |= table[name]
            plain = files._wire_flags(asked)
            everything = asked
            for value in others:
                assert files._wire_flags(asked | value) == plain
                everything |= value
            assert files._wire_flags(everything) == plain
            opened = contents._open_flags(plain) & ~(os.O_CLOEXEC | os.O_NOCTTY)
            assert opened & os.O_ACCMODE == ACCESS[access]
            allowed = {"O_TRUNC": os.O_TRUNC, "O_SYNC": os.O_SYNC, "O_DSYNC": os.O_DSYNC}
            expected = 0
            for name in names:
                expected |= allowed.get(name, 0)
            assert opened & ~os.O_ACCMODE == expected


def test_the_wires_flags_are_powers_of_two_and_never_change() -> None:
    told = {name: value for name, value in vars(messages).items() if name.startswith("OPEN_")}
    assert told == {
        "OPEN_READ": 1, "OPEN_WRITE": 2, "OPEN_TRUNCATE": 4, "OPEN_EXCLUSIVE": 8, "OPEN_SYNC": 16, "OPEN_DSYNC": 32,
    }  # fmt: skip


def test_numbers_of_errors_stay_here() -> None:
    """Those of mips, sparc, alpha and parisc differ; names do not."""
    aliases = {"EWOULDBLOCK": "EAGAIN", "EDEADLOCK": "EDEADLK", "ENOTSUP": "EOPNOTSUPP"}
    for name, number in vars(errno).items():
        if name.startswith("E") and isinstance(number, int):
            assert errno_name(number) == aliases.get(name, name)


def test_structures_of_64_bit_machines() -> None:
    """struct flock, struct open_how, struct timespec, as all of them lay them out."""
    flock = fuse_callbacks._Flock
    offsets = [getattr(flock, name).offset for name in ("l_type", "l_whence", "l_start", "l_len", "l_pid")]
    assert (offsets, ctypes.sizeof(flock)) == ([0, 2, 8, 16, 24], 32)
    assert locks._FLOCK.size == 32
    assert locks._FLOCK.unpack(bytes(flock(1, 2, 3, 4, 5))) == (1, 2, 3, 4, 5)
    assert ctypes.sizeof(syscalls._OpenHow) == syscalls._HOW_SIZE.value == 24
    assert ctypes.sizeof(syscalls._Timespec) == 16
    assert (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK) == (locks.READ, locks.WRITE, locks.NONE)


def test_openat2_has_one_number() -> None:
    library = seccomp.library()
    names = ("X86_64", "AARCH64", "ARM", "PPC64LE", "S390X", "RISCV64", "X86")
    numbers = {library.resolve_syscall(getattr(library.Arch, name), "openat2") for name in names if hasattr(library.Arch, name)}
    assert numbers == {syscalls._SYS_OPENAT2.value}


def test_no_packed_bytes_are_in_this_machines_own_layout_but_the_kernels() -> None:
    """`=` and `!` have sizes of their own; without either, sizes and padding are this architecture's."""
    native = []
    for file in sorted((TOP / "fuse_gated").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_struct(node.func):
                given = node.args[0]
                text = given.values[0] if isinstance(given, ast.JoinedStr) else given
                assert isinstance(text, ast.Constant), f"{file.name}:{node.lineno}: a format that cannot be seen"
                if text.value[0] not in "=!<>":
                    native.append(f"{file.name}: {text.value}")
    # The ids of SO_PEERCRED, a descriptor of SCM_RIGHTS, struct flock: the kernel's, which never leave the machine.
    assert [entry for entry in native if entry.partition(": ")[2] not in ("3i", "iII", "i", "hhqqi0q")] == []
    assert "locks.py: hhqqi0q" in native


def _is_struct(function: ast.Attribute) -> bool:
    return isinstance(function.value, ast.Name) and function.value.id == "struct" and function.attr != "error"


def test_the_tests_own_tables_of_system_calls() -> None:
    library = seccomp.library()
    tables = 0
    for file in (TOP / "tests/system/probe.py", TOP / "tests/harness/taken_over.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Dict) and [key.value for key in node.keys if isinstance(key, ast.Constant)] == [*FLAGS]:
                for machine, numbers in ast.literal_eval(node).items():
                    token = getattr(library.Arch, machine.upper())
                    assert numbers == {name: library.resolve_syscall(token, name) for name in numbers}
                    tables += 1
    assert tables == 4


def test_bytes_of_a_pointer() -> None:
    """32 bits are not served: sizes above 4 GiB, struct flock and struct statfs would need others."""
    assert struct.calcsize("P") == ctypes.sizeof(ctypes.c_long) == 8
