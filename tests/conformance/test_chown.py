"""chown(2), lchown(2) and fchown(2)."""

import os
from pathlib import Path

import pytest
from harness import ALICE, BOB, CAROL, ROOT, Persona
from harness.clock import changed
from harness.files import KINDS, make, mode_of, opened, owner_of


@pytest.mark.parametrize("kind", KINDS)
def test_root_gives_anything_to_anybody(area: Path, kind: str) -> None:
    path = make(kind, area / "thing")
    os.lchown(path, 123, 456)
    assert owner_of(path) == (123, 456)
    os.lchown(path, 65534, 65533)
    assert owner_of(path) == (65534, 65533)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("uid", "gid", "expected"), [(-1, -1, (11, 12)), (5, -1, (5, 12)), (-1, 6, (11, 6)), (0, 0, (0, 0))])
def test_minus_one_leaves_an_id_as_it_is(area: Path, kind: str, uid: int, gid: int, expected: tuple[int, int]) -> None:
    path = make(kind, area / "thing", uid=11, gid=12)
    os.lchown(path, uid, gid)
    assert owner_of(path) == expected


def test_large_ids_are_kept(area: Path) -> None:
    path = make("file", area / "thing")
    os.chown(path, 2**32 - 2, 2**31)
    assert owner_of(path) == (2**32 - 2, 2**31)


def test_follows_a_link_and_lchown_does_not(area: Path) -> None:
    path = make("file", area / "thing")
    (area / "link").symlink_to("thing")
    os.chown(area / "link", 1, 2)
    assert (owner_of(path), owner_of(area / "link")) == ((1, 2), (0, 0))
    os.lchown(area / "link", 3, 4)
    assert (owner_of(path), owner_of(area / "link")) == ((1, 2), (3, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("caller", "uid", "gid", "expected"),
    [
        (ALICE, -1, -1, "ok"),
        (ALICE, ALICE.uid, ALICE.gid, "ok"),
        (ALICE, -1, ALICE.gid, "ok"),
        (ALICE.with_groups(CAROL.gid), -1, CAROL.gid, "ok"),
        (ALICE.with_groups(CAROL.gid), ALICE.uid, CAROL.gid, "ok"),
        (ALICE, -1, CAROL.gid, "EPERM"),
        (ALICE, BOB.uid, -1, "EPERM"),
        (ALICE, BOB.uid, ALICE.gid, "EPERM"),
        (ALICE.with_groups(CAROL.gid), BOB.uid, CAROL.gid, "EPERM"),
        (ALICE, 0, -1, "EPERM"),
        (BOB, -1, -1, "ok"),
        (BOB, -1, BOB.gid, "EPERM"),
        (BOB, BOB.uid, -1, "EPERM"),
        (BOB, BOB.uid, BOB.gid, "EPERM"),
        (BOB.with_groups(ALICE.gid), -1, ALICE.gid, "EPERM"),
        (BOB, ALICE.uid, -1, "EPERM"),
    ],
)
def test_who_may_give_what_to_whom(area: Path, kind: str, caller: Persona, uid: int, gid: int, expected: str) -> None:
    path = make(kind, area / "thing", uid=ALICE.uid, gid=ALICE.gid)
    assert caller.outcome(os.lchown, path, uid, gid) == expected
    after = (ALICE.uid, ALICE.gid if gid == -1 or expected != "ok" else gid)
    assert owner_of(path) == after


@pytest.mark.parametrize("kind", KINDS)
def test_updates_ctime_alone(area: Path, probe: Path, kind: str) -> None:
    path = make(kind, area / "thing")
    assert changed(path, probe, lambda: os.lchown(path, 7, 8)) == {"ctime"}


@pytest.mark.parametrize("kind", KINDS)
def test_failing_updates_nothing(area: Path, probe: Path, kind: str) -> None:
    path = make(kind, area / "thing")
    assert changed(path, probe, lambda: ALICE.outcome(os.lchown, path, ALICE.uid, ALICE.gid)) == set()


@pytest.mark.parametrize(
    ("caller", "before", "after"),
    [
        (ALICE, 0o4755, 0o755),
        (ALICE, 0o2755, 0o755),
        (ALICE, 0o6755, 0o755),
        (ALICE, 0o2745, 0o2745),
        (ALICE, 0o6644, 0o2644),
        (ALICE, 0o1755, 0o1755),
        (ROOT, 0o4755, 0o755),
        (ROOT, 0o6755, 0o755),
        (ROOT, 0o2745, 0o2745),
        (ROOT, 0o6711, 0o711),
    ],
)
def test_of_a_file_drops_setuid_and_setgid(area: Path, caller: Persona, before: int, after: int) -> None:
    """Setgid without execute for the group means mandatory locking, and stays (chown(2)). For root too on Linux."""
    path = make("file", area / "thing", uid=ALICE.uid, gid=ALICE.gid, mode=before)
    caller.with_groups(CAROL.gid).call(os.chown, path, -1, CAROL.gid)
    assert (owner_of(path), mode_of(path)) == ((ALICE.uid, CAROL.gid), after)


@pytest.mark.parametrize(("mode", "after"), [(0o4755, 0o755), (0o6755, 0o755), (0o1644, 0o1644)])
def test_to_nobody_else_drops_setuid_and_setgid_too(area: Path, mode: int, after: int) -> None:
    path = make("file", area / "thing", uid=ALICE.uid, gid=ALICE.gid, mode=mode)
    ALICE.call(os.chown, path, -1, -1)
    assert mode_of(path) == after


@pytest.mark.parametrize("caller", [ALICE, ROOT], ids=["owner", "root"])
@pytest.mark.parametrize("mode", [0o2755, 0o6755, 0o7777])
def test_of_a_directory_keeps_setuid_and_setgid(area: Path, caller: Persona, mode: int) -> None:
    path = make("directory", area / "thing", uid=ALICE.uid, gid=ALICE.gid, mode=mode)
    caller.call(os.chown, path, -1, ALICE.gid)
    assert mode_of(path) == mode


def test_fchown(area: Path) -> None:
    path = make("file", area / "thing", 0o4755)
    with opened(path, os.O_RDONLY) as descriptor:
        os.fchown(descriptor, 21, 22)
        info = os.fstat(descriptor)
        assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (21, 22, 0o755)
    assert owner_of(path) == (21, 22)


def test_a_file_given_away_is_the_new_owners(area: Path) -> None:
    path = make("file", area / "thing", 0o600, ALICE.uid, ALICE.gid)
    os.chown(path, BOB.uid, BOB.gid)
    assert ALICE.outcome(os.open, path, os.O_RDONLY) == "EACCES"
    assert BOB.outcome(os.open, path, os.O_RDONLY) == "ok"
    assert ALICE.outcome(os.chmod, path, 0o777) == "EPERM"
    assert BOB.outcome(os.chmod, path, 0o640) == "ok"
