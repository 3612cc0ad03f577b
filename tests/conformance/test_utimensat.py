"""utimensat(2) and futimens(3)."""

import os
import time
from pathlib import Path

import pytest
from harness import ALICE, BOB, ROOT, Persona, outcome
from harness.clock import changed, stamps, tick
from harness.files import KINDS, make, opened
from harness.syscalls import UTIME_NOW, UTIME_OMIT, Time, futimens, utimensat

NOW, OMIT = (0, UTIME_NOW), (0, UTIME_OMIT)
SECOND = 10**9
OLD = 1_000_000_000 * SECOND


@pytest.mark.parametrize("kind", KINDS)
def test_sets_both_to_the_nanosecond(area: Path, kind: str) -> None:
    path = make(kind, area / "thing")
    utimensat(path, OLD + 123_456_789, OLD + 5 * SECOND + 987_654_321, follow=False)
    info = path.lstat()
    assert (info.st_atime_ns, info.st_mtime_ns) == (OLD + 123_456_789, OLD + 5 * SECOND + 987_654_321)


@pytest.mark.parametrize(
    "when",
    [
        0,
        1,
        SECOND - 1,
        -1 * SECOND,
        -5 * SECOND + 7,
        2**31 * SECOND,
        (2**31 - 1) * SECOND + 999_999_999,
        4_102_444_800 * SECOND + 1,
    ],
)
def test_times_before_1970_and_after_2038(area: Path, when: int) -> None:
    path = make("file", area / "thing")
    utimensat(path, when, when)
    info = path.stat()
    assert (info.st_atime_ns, info.st_mtime_ns) == (when, when)


@pytest.mark.parametrize("kind", KINDS)
def test_omit_leaves_as_it_is(area: Path, kind: str) -> None:
    path = make(kind, area / "thing")
    utimensat(path, OLD, OLD, follow=False)
    utimensat(path, OMIT, OLD + SECOND, follow=False)
    assert (path.lstat().st_atime_ns, path.lstat().st_mtime_ns) == (OLD, OLD + SECOND)
    utimensat(path, OLD + 2 * SECOND, OMIT, follow=False)
    assert (path.lstat().st_atime_ns, path.lstat().st_mtime_ns) == (OLD + 2 * SECOND, OLD + SECOND)


@pytest.mark.parametrize("kind", KINDS)
def test_now_is_the_filesystems_now(area: Path, probe: Path, kind: str) -> None:
    path = make(kind, area / "thing")
    utimensat(path, OLD, OLD, follow=False)
    tick(probe)
    earliest = stamps(probe)["ctime"]
    utimensat(path, NOW, NOW, follow=False)
    after = stamps(path)
    assert after["atime"] == after["mtime"] == after["ctime"]
    tick(probe)
    assert earliest <= after["mtime"] < stamps(probe)["ctime"]


def test_one_now_and_one_given(area: Path) -> None:
    path = make("file", area / "thing")
    utimensat(path, NOW, OLD)
    assert path.stat().st_mtime_ns == OLD
    assert path.stat().st_atime_ns > OLD
    utimensat(path, OLD, NOW)
    assert path.stat().st_atime_ns == OLD
    assert path.stat().st_mtime_ns > OLD


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [(OLD, OLD), (OMIT, OLD), (OLD, OMIT), (NOW, OMIT)], ids=["both", "mtime", "atime", "now"])
def test_moves_ctime(area: Path, probe: Path, kind: str, times: tuple[Time, Time]) -> None:
    path = make(kind, area / "thing")
    assert "ctime" in changed(path, probe, lambda: utimensat(path, *times, follow=False))


def test_both_omitted_changes_nothing(area: Path, probe: Path) -> None:
    path = make("file", area / "thing")
    assert changed(path, probe, lambda: utimensat(path, OMIT, OMIT)) == set()


@pytest.mark.parametrize(
    ("caller", "mode", "now", "given"),
    [
        (ALICE, 0o444, "ok", "ok"),
        (ALICE, 0o000, "ok", "ok"),
        (BOB, 0o644, "EACCES", "EPERM"),
        (BOB, 0o646, "ok", "EPERM"),
        (BOB.with_groups(ALICE.gid), 0o664, "ok", "EPERM"),
        (BOB.with_groups(ALICE.gid), 0o646, "EACCES", "EPERM"),
        (ROOT, 0o000, "ok", "ok"),
    ],
)
def test_who_may(area: Path, caller: Persona, mode: int, now: str, given: str) -> None:
    """To now: whoever may write; to another time: the owner alone."""
    path = make("file", area / "thing", mode, ALICE.uid, ALICE.gid)
    assert caller.outcome(utimensat, path, NOW, NOW) == now
    assert caller.outcome(os.utime, path) == now
    assert caller.outcome(utimensat, path, OLD, OLD) == given
    assert caller.outcome(utimensat, path, OMIT, OLD) == given
    assert caller.outcome(utimensat, path, NOW, OMIT) == given
    assert caller.outcome(utimensat, path, OMIT, OMIT) == "ok"


def test_failing_updates_nothing(area: Path, probe: Path) -> None:
    path = make("file", area / "thing")
    for times in ((OLD, OLD), (NOW, NOW)):
        assert changed(path, probe, lambda times=times: ALICE.outcome(utimensat, path, *times)) == set()


def test_follows_a_link_or_not(area: Path) -> None:
    path = make("file", area / "thing")
    (area / "link").symlink_to("thing")
    utimensat(area / "link", OLD, OLD)
    assert path.stat().st_mtime_ns == OLD
    assert (area / "link").lstat().st_mtime_ns != OLD
    utimensat(area / "link", OLD + 1, OLD + 2, follow=False)
    assert (area / "link").lstat().st_mtime_ns == OLD + 2
    assert path.stat().st_mtime_ns == OLD


@pytest.mark.parametrize("nanoseconds", [10**9, -1, 2**40, UTIME_NOW + 2])
def test_nanoseconds_out_of_range_are_einval(area: Path, nanoseconds: int) -> None:
    path = make("file", area / "thing")
    assert outcome(utimensat, path, (1, nanoseconds), (1, 0)) == "EINVAL"
    assert outcome(utimensat, path, (1, 0), (1, nanoseconds)) == "EINVAL"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
def test_futimens(area: Path, flags: int) -> None:
    path = make("file", area / "thing")
    with opened(path, flags) as descriptor:
        futimens(descriptor, OLD, OLD + 3)
        assert os.fstat(descriptor).st_mtime_ns == OLD + 3
    assert path.stat().st_mtime_ns == OLD + 3


def test_a_time_set_survives_close_and_is_not_overtaken_by_an_earlier_write(area: Path) -> None:
    path = make("file", area / "thing")
    with opened(path, os.O_RDWR) as descriptor:
        os.write(descriptor, b"written before")
        futimens(descriptor, OLD, OLD)
    assert path.stat().st_mtime_ns == OLD
    assert abs(path.stat().st_ctime_ns - time.time_ns()) < 3600 * SECOND
