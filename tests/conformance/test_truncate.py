"""truncate(2) and ftruncate(2)."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from harness import ALICE, outcome, syscalls
from harness.clock import changed
from harness.files import make, mode_of, opened


def _ftruncate(path: Path, length: int) -> None:
    with opened(path, os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, length)


BOTH: Final[dict[str, Callable[[Path, int], None]]] = {"truncate": syscalls.truncate, "ftruncate": _ftruncate}
pytestmark = pytest.mark.parametrize("name", BOTH)


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 9999, 10_000, 10_001, 123_456, 2**32 + 5])
def test_cuts_and_extends_with_zeros(area: Path, name: str, length: int) -> None:
    content = bytes(range(1, 251)) * 40
    path = area / "thing"
    path.write_bytes(content)
    BOTH[name](path, length)
    assert path.stat().st_size == length
    with opened(path, os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 20_000, 0) == (content[:length] + bytes(10_000))[: min(length, 20_000)]
        assert len(os.pread(descriptor, 10, max(0, length - 5))) == min(5, length)


def test_what_was_cut_off_does_not_come_back(area: Path, name: str) -> None:
    path = area / "thing"
    path.write_bytes(b"x" * 10_000)
    BOTH[name](path, 5000)
    BOTH[name](path, 10_000)
    assert path.read_bytes() == b"x" * 5000 + bytes(5000)


def test_follows_a_link(area: Path, name: str) -> None:
    path = make("file", area / "thing")
    (area / "link").symlink_to("thing")
    BOTH[name](area / "link", 7)
    assert path.stat().st_size == 7


def test_updates_mtime_and_ctime(area: Path, name: str, probe: Path) -> None:
    path = area / "thing"
    path.write_bytes(b"content")
    assert changed(path, probe, lambda: BOTH[name](path, 3)) == {"mtime", "ctime"}
    assert changed(path, probe, lambda: BOTH[name](path, 100)) == {"mtime", "ctime"}
    assert changed(path, probe, lambda: BOTH[name](path, 0)) == {"mtime", "ctime"}


def test_without_permission_is_eacces_and_changes_nothing(area: Path, name: str, probe: Path) -> None:
    path = make("file", area / "thing", 0o644)
    path.write_bytes(b"content")
    results: list[str] = []
    assert changed(path, probe, lambda: results.append(ALICE.outcome(BOTH[name], path, 3))) == set()
    assert (results, path.read_bytes()) == (["EACCES"], b"content")


def test_a_negative_length_is_einval(area: Path, name: str) -> None:
    path = make("file", area / "thing")
    assert outcome(BOTH[name], path, -1) == "EINVAL"
    assert outcome(BOTH[name], path, -(2**63)) == "EINVAL"


def test_a_length_past_all_limits_is_efbig_or_einval(area: Path, name: str) -> None:
    path = make("file", area / "thing")
    path.write_bytes(b"content")
    assert outcome(BOTH[name], path, 2**63 - 1) in ("EFBIG", "EINVAL")
    assert path.read_bytes() == b"content"


def test_a_length_past_the_resource_limit_is_efbig(area: Path, name: str) -> None:
    path = make("file", area / "thing", 0o666)

    def past_the_limit() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return outcome(BOTH[name], path, 1001) + outcome(BOTH[name], path, 1000)

    assert ALICE.call(past_the_limit) == "EFBIGok"


@pytest.mark.parametrize(("kind", "expected"), [("directory", "EISDIR"), ("fifo", "EINVAL")])
def test_what_is_no_file(area: Path, name: str, kind: str, expected: str) -> None:
    assert outcome(BOTH[name], make(kind, area / "thing"), 0) == expected


@pytest.mark.parametrize("length", [0, 3, 100])
def test_drops_setuid_and_setgid_unless_root_does_it(area: Path, name: str, length: int) -> None:
    path = make("file", area / "thing", 0o6777)
    path.write_bytes(b"content")
    path.chmod(0o6777)
    BOTH[name](path, length)
    assert mode_of(path) == 0o6777
    ALICE.call(BOTH[name], path, length)
    assert mode_of(path) == 0o777


def test_the_open_files_offset_stays(area: Path, name: str) -> None:
    path = area / "thing"
    path.write_bytes(b"0123456789")
    with opened(path, os.O_RDWR) as descriptor:
        os.read(descriptor, 8)
        BOTH[name](path, 4)
        assert os.read(descriptor, 10) == b""
        os.write(descriptor, b"X")
    assert path.read_bytes() == b"0123\0\0\0\0X"
