"""access(2) and faccessat(2)."""

import os
from pathlib import Path

import pytest
from harness import ALICE, BOB, ROOT, outcome
from harness.files import make
from harness.syscalls import faccessat

MASKS = range(8)
AT_EACCESS = 0x200


@pytest.mark.parametrize("mode", range(0o10))
@pytest.mark.parametrize("which", ["owner", "group", "other"])
@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_by_class(area: Path, kind: str, mode: int, which: str) -> None:
    shift = {"owner": 6, "group": 3, "other": 0}[which]
    path = make(kind, area / "thing", mode << shift | 0o777 & ~(0o7 << shift), ALICE.uid, ALICE.gid)
    caller = {"owner": ALICE, "group": BOB.with_groups(ALICE.gid), "other": BOB}[which]

    def ask() -> list[str]:
        return [outcome(faccessat, path, mask) for mask in MASKS]

    assert caller.call(ask) == ["ok" if mode & mask == mask else "EACCES" for mask in MASKS]


def test_root_may_read_and_write_all_and_execute_what_somebody_may(area: Path) -> None:
    none, some = make("file", area / "none", 0), make("file", area / "some", 0o001)
    directory = make("directory", area / "directory", 0)
    assert [outcome(faccessat, none, mask) for mask in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)] == ["ok", "ok", "ok", "EACCES"]
    assert outcome(faccessat, some, os.R_OK | os.W_OK | os.X_OK) == "ok"
    assert outcome(faccessat, directory, os.R_OK | os.W_OK | os.X_OK) == "ok"


def test_asks_for_the_real_user_unless_told_otherwise(area: Path) -> None:
    path = make("file", area / "thing", 0o600, ALICE.uid, ALICE.gid)

    def as_two_users() -> tuple[str, str]:
        os.setresuid(BOB.uid, ALICE.uid, 0)
        return outcome(faccessat, path, os.R_OK), outcome(faccessat, path, os.R_OK, AT_EACCESS)

    assert ROOT.call(as_two_users) == ("EACCES", "ok")


def test_a_bad_mask_is_einval(area: Path) -> None:
    assert outcome(faccessat, make("file", area / "thing"), 0o10) == "EINVAL"


def test_follows_a_link(area: Path) -> None:
    make("file", area / "nowhere", 0o600)
    make("symlink", area / "link")
    assert ALICE.outcome(faccessat, area / "link", os.R_OK) == "EACCES"
    assert outcome(faccessat, area / "link", os.R_OK) == "ok"
    (area / "nowhere").unlink()
    assert outcome(faccessat, area / "link", os.F_OK) == "ENOENT"


def test_a_chmod_counts_at_once(area: Path) -> None:
    path = make("file", area / "thing", 0o600)
    for mode, expected in ((0o604, "ok"), (0o600, "EACCES"), (0o644, "ok"), (0o640, "EACCES")):
        path.chmod(mode)
        assert ALICE.outcome(faccessat, path, os.R_OK) == expected
