"""Directories for copies, and what becomes of them."""

import errno
import os
import sys
from pathlib import Path

import pytest

from fuse_gated.edge import placing
from fuse_gated.edge.copy_tree import BESIDE
from fuse_gated.errors import OperatorError

OURS = {"owner": os.geteuid()}


@pytest.fixture
def tenant(tmp_path: Path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def made(tenant: int, **changes: object) -> None:
    for fd in placing.place(tenant, "web", **{**OURS, "uids": (), "gids": (), "anyone": False, **changes}):
        os.close(fd)


def test_names_that_are_copies():
    names = {"web", "web~copy", "other", "old~unsent-s"}
    assert {name for name in names if placing.is_copys(name, names)} == names - {"other"}


def test_a_link_in_its_place_is_not_followed(tenant, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "web").symlink_to("elsewhere")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="web") as raised:
        made(tenant)
    assert raised.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_is_left_beside_is_put_aside_too(tenant, tmp_path):
    made(tenant)
    (tmp_path / "web~copy" / "ledger").write_text("x")
    (tmp_path / "web~copy" / BESIDE / "work").write_text("a program's")
    placing.displace(tenant, "web", "s")
    assert os.listdir(tmp_path) == ["web~unsent-s~beside"]
    assert (tmp_path / "web~unsent-s~beside" / BESIDE / "work").read_text() == "a program's"
    placing.displace(tenant, "web", "s")


def test_each_that_is_put_aside_gets_a_name_of_its_own(tenant, tmp_path, monkeypatch):
    for number in range(3):
        made(tenant)
        (tmp_path / "web" / "f").write_text(str(number))
        placing.displace(tenant, "web", "s")
    found = {path.name: (path / "f").read_text() for path in tmp_path.iterdir()}
    assert found == {"web~unsent-s": "0", "web~unsent-s-2": "1", "web~unsent-s-3": "2"}
    made(tenant)
    (tmp_path / "web" / "f").write_text("x")
    monkeypatch.setattr(placing, "_TRIES", 2)
    with pytest.raises(FileExistsError):
        placing.displace(tenant, "web", "s")

    def refuses(*_arguments, **_options):
        raise PermissionError(errno.EACCES, "refused")

    monkeypatch.setattr(os, "rename", refuses)
    with pytest.raises(PermissionError):
        placing.displace(tenant, "web", "s")
    assert (tmp_path / "web" / "f").read_text() == "x"


def test_without_a_library_nobody_else_can_be_let_in(tenant, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "posix1e", None)
    with pytest.raises(OperatorError, match="no libacl"):
        made(tenant, anyone=True)
    assert os.listdir(tmp_path) == []
    made(tenant)


def test_what_was_there_before_stays_if_nobody_can_be_let_in(tenant, tmp_path, monkeypatch):
    made(tenant)
    monkeypatch.setitem(sys.modules, "posix1e", None)
    with pytest.raises(OperatorError, match="no libacl"):
        made(tenant, anyone=True)
    assert sorted(os.listdir(tmp_path)) == ["web", "web~copy"]
    assert os.listdir(tmp_path / "web~copy") == [BESIDE]


def test_a_filesystem_without_acls_is_told(tenant, monkeypatch):
    import posix1e

    def refuses(**_arguments):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(posix1e, "ACL", refuses)
    with pytest.raises(OperatorError, match=r"cannot set the ACL of .*web"):
        made(tenant, gids=(4711,))


def test_a_ledger_is_left_to_no_other_copy(tenant, tmp_path):
    """The copy has gone, and what was known of it is still there: whoever was to remove both was killed in between."""
    made(tenant)
    ledger = tmp_path / "web~copy" / "ledger"
    ledger.write_text("x")
    made(tenant)
    assert ledger.exists(), "it is the same copy"
    (tmp_path / "web").rmdir()
    made(tenant)
    assert not ledger.exists()


def test_the_ledger_goes_before_the_copy(tenant, tmp_path, monkeypatch):
    made(tenant)
    ledger = tmp_path / "web~copy" / "ledger"
    ledger.write_text("x")

    def killed(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", killed)
        with pytest.raises(KeyboardInterrupt):
            placing.displace(tenant, "web", "s")
    assert not ledger.exists()
