"""symlink(2) and readlink(2)."""

import os
from pathlib import Path

import pytest
from harness import ALICE, outcome
from harness.clock import changed
from harness.files import make, mode_of

TARGETS = ["target", "../target", "/etc/passwd", "a//b/./c/", "with space\nand newline", "x" * 255, "y/" * 2047 + "z"]


@pytest.mark.parametrize("target", TARGETS, ids=len)
def test_the_target_is_kept_to_the_byte(area: Path, target: str) -> None:
    os.symlink(target, area / "link")
    assert os.readlink(area / "link") == target
    assert (area / "link").lstat().st_size == len(target)


def test_a_target_that_is_not_utf_8(area: Path) -> None:
    os.symlink(b"\xff\xfe\x80", os.fsencode(area / "link"))
    assert os.readlink(os.fsencode(area / "link")) == b"\xff\xfe\x80"


@pytest.mark.parametrize(("length", "expected"), [(0, "ENOENT"), (4095, "ok"), (4096, "ENAMETOOLONG")])
def test_the_length_of_a_target(area: Path, length: int, expected: str) -> None:
    assert outcome(os.symlink, "t" * length, area / "link") == expected


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "socket"])
def test_readlink_of_anything_else_is_einval(area: Path, kind: str) -> None:
    assert outcome(os.readlink, make(kind, area / "thing")) == "EINVAL"


def test_a_dangling_link_becomes_whole_when_its_target_is_made(area: Path) -> None:
    os.symlink("later", area / "link")
    assert outcome(os.stat, area / "link") == "ENOENT"
    (area / "link").write_text("made through the link")
    assert (area / "later").read_text() == "made through the link"


def test_relative_absolute_and_chained_links_resolve(area: Path) -> None:
    make("directory", area / "directory")
    (area / "directory" / "file").write_text("content")
    os.symlink("directory", area / "one")
    os.symlink("one/../one/file", area / "two")
    os.symlink(area / "two", area / "three")
    assert (area / "three").read_text() == "content"
    os.symlink("..", area / "directory" / "up")
    assert (area / "one" / "up" / "one" / "up" / "two").read_text() == "content"


def test_forty_links_resolve_and_forty_one_do_not(area: Path) -> None:
    (area / "0").write_text("end")
    for number in range(1, 42):
        os.symlink(str(number - 1), area / str(number))
    assert (area / "40").read_text() == "end"
    assert outcome(os.stat, area / "41") == "ELOOP"


def test_anyone_may_read_a_link(area: Path) -> None:
    os.symlink("target", area / "link")
    assert mode_of(area / "link") == 0o777
    assert ALICE.call(os.readlink, area / "link") == "target"


def test_a_link_replaced_leads_elsewhere_at_once(area: Path) -> None:
    (area / "one").write_text("one")
    (area / "two").write_text("two")
    os.symlink("one", area / "link")
    assert (area / "link").read_text() == "one"
    os.unlink(area / "link")
    os.symlink("two", area / "link")
    assert (area / "link").read_text() == "two"
    os.symlink("one", area / "new")
    os.rename(area / "new", area / "link")
    assert os.readlink(area / "link") == "one"
    assert (area / "link").read_text() == "one"


def test_reading_a_link_changes_no_mtime_or_ctime(area: Path, probe: Path) -> None:
    os.symlink("target", area / "link")
    assert changed(area / "link", probe, lambda: os.readlink(area / "link")) <= {"atime"}
