"""edge/memory.py: memory that is passed on as a descriptor, on the real kernel."""

import fcntl
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.leftovers import descriptors

from fuse_gated.edge import memory
from fuse_gated.edge.keeping import STATE_SIZE
from fuse_gated.edge.memory import make_buffer, make_state, read_memory, write_memory

SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def test_a_state_takes_no_memory_before_it_is_written() -> None:
    state = make_state()
    try:
        status = os.fstat(state)
        assert (status.st_size, status.st_blocks) == (STATE_SIZE, 0)
        with mmap.mmap(state, STATE_SIZE) as memory:
            assert memory[:8] == memory[-8:] == bytes(8)
            memory[STATE_SIZE // 2] = 1
            # A page, or as much as the kernel takes at once; by far not all.
            assert 0 < os.fstat(state).st_blocks * 512 <= 4 * 2**20
        assert not os.get_inheritable(state)
        assert fcntl.fcntl(state, fcntl.F_GET_SEALS) & SIZE_SEALS == SIZE_SEALS
    finally:
        os.close(state)


def test_what_was_written_is_read_and_never_changes() -> None:
    for data in (b"", b"hello", os.urandom(2**17)):
        memory = write_memory("note", data)
        try:
            assert read_memory(memory) == read_memory(memory) == data
            with pytest.raises(PermissionError):
                os.pwrite(memory, b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(memory, 1000000)
        finally:
            os.close(memory)


@pytest.mark.parametrize("make", [make_state, lambda: write_memory("note", b"x")])
def test_an_older_kernel_makes_it_too(make: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.memfd_create

    def older(name: str, flags: int) -> int:
        if flags & 0x8:
            raise OSError(22, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", older)
    made = make()
    try:
        assert fcntl.fcntl(made, fcntl.F_GET_SEALS) & SIZE_SEALS == SIZE_SEALS
    finally:
        os.close(made)


def test_where_the_kernel_can_it_is_not_executable() -> None:
    state = make_state()
    try:
        sealed = fcntl.fcntl(state, fcntl.F_GET_SEALS)
        assert bool(sealed & 0x20) == (not os.fstat(state).st_mode & stat.S_IXUSR)  # F_SEAL_EXEC, Linux 6.3
    finally:
        os.close(state)


@pytest.mark.parametrize("make", [make_state, lambda: write_memory("note", b"x")])
def test_what_fails_leaves_no_descriptor(make: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    before = descriptors()
    with pytest.raises(OSError, match="No space"):
        make()
    assert descriptors() == before


def test_a_buffer_takes_no_memory_before_it_is_written() -> None:
    def taken() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = taken()
    buffer = make_buffer(64 * 2**20)
    assert taken() - before < 16 * 2**20
    view = memoryview(buffer)
    assert (len(view), view.readonly, bytes(view[:4])) == (64 * 2**20, False, bytes(4))
    buffer[:4] = b"abcd"
    assert bytes(view[:5]) == b"abcd\0"


_FAULTS = """
import mmap, resource, sys
from fuse_gated.edge import memory

def faults():
    data = memory.make_buffer(2**20)
    data[:] = bytes(2**20)
    resource.getrusage(resource.RUSAGE_SELF)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        # Two at a time, as of a message that is received while another one is used.
        bytearray(data), bytes(data)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE

memory.keep_freed()
faults()
kept, least = faults(), resident()
memory.give_back_freed()
print(kept, least - resident(), faults())
"""


def test_freed_memory_is_used_again_without_the_kernel_and_given_back_in_the_end() -> None:
    ended = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, check=True, text=True)
    kept, given_back, usual = map(int, ended.stdout.split())
    assert given_back >= 2**20
    assert kept * 10 < usual, "two mappings or more for each, and a fault for each page"


def test_another_c_library_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_mallopt", None)
    monkeypatch.setattr(memory, "_malloc_trim", None)
    memory.keep_freed()
    memory.give_back_freed()
