"""git on the mount."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Work, need
from harness.trees import describe, source_tree
from harness.waiting import until

IDENTITY = {"GIT_AUTHOR_NAME": "Test", "GIT_AUTHOR_EMAIL": "test@example.org", "GIT_COMMITTER_NAME": "Test"}
IDENTITY |= {"GIT_COMMITTER_EMAIL": "test@example.org", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}


def git(directory: Path, *arguments: str, **environment: str) -> str:
    """What git says. Raises AssertionError with its complaint."""
    command = ["git", "-c", "init.defaultBranch=main", "-c", "safe.directory=*", "-C", str(directory), *arguments]
    run = subprocess.run(command, env={**os.environ, **IDENTITY, **environment}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"git {' '.join(arguments)}: {run.returncode}\n{run.stdout}\n{run.stderr}"
    return run.stdout


@pytest.fixture
def repository(work: Work) -> Iterator[Path]:
    """A repository on the mount with one commit of a few hundred files."""
    need("git")
    root = work.path / "repository"
    root.mkdir()
    source_tree(root, 8, 20)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    yield root
    git(root, "fsck", "--strict", "--full")


def test_a_commit_and_a_clean_status(repository: Path) -> None:
    assert git(repository, "status", "--porcelain") == ""
    assert len(git(repository, "ls-files", "-z").split("\0")) == 8 * 22 + 3
    (repository / "part-0" / "module-0" / "file-3.txt").write_text("changed")
    (repository / "new").write_text("new")
    assert git(repository, "status", "--porcelain") == " M part-0/module-0/file-3.txt\n?? new\n"
    git(repository, "commit", "--quiet", "-a", "-m", "second")
    assert git(repository, "diff", "--stat", "HEAD~1", "HEAD").endswith("1 file changed, 1 insertion(+), 2 deletions(-)\n")


def test_a_second_status_reads_no_file_and_writes_no_index(repository: Path, tmp_path: Path) -> None:
    """Inode numbers, ctimes and the rest stay as they were, or git would hash everything anew each time."""
    # What was changed in the second in which the index is written git reads again (gitformat-index(5), racily clean entries).
    newest = max(path.lstat().st_mtime for path in repository.rglob("*"))
    until(lambda: int(time.time()) > int(newest), "the next second")
    git(repository, "status")
    index = repository / ".git" / "index"
    before = index.stat().st_ino, index.stat().st_mtime_ns
    trace = tmp_path / "trace"
    git(repository, "status", GIT_TRACE2_EVENT=str(trace))
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == before
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    counts = {event["key"]: event["value"] for event in events if event["event"] == "data"}
    assert counts["refresh/sum_scan"] == "0" or counts["refresh/sum_scan"] == 0
    cached = git(repository, "ls-files", "--debug", "part-1/module-1/file-0.txt")
    info = (repository / "part-1/module-1/file-0.txt").lstat()
    assert f"ctime: {info.st_ctime_ns // 10**9}:{info.st_ctime_ns % 10**9}\n" in cached
    assert f"mtime: {info.st_mtime_ns // 10**9}:{info.st_mtime_ns % 10**9}\n" in cached
    assert f"ino: {info.st_ino & 0xFFFFFFFF}\n" in cached


def test_gc_packs_and_loses_nothing(repository: Path) -> None:
    for number in range(5):
        (repository / "file").write_text(str(number) * 1000)
        git(repository, "add", "file")
        git(repository, "commit", "--quiet", "-m", str(number))
    git(repository, "gc", "--quiet", "--prune=now")
    assert list((repository / ".git" / "objects" / "pack").glob("*.pack"))
    assert git(repository, "rev-list", "--count", "HEAD") == "6\n"
    assert git(repository, "status", "--porcelain") == ""


def test_checkout_of_another_branch_and_back(repository: Path) -> None:
    first = {path: entry[:2] for path, entry in describe(repository).items() if not path.startswith(".git")}
    git(repository, "checkout", "--quiet", "-b", "other")
    git(repository, "rm", "--quiet", "-r", "part-2")
    git(repository, "mv", "part-3", "moved")
    (repository / "part-0" / "module-0" / "file-0.txt").unlink()
    (repository / "part-0" / "module-0" / "file-0.txt").mkdir()
    (repository / "part-0" / "module-0" / "file-0.txt" / "inside").write_text("a directory now")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "other")
    git(repository, "checkout", "--quiet", "main")
    assert (repository / "part-3").is_dir()
    assert (repository / "part-0" / "module-0" / "file-0.txt").is_file()
    git(repository, "checkout", "--quiet", "other")
    assert not (repository / "part-2").exists()
    assert (repository / "moved").is_dir()
    git(repository, "checkout", "--quiet", "main")
    assert git(repository, "status", "--porcelain") == ""
    names = {path for path in describe(repository) if not path.startswith(".git")}
    assert names == set(first) - {"empty"} | ({"empty"} & names)


def test_clone_from_the_mount_and_into_it(repository: Path, work: Work, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", f"file://{repository}", "outside")
    git(work.path, "clone", "--quiet", str(tmp_path / "outside"), "inside")
    git(work.path, "clone", "--quiet", str(repository), "linked")
    head = git(repository, "rev-parse", "HEAD")
    for clone in (tmp_path / "outside", work.path / "inside", work.path / "linked"):
        assert git(clone, "rev-parse", "HEAD") == head
        assert git(clone, "status", "--porcelain") == ""
        git(clone, "fsck", "--strict")


def test_the_client_sees_the_same_repository(repository: Path, work: Work) -> None:
    behind = work.behind / "repository"
    assert git(behind, "log", "--oneline").count("\n") == 1
    git(behind, "fsck", "--strict")
    (behind / "from-the-client").write_text("new")
    git(behind, "add", "from-the-client")
    git(behind, "commit", "--quiet", "-m", "from the client")
    assert git(repository, "log", "-1", "--format=%s") == "from the client\n"
    assert git(repository, "status", "--porcelain") == ""


def test_merge_rebase_and_stash(repository: Path) -> None:
    git(repository, "checkout", "--quiet", "-b", "side")
    (repository / "side").write_text("side")
    git(repository, "add", "side")
    git(repository, "commit", "--quiet", "-m", "side")
    git(repository, "checkout", "--quiet", "main")
    (repository / "main").write_text("main")
    git(repository, "add", "main")
    git(repository, "commit", "--quiet", "-m", "main")
    git(repository, "merge", "--quiet", "--no-edit", "side")
    (repository / "main").write_text("dirty")
    git(repository, "stash", "--quiet")
    assert (repository / "main").read_text() == "main"
    git(repository, "stash", "pop", "--quiet")
    assert (repository / "main").read_text() == "dirty"
    git(repository, "checkout", "--quiet", "main", "--", "main")
    git(repository, "rebase", "--quiet", "side")
    assert sorted(path.name for path in repository.iterdir() if path.name in ("main", "side")) == ["main", "side"]
