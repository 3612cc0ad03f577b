"""chmod(2) and fchmod(2)."""

import os
import stat
from pathlib import Path

import pytest
from harness import ALICE, BOB, ROOT, Persona, outcome
from harness.clock import changed
from harness.files import KINDS, make, mode_of, opened

NOT_LINKS = [kind for kind in KINDS if kind != "symlink"]


@pytest.mark.parametrize("kind", NOT_LINKS)
@pytest.mark.parametrize("mode", [0o000, 0o111, 0o644, 0o777, 0o1755, 0o2755, 0o4755, 0o7777])
def test_sets_every_bit(area: Path, kind: str, mode: int) -> None:
    path = make(kind, area / "thing")
    path.chmod(mode)
    assert mode_of(path) == mode
    assert stat.S_IFMT(path.lstat().st_mode) == stat.S_IFMT(make(kind, area / "other").lstat().st_mode)


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_follows_a_link(area: Path, kind: str) -> None:
    path = make(kind, area / "thing", 0o600)
    (area / "link").symlink_to("thing")
    os.chmod(area / "link", 0o640)
    assert mode_of(path) == 0o640
    assert mode_of(area / "link") == 0o777


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_updates_ctime_alone(area: Path, probe: Path, kind: str) -> None:
    path = make(kind, area / "thing")
    assert changed(path, probe, lambda: path.chmod(0o600)) == {"ctime"}


@pytest.mark.parametrize("kind", NOT_LINKS)
def test_failing_updates_nothing(area: Path, probe: Path, kind: str) -> None:
    path = make(kind, area / "thing")
    assert changed(path, probe, lambda: ALICE.outcome(os.chmod, path, 0o600)) == set()


@pytest.mark.parametrize("kind", NOT_LINKS)
@pytest.mark.parametrize(
    ("caller", "expected"),
    [(ALICE, "ok"), (BOB, "EPERM"), (BOB.with_groups(ALICE.gid), "EPERM"), (ROOT, "ok")],
    ids=["owner", "other", "member", "root"],
)
def test_is_for_the_owner_and_root(area: Path, kind: str, caller: Persona, expected: str) -> None:
    path = make(kind, area / "thing", 0o664, ALICE.uid, ALICE.gid)
    assert caller.outcome(os.chmod, path, 0o600) == expected
    assert mode_of(path) == (0o600 if expected == "ok" else 0o664)


@pytest.mark.parametrize(
    ("gid", "groups", "kept"),
    [(ALICE.gid, (), True), (BOB.gid, (BOB.gid,), True), (BOB.gid, (), False)],
    ids=["own-group", "supplementary-group", "foreign-group"],
)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_setgid_is_dropped_for_a_caller_outside_the_group(
    area: Path, kind: str, gid: int, groups: tuple[int, ...], kept: bool
) -> None:
    path = make(kind, area / "thing", 0o755, ALICE.uid, gid)
    ALICE.with_groups(*groups).call(os.chmod, path, 0o2755)
    assert mode_of(path) == (0o2755 if kept else 0o755)


def test_root_keeps_setgid_whatever_the_group(area: Path) -> None:
    path = make("file", area / "thing", 0o755, ALICE.uid, BOB.gid)
    path.chmod(0o6755)
    assert mode_of(path) == 0o6755


def test_the_owner_may_set_the_sticky_bit_of_a_file(area: Path) -> None:
    path = make("file", area / "thing", 0o644, ALICE.uid, ALICE.gid)
    ALICE.call(os.chmod, path, 0o1644)
    assert mode_of(path) == 0o1644


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_fchmod(area: Path, flags: int) -> None:
    path = make("file", area / "thing", 0o644)
    with opened(path, flags) as descriptor:
        os.fchmod(descriptor, 0o600)
        assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o600
    assert mode_of(path) == 0o600


def test_fchmod_of_a_directory(area: Path) -> None:
    path = make("directory", area / "thing")
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fchmod(descriptor, 0o700)
    assert mode_of(path) == 0o700


def test_fchmod_of_o_path_is_ebadf(area: Path) -> None:
    with opened(make("file", area / "thing"), os.O_PATH) as descriptor:
        assert outcome(os.fchmod, descriptor, 0o600) == "EBADF"


def test_an_open_file_goes_on_being_read_after_chmod_000(area: Path) -> None:
    path = make("file", area / "thing", 0o600, ALICE.uid, ALICE.gid)

    def read_on() -> bytes:
        with opened(path, os.O_RDWR) as descriptor:
            os.chmod(path, 0)
            os.write(descriptor, b"still here")
            return os.pread(descriptor, 100, 0)

    assert ALICE.call(read_on) == b"still here"
    assert ALICE.outcome(os.open, path, os.O_RDONLY) == "EACCES"
