"""tar, rsync and cp: what goes through the mount comes back the same."""

import os
import subprocess
from pathlib import Path

import pytest
from harness import Work, need
from harness.trees import describe, source_tree


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == ""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree outside the mount. Its files are ours, as everything is on a mount with mapped ownership."""
    root = tmp_path / "source"
    root.mkdir()
    source_tree(root, 15, 20)
    return root


def test_tar_in_and_out(source: Path, work: Work, tmp_path: Path) -> None:
    need("tar")
    for name in ("inside", "outside"):
        ((work.path if name == "inside" else tmp_path) / name).mkdir()
    run("tar", "--format=pax", "-C", source, "-cf", tmp_path / "in.tar", ".")
    run("tar", "-C", work.path / "inside", "-xpf", tmp_path / "in.tar")
    assert describe(work.path / "inside") == describe(source)
    assert describe(work.behind / "inside") == describe(source)
    run("tar", "--format=pax", "-C", work.path / "inside", "-cf", work.path / "out.tar", ".")
    run("tar", "-C", tmp_path / "outside", "-xpf", work.path / "out.tar")
    assert describe(tmp_path / "outside") == describe(source)
    run("tar", "-C", work.path / "inside", "--compare", "-f", tmp_path / "in.tar")


def test_rsync_in_and_out(source: Path, work: Work, tmp_path: Path) -> None:
    need("rsync")
    run("rsync", "-aH", "--modify-window=-1", f"{source}/", f"{work.path}/inside/")
    assert describe(work.path / "inside") == describe(source)
    run("rsync", "-aH", "--modify-window=-1", f"{work.path}/inside/", f"{tmp_path}/outside/")
    assert describe(tmp_path / "outside") == describe(source)


def test_rsync_finds_nothing_to_do_the_second_time_and_only_what_changed(source: Path, work: Work) -> None:
    need("rsync")
    command = ["rsync", "-aHi", "--modify-window=-1", "--delete", f"{source}/", f"{work.path}/inside/"]
    subprocess.run(command, check=True, capture_output=True)
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == ""
    (source / "part-1" / "module-1" / "file-5.txt").write_text("changed")
    (source / "part-1" / "module-1" / "file-6.txt").unlink()
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert sorted(line.split(" ", 1)[1].strip() for line in told if not line.startswith(".d")) == [
        "part-1/module-1/file-5.txt",
        "part-1/module-1/file-6.txt",
    ]
    assert describe(work.path / "inside") == describe(source)


def test_cp_keeps_all(source: Path, work: Work) -> None:
    run("cp", "-a", source, work.path / "inside")
    run("cp", "-a", work.path / "inside", work.path / "again")
    assert describe(work.path / "again") == describe(source)
    run("rm", "-r", work.path / "again", work.path / "inside")
    assert os.listdir(work.behind) == []
