"""edge/seccomp.py: the list itself. What it does to a process is in test_process.py."""

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType

import pytest

from fuse_gated.edge import seccomp
from fuse_gated.errors import OperatorError

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
