"""How editors save, what both sides see of it at once, and mv --exchange."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Work, need_that, outcome
from harness.actor import actors
from harness.files import opened
from harness.syscalls import exchange

Seen = Callable[[Callable[[], bool]], None]


def test_saving_by_rename(work: Work) -> None:
    """Write a new file, fsync, rename over the old one: never a moment without content, on either side."""
    path = work.path / "document"
    for number in range(50):
        new = work.path / ".document.swp"
        with opened(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644) as descriptor:
            os.write(descriptor, f"version {number}".encode())
            os.fsync(descriptor)
        os.rename(new, path)
        assert path.read_text() == (work.behind / "document").read_text() == f"version {number}"
    assert os.listdir(work.path) == ["document"]


def test_saving_with_a_backup(work: Work) -> None:
    """As vim does: the old file moved away, a new one made in its place, the backup removed."""
    path, backup = work.path / "document", work.path / "document~"
    path.write_text("old")
    path.chmod(0o640)
    with path.open() as reader:
        path.rename(backup)
        path.write_text("new")
        path.chmod(backup.stat().st_mode & 0o7777)
        assert reader.read() == "old"
    backup.unlink()
    assert (path.read_text(), path.stat().st_mode & 0o777, os.listdir(work.behind)) == ("new", 0o640, ["document"])


def test_saving_in_place(work: Work) -> None:
    path = work.path / "document"
    for text in ("first and long", "second", "", "third and longest of all"):
        path.write_text(text)
        assert (work.behind / "document").read_text() == path.read_text() == text


@pytest.mark.beyond_libfuse("rename flags")
def test_exchange_of_two_names(work: Work) -> None:
    one, two = work.path / "one", work.path / "two"
    one.mkdir()
    (one / "inside").write_text("was in one")
    two.write_text("was two")
    moved = subprocess.run(["mv", "--exchange", one, two], capture_output=True, check=False)
    if moved.returncode != 0:
        # coreutils before 9.5 have no --exchange; the system call is what is tried.
        exchange(one, two)
    assert (one.read_text(), (two / "inside").read_text()) == ("was two", "was in one")
    assert ((work.behind / "one").read_text(), os.listdir(work.behind / "two")) == ("was two", ["inside"])


def test_an_edit_on_the_client_is_seen_on_the_server_at_once(work: Work, seen: Seen) -> None:
    """stat, content and listing, also of what the kernel has already seen and may remember."""
    here, there = work.path / "document", work.behind / "document"
    for number in range(30):
        text = "x" * number + "!"
        there.write_text(text)
        there.chmod(0o600 + number % 8)
        now = (number + 1, 0o600 + number % 8, text)
        seen(lambda now=now: (here.stat().st_size, here.stat().st_mode & 0o777, here.read_text()) == now)  # type: ignore[misc]
        (work.behind / f"new-{number}").write_text("")
        seen(lambda number=number: f"new-{number}" in os.listdir(work.path))  # type: ignore[misc]
        assert (work.path / f"new-{number}").stat().st_size == 0
    there.unlink()
    seen(lambda: outcome(os.stat, here) == "ENOENT")
    there.mkdir()
    seen(here.is_dir)


@pytest.mark.parametrize(
    "side",
    [
        pytest.param("path", id="on-the-server", marks=pytest.mark.beyond_libfuse("atomic replacement")),
        pytest.param("behind", id="on-the-client"),
    ],
)
def test_a_reader_never_misses_a_file_that_is_saved_by_rename(work: Work, side: str, seen: Seen) -> None:
    """Between its lookup and its opening the name may come to mean another file: then that one is read."""
    document, here = getattr(work, side) / "document", work.path / "document"
    document.write_bytes(b"0" * 5000)
    seen(here.exists)
    with actors(1) as (writer,):
        for number in range(300):
            writer.tell("replace", document, str(number % 10).encode() * 5000)
            for content in (here.read_bytes(), here.read_bytes()):
                assert (len(content), len(set(content))) == (5000, 1)
            assert here.stat().st_size == 5000
            writer.answer()
            now = str(number % 10).encode() * 5000
            seen(lambda now=now: here.read_bytes() == now)  # type: ignore[misc]


def test_a_same_sized_edit_on_the_client_is_read_by_the_next_open(work: Work, seen: Seen) -> None:
    here, there = work.path / "document", work.behind / "document"
    there.write_bytes(b"old content " * 1000)
    seen(lambda: here.read_bytes() == b"old content " * 1000)
    there.write_bytes(b"new content " * 1000)
    seen(lambda: here.read_bytes() == b"new content " * 1000)


def test_a_name_that_was_missing_appears_and_goes(work: Work, seen: Seen) -> None:
    here, there = work.path / "later", work.behind / "later"
    for _ in range(10):
        seen(lambda: outcome(os.stat, here) == "ENOENT")
        there.write_text("now")
        seen(lambda: here.read_text() == "now")
        there.unlink()


def test_an_edit_on_the_server_is_seen_on_the_client_at_once(work: Work, seen: Seen) -> None:
    here, there = work.path / "document", work.behind / "document"
    with opened(here, os.O_CREAT | os.O_WRONLY) as descriptor:
        for number in range(1, 30):
            os.write(descriptor, b"y")
            seen(lambda number=number: there.read_bytes() == b"y" * number)  # type: ignore[misc]
        os.ftruncate(descriptor, 3)
        assert there.stat().st_size == 3
    here.chmod(0o640)
    os.utime(here, ns=(10**18, 10**18 + 1))
    assert (there.stat().st_mode & 0o777, there.stat().st_mtime_ns) == (0o640, 10**18 + 1)
    here.rename(work.path / "renamed")
    assert os.listdir(work.behind) == ["renamed"]


def test_a_growing_log_is_followed(work: Work, seen: Seen) -> None:
    """tail -f on the server of a file that a program on the client appends to, through one open descriptor."""
    here, there = work.path / "log", work.behind / "log"
    there.write_bytes(b"")
    seen(here.exists)
    with opened(here, os.O_RDONLY) as reader, opened(there, os.O_WRONLY | os.O_APPEND) as writer:
        for number in range(50):
            line = f"line {number}\n".encode()
            os.write(writer, line)
            seen(lambda line=line: os.fstat(reader).st_size >= 0 and os.read(reader, 1000) == line)  # type: ignore[misc]


def test_a_directory_moved_on_the_client_is_found_under_its_new_name(work: Work, seen: Seen) -> None:
    (work.behind / "one" / "two").mkdir(parents=True)
    (work.behind / "one" / "two" / "file").write_text("content")
    seen(lambda: (work.path / "one" / "two" / "file").read_text() == "content")
    (work.behind / "one").rename(work.behind / "moved")
    seen(lambda: (work.path / "moved" / "two" / "file").read_text() == "content")
    seen(lambda: outcome(os.stat, work.path / "one" / "two" / "file") == "ENOENT")


def test_a_sparse_file_of_five_gibibytes_is_copied_as_one(driver: str, work: Work, tmp_path: Path) -> None:
    size = 5 * 2**30
    there = work.behind / "sparse"
    with opened(there, os.O_CREAT | os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, size)
        for offset in (0, 2**31, 2**32 + 12_345, size - 7):
            os.pwrite(descriptor, b"landmark"[: size - offset], offset)
    need_that(there.stat().st_blocks * 512 < 2**20, "the filesystem under the export keeps no holes")
    # libfuse has no lseek, so cp reads all of it there, which takes half a minute.
    targets = [tmp_path / "outside", *([work.path / "inside"] if driver != "libfuse" else [])]
    for target in targets:
        subprocess.run(["cp", "--sparse=auto", work.path / "sparse", target], check=True, timeout=480)
        with opened(target, os.O_RDONLY) as descriptor:
            assert os.fstat(descriptor).st_size == size
            assert os.fstat(descriptor).st_blocks * 512 < 16 * 2**20
            for offset in (0, 2**31, 2**32 + 12_345, size - 7):
                assert os.pread(descriptor, 8, offset) == b"landmark"[: size - offset]
            assert os.pread(descriptor, 8, 2**32) == bytes(8)


@pytest.mark.parametrize("block", [512, 4096, 100_000, 2**20, 5 * 2**20])
def test_dd_in_any_block_size(work: Work, block: int) -> None:
    content = bytes(range(256)) * (6 * 4096)
    source = work.behind / "source"
    source.write_bytes(content)
    subprocess.run(
        ["dd", f"if={work.path}/source", f"of={work.path}/copy", f"bs={block}", "conv=fsync", "status=none"], check=True
    )
    assert (work.behind / "copy").read_bytes() == content
