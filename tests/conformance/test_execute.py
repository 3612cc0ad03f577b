"""execve(2) and ETXTBSY."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ALICE, need, outcome, syscalls
from harness.files import open_close


@pytest.fixture
def sleeping(area: Path) -> Iterator[Path]:
    """A program on the filesystem that is being run: cat, which waits for its input."""
    need("cat")
    path = area / "program"
    shutil.copy(str(shutil.which("cat")), path)
    path.chmod(0o755)
    with subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"runs\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"runs\n"
        yield path
        process.stdin.close()
        assert process.wait() == 0


def test_a_running_program_is_not_written(sleeping: Path) -> None:
    assert outcome(open_close, sleeping, os.O_WRONLY) == "ETXTBSY"
    assert outcome(open_close, sleeping, os.O_RDWR) == "ETXTBSY"
    assert outcome(open_close, sleeping, os.O_WRONLY | os.O_TRUNC) == "ETXTBSY"
    assert outcome(syscalls.truncate, sleeping, 0) == "ETXTBSY"
    assert outcome(open_close, sleeping, os.O_RDONLY) == "ok"


def test_a_running_program_is_replaced_and_removed(sleeping: Path) -> None:
    new = sleeping.with_name("new")
    shutil.copy(sleeping, new)
    os.rename(new, sleeping)
    assert outcome(open_close, sleeping, os.O_WRONLY) == "ok"
    os.unlink(sleeping)


def test_a_file_open_for_writing_is_not_run(area: Path) -> None:
    path = area / "program"
    shutil.copy(str(shutil.which("true")), path)
    path.chmod(0o755)
    with path.open("r+b"):
        assert outcome(subprocess.run, [path], check=True) == "ETXTBSY"
    assert outcome(subprocess.run, [path], check=True) == "ok"


def test_a_program_needs_an_x_bit(area: Path) -> None:
    path = area / "program"
    path.write_text("#!/bin/sh\nexit 7\n")
    path.chmod(0o644)
    assert outcome(subprocess.run, [path]) == "EACCES"
    path.chmod(0o744)
    assert subprocess.run([path], check=False).returncode == 7
    assert ALICE.outcome(os.execv, path, [str(path)]) == "EACCES"


def test_a_program_without_read_permission_runs(area: Path) -> None:
    path = area / "program"
    shutil.copy(str(shutil.which("true")), path)
    path.chmod(0o711)

    def run() -> int:
        return os.spawnv(os.P_WAIT, str(path), [str(path)])

    assert ALICE.call(run) == 0
    assert ALICE.outcome(open_close, path, os.O_RDONLY) == "EACCES"
