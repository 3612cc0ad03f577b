import os
import stat
from pathlib import Path

import pytest
from harness import outcome

from fuse_gated.edge.precautions import Precautions, clear_setid, effective_capabilities, without_setid

ALL = 2**41 - 1
FSETID = 1 << 4


def test_a_read_only_export_refuses_changes() -> None:
    assert outcome(Precautions(read_only=True).refuse_changes) == "EROFS"
    assert outcome(Precautions().refuse_changes) == "ok"


def test_setuid_and_setgid_are_dropped_unless_the_server_is_trusted() -> None:
    assert Precautions().mode(0o107777) == 0o1777
    assert Precautions(trust_server=True).mode(0o107777) == 0o7777


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_devices_are_refused_unless_the_server_is_trusted(kind: int) -> None:
    assert outcome(Precautions().refuse_device, kind | 0o600) == "EPERM"
    assert outcome(Precautions(trust_server=True).refuse_device, kind | 0o600) == "ok"


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK])
def test_other_nodes_are_no_devices(kind: int) -> None:
    assert outcome(Precautions().refuse_device, kind) == "ok"


@pytest.mark.parametrize(
    ("name", "untrusted", "trusted"),
    [
        (b"user.note", "ok", "ok"),
        (b"security.capability", "EOPNOTSUPP", "ok"),
        (b"trusted.overlay.opaque", "EOPNOTSUPP", "ok"),
        (b"system.posix_acl_access", "EOPNOTSUPP", "ok"),
        (b"userx", "EOPNOTSUPP", "ok"),
        (b"", "ERANGE", "ERANGE"),
        (b"user." + b"x" * 250, "ok", "ok"),
        (b"user." + b"x" * 251, "ERANGE", "ERANGE"),
        (b"user.a\0b", "EINVAL", "EINVAL"),
    ],
)
def test_extended_attributes_are_those_of_programs(name: bytes, untrusted: str, trusted: str) -> None:
    assert outcome(Precautions().check_xattr, name) == untrusted
    assert outcome(Precautions(trust_server=True).check_xattr, name) == trusted


def test_a_file_loses_setuid_where_writing_would_leave_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    plain = path.stat()
    path.chmod(0o6755)
    armed = path.stat()
    assert Precautions(capabilities=FSETID).must_disarm(armed)
    assert not Precautions(capabilities=FSETID).must_disarm(plain)
    assert not Precautions(capabilities=ALL & ~FSETID).must_disarm(armed)
    assert not Precautions(capabilities=ALL, trust_server=True).must_disarm(armed)
    tmp_path.chmod(0o2755)
    assert not Precautions(capabilities=ALL).must_disarm(tmp_path.stat())


def test_passing_ownership_through_takes_three_capabilities() -> None:
    assert Precautions(capabilities=0b1011).can_chown
    for lacking in (0b0011, 0b1001, 0b1010, 0):
        assert not Precautions(capabilities=lacking).can_chown


def test_the_process_knows_its_capabilities() -> None:
    assert bool(effective_capabilities() & FSETID) is (os.geteuid() == 0)


@pytest.mark.parametrize(
    ("mode", "left"),
    [(0o644, 0o644), (0o4755, 0o755), (0o6755, 0o755), (0o2755, 0o755), (0o2745, 0o2745), (0o6745, 0o2745), (0o7777, 0o1777)],
)
def test_what_a_change_leaves_of_a_mode(tmp_path: Path, mode: int, left: int) -> None:
    assert without_setid(stat.S_IFREG | mode) == left
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    for flags in (os.O_PATH, os.O_RDONLY):
        fd = os.open(path, flags)
        clear_setid(fd)
        os.close(fd)
        assert stat.S_IMODE(path.stat().st_mode) == left


def test_only_files_lose_setid(tmp_path: Path) -> None:
    tmp_path.chmod(0o2755)
    fd = os.open(tmp_path, os.O_PATH)
    clear_setid(fd)
    os.close(fd)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o2755


def test_where_the_mode_is_not_ours_the_kernel_sees_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o4755)

    def refused(*_: object) -> None:
        raise PermissionError(1, "not the owner")

    monkeypatch.setattr(os, "chmod", refused)
    fd = os.open(path, os.O_RDONLY)
    assert outcome(clear_setid, fd) == "ok"
    os.close(fd)
