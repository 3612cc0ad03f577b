"""xattr(7): the user namespace."""

import os
from pathlib import Path

import pytest
from harness import ALICE, BOB, outcome
from harness.clock import changed
from harness.files import make, opened

pytestmark = pytest.mark.usefixtures("user_attributes")


@pytest.fixture
def user_attributes(area: Path) -> None:
    probe = make("file", area / ".xattr")
    result = outcome(os.setxattr, probe, "user.probe", b"")
    probe.unlink()
    if result == "EOPNOTSUPP" and "local" in area.name:
        pytest.skip("this filesystem keeps no user attributes")


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("value", [b"", b"value", bytes(range(256)), b"v" * 2000], ids=len)
def test_a_value_is_kept_to_the_byte(area: Path, kind: str, value: bytes) -> None:
    path = make(kind, area / "thing")
    os.setxattr(path, "user.name", value)
    assert os.getxattr(path, "user.name") == value
    assert os.listxattr(path) == ["user.name"]
    os.setxattr(path, "user.name", b"replaced")
    assert os.getxattr(path, "user.name") == b"replaced"
    os.removexattr(path, "user.name")
    assert os.listxattr(path) == []


def test_many_names(area: Path) -> None:
    path = make("file", area / "thing")
    names = {f"user.name-{number}": str(number).encode() for number in range(20)}
    for name, value in names.items():
        os.setxattr(path, name, value)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == names


def test_create_and_replace(area: Path) -> None:
    path = make("file", area / "thing")
    assert outcome(os.setxattr, path, "user.name", b"1", os.XATTR_REPLACE) == "ENODATA"
    assert outcome(os.setxattr, path, "user.name", b"1", os.XATTR_CREATE) == "ok"
    assert outcome(os.setxattr, path, "user.name", b"2", os.XATTR_CREATE) == "EEXIST"
    assert outcome(os.setxattr, path, "user.name", b"3", os.XATTR_REPLACE) == "ok"
    assert os.getxattr(path, "user.name") == b"3"


def test_what_is_not_there_is_enodata(area: Path) -> None:
    path = make("file", area / "thing")
    assert outcome(os.getxattr, path, "user.name") == "ENODATA"
    assert outcome(os.removexattr, path, "user.name") == "ENODATA"


@pytest.mark.parametrize(("length", "expected"), [(255, "ok"), (256, "ERANGE")])
def test_the_length_of_a_name(area: Path, length: int, expected: str) -> None:
    path = make("file", area / "thing")
    assert outcome(os.setxattr, path, "user." + "n" * (length - 5), b"") == expected


def test_a_value_that_is_too_long_is_e2big(area: Path) -> None:
    assert outcome(os.setxattr, make("file", area / "thing"), "user.name", bytes(65_537)) == "E2BIG"


def test_a_namespace_that_does_not_exist_is_eopnotsupp(area: Path) -> None:
    path = make("file", area / "thing")
    assert outcome(os.setxattr, path, "nobody.name", b"") == "EOPNOTSUPP"
    assert outcome(os.setxattr, path, "user", b"") == "EOPNOTSUPP"


@pytest.mark.parametrize("kind", ["symlink", "fifo", "character"])
def test_what_is_neither_file_nor_directory_has_none(area: Path, kind: str) -> None:
    path = make(kind, area / "thing")
    assert outcome(os.setxattr, path, "user.name", b"", follow_symlinks=False) == "EPERM"
    assert outcome(os.getxattr, path, "user.name", follow_symlinks=False) in ("ENODATA", "EPERM")


def test_permissions(area: Path) -> None:
    path = make("file", area / "thing", 0o640, ALICE.uid, ALICE.gid)
    os.setxattr(path, "user.name", b"value")
    assert ALICE.outcome(os.setxattr, path, "user.name", b"new") == "ok"
    member = BOB.with_groups(ALICE.gid)
    assert member.outcome(os.getxattr, path, "user.name") == "ok"
    assert member.outcome(os.setxattr, path, "user.name", b"") == "EACCES"
    assert member.outcome(os.removexattr, path, "user.name") == "EACCES"
    assert BOB.outcome(os.getxattr, path, "user.name") == "EACCES"
    assert BOB.call(os.listxattr, path) == ["user.name"]


def test_by_descriptor(area: Path) -> None:
    path = make("file", area / "thing")
    with opened(path, os.O_RDONLY) as descriptor:
        os.setxattr(descriptor, "user.name", b"value")
        assert os.getxattr(descriptor, "user.name") == b"value"
    assert os.getxattr(path, "user.name") == b"value"


def test_setting_and_removing_move_ctime_alone(area: Path, probe: Path) -> None:
    path = make("file", area / "thing")
    assert changed(path, probe, lambda: os.setxattr(path, "user.name", b"value")) == {"ctime"}
    assert changed(path, probe, lambda: os.removexattr(path, "user.name")) == {"ctime"}
    assert changed(path, probe, lambda: outcome(os.removexattr, path, "user.name")) == set()
