"""edge/seccomp.py: the list itself. What it does to a process is in test_process.py."""

import errno
import importlib
import operator
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType

import pytest

from fuse_gated.edge import seccomp
from fuse_gated.errors import KernelError, OperatorError

NAMES = sorted({*seccomp.ALLOWED, *(name for name, _ in seccomp.WITH_ARGUMENTS), "tgkill"})


@pytest.fixture
def fresh() -> Iterator[None]:
    seccomp.library.cache_clear()
    yield
    seccomp.library.cache_clear()


def test_every_name_is_a_system_call_of_x86_64_and_the_old_ones_alone_are_missing_on_aarch64() -> None:
    library = seccomp.library()
    missing = {
        architecture: {name for name in NAMES if library.resolve_syscall(architecture, name) < 0}
        for architecture in (library.Arch.X86_64, library.Arch.AARCH64)
    }
    assert missing[library.Arch.X86_64] == set()
    assert missing[library.Arch.AARCH64] == {"epoll_wait", "pause", "poll", "select", "time"}


def test_nothing_that_names_a_path_starts_a_process_or_reaches_another_is_on_the_list() -> None:
    forbidden = {
        "open", "openat", "openat2", "creat", "stat", "lstat", "newfstatat", "statx", "readlinkat", "getdents64", "unlinkat",
        "socket", "socketpair", "connect", "bind", "listen", "accept", "accept4", "clone", "clone3", "fork", "vfork", "execve",
        "execveat", "kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_getfd", "pidfd_send_signal",
        "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "mount", "umount2", "setns", "unshare", "bpf",
        "io_uring_setup", "userfaultfd", "perf_event_open", "keyctl", "setuid", "setresuid", "capset", "seccomp", "shmat",
        "pkey_mprotect", "personality", "splice", "open_by_handle_at",
    }  # fmt: skip
    assert forbidden.isdisjoint(NAMES)


def test_a_filter_is_built_for_either_architecture() -> None:
    library = seccomp.library()
    programs = []
    for architecture in (None, library.Arch.X86_64, library.Arch.AARCH64):
        with tempfile.TemporaryFile() as file:
            seccomp.build_filter(architecture).export_bpf(file)
            file.seek(0)
            programs.append(file.read())
    assert programs[0] == programs[1 if os.uname().machine == "x86_64" else 2]
    assert programs[1] != programs[2]


def judge(program: bytes, machine: int, number: int, *arguments: int) -> int:
    """What the kernel would make of a call: the filter as it runs it (linux/filter.h, linux/seccomp.h: struct seccomp_data)."""
    data = struct.pack("<iIQ6Q", number, machine, 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("<HBBI", program))
    compare = {0x10: operator.eq, 0x20: operator.gt, 0x30: operator.ge, 0x40: lambda one, other: bool(one & other)}
    place = accumulator = 0
    while True:
        code, jump_true, jump_false, constant = steps[place]
        place += 1
        match code & 7, code:
            case 6, 0x06:  # ret #k
                return constant
            case 0, 0x20:  # ld [k]
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 4, 0x54:  # and #k
                accumulator &= constant
            case 5, 0x05:  # ja
                place += constant
            case 5, _ if code & 8 == 0:  # jeq, jgt, jge, jset
                place += jump_true if compare[code & 0xF0](accumulator, constant) else jump_false
            case _:
                raise AssertionError(f"libseccomp has made an instruction {code:#x}")


ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM  # linux/seccomp.h


@pytest.mark.parametrize(("name", "machine"), [("X86_64", 0xC000003E), ("AARCH64", 0xC00000B7)])
def test_the_filter_lets_through_what_is_listed_on_either_architecture(name: str, machine: int) -> None:
    """`machine`: AUDIT_ARCH_… (linux/audit.h)."""
    library = seccomp.library()
    architecture = getattr(library.Arch, name)
    with tempfile.TemporaryFile() as file:
        seccomp.build_filter(architecture).export_bpf(file)
        file.seek(0)
        program = file.read()
    numbers = {listed: library.resolve_syscall(architecture, listed) for listed in NAMES}
    free = {numbers[listed] for listed in seccomp.ALLOWED if numbers[listed] >= 0}
    # Those that are looked into as well: with arguments that fit nothing.
    wrong = 2**64 - 1
    passed = {number for number in range(1024) if judge(program, machine, number, *[wrong] * 6) == ALLOW}
    assert passed == free
    assert {judge(program, machine, number, *[wrong] * 6) for number in range(1024)} == {ALLOW, REFUSE}
    for listed, conditions in seccomp.WITH_ARGUMENTS:
        given = [0] * 6
        for index, mask, value in conditions:
            given[index] = wrong & ~mask | value
        assert judge(program, machine, numbers[listed], *given) == ALLOW, listed
    assert judge(program, machine, numbers["tgkill"], os.getpid(), 1, 2) == ALLOW
    assert judge(program, machine, numbers["mmap"], 0, 4096, 7) == REFUSE
    # The same numbers mean other calls to a program of 32 bits: it is ended.
    for other in (0x40000003, 0x40000028, 0xC000003E ^ 0xC00000B7 ^ machine):
        assert judge(program, other, numbers["read"]) == KILL


def test_debians_binding_is_taken_first(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    debian = ModuleType("seccomp")
    monkeypatch.setitem(sys.modules, "seccomp", debian)
    assert seccomp.library() is debian


def test_without_a_binding_the_package_is_named(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    monkeypatch.setitem(sys.modules, "seccomp", None)
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(OperatorError, match="python3-seccomp"):
        seccomp.library()


def test_without_libseccomp_itself_the_package_is_named(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    def no_library(name: str) -> ModuleType:
        # What pyseccomp does when it is imported.
        raise RuntimeError("Unable to find libseccomp")

    with monkeypatch.context() as patched:
        patched.setattr(importlib, "import_module", no_library)
        with pytest.raises(OperatorError, match="libseccomp2"):
            seccomp.library()


@pytest.fixture
def unprepared() -> Iterator[None]:
    seccomp.prepare.cache_clear()
    yield
    seccomp.prepare.cache_clear()


def test_what_is_prepared_differs_from_what_is_built_for_a_process_in_its_number_alone(unprepared: None) -> None:
    with tempfile.TemporaryFile() as file:
        seccomp.build_filter(process=4711).export_bpf(file)
        file.seek(0)
        assert seccomp.program_for(4711) == file.read()
    assert seccomp.prepare() is seccomp.prepare()
    assert seccomp.program_for(4711) != seccomp.program_for(4712)


def test_a_prepared_filter_lets_a_process_signal_itself_and_nobody_else() -> None:
    library = seccomp.library()
    machine = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[os.uname().machine]
    number = library.resolve_syscall(library.Arch.NATIVE, "tgkill")
    program = seccomp.program_for(4711)
    assert judge(program, machine, number, 4711, 1, 6) == ALLOW
    for other in (4712, os.getpid(), 0, 2**64 - 1):
        assert judge(program, machine, number, other, 1, 6) == REFUSE


def test_a_filter_of_another_form_is_not_loaded(monkeypatch: pytest.MonkeyPatch, unprepared: None) -> None:
    monkeypatch.setattr(seccomp, "_JUMP_IF_EQUAL", 0x16)
    with pytest.raises(KernelError, match="another form"):
        seccomp.prepare()


def test_a_library_that_cannot_make_it_is_told_of(monkeypatch: pytest.MonkeyPatch, unprepared: None) -> None:
    def fail(**_: int) -> None:
        raise RuntimeError("Library error (errno = -22)")

    monkeypatch.setattr(seccomp, "build_filter", fail)
    with pytest.raises(KernelError, match="errno = -22"):
        seccomp.prepare()
