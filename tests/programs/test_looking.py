"""find, grep -r, ls -lR and du over a tree of several thousand files say on the mount what they say on the client."""

import subprocess
from pathlib import Path

import pytest
from harness import Mounted, Work, need
from harness.trees import describe, source_tree


@pytest.fixture(scope="module")
def tree(mounted: Mounted) -> Work:
    """About 3,000 files, made on the client."""
    work = mounted.work("tree")
    source_tree(work.behind, 120, 25)
    return work


def said(directory: Path, *command: str) -> list[str]:
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=False, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    )
    assert done.stderr == ""
    return sorted(done.stdout.split("\n"))


@pytest.mark.parametrize(
    "command",
    [
        ["find", ".", "-printf", "%p %y %m %s %T@ %n %l %i\n"],
        ["find", ".", "-type", "f", "-size", "+1k", "-name", "*7.txt"],
        ["grep", "-r", "line of 3 and 1"],
        ["grep", "-rc", "server", "part-3"],
        ["ls", "-lR", "--time-style=full-iso"],
        # Each hard link: else it is whichever is listed first, and each filesystem has an order of its own.
        ["du", "-ab", "--count-links"],
        ["wc", "-c", "-L", "part-1/module-1/file-0.txt", "part-2/module-2/file-9.txt"],
    ],
    ids=lambda command: "-".join(command[:2]).replace("/", ""),
)
def test_the_same_on_both_sides(tree: Work, command: list[str]) -> None:
    need(command[0])
    here, there = said(tree.path, *command), said(tree.behind, *command)
    assert len(there) > 2
    assert here == there


def test_the_whole_tree_is_the_same(tree: Work) -> None:
    assert describe(tree.path) == describe(tree.behind)


def test_several_searches_at_once(tree: Work) -> None:
    need("grep")
    searches = [
        subprocess.Popen(["grep", "-rc", word, "."], cwd=tree.path, stdout=subprocess.PIPE)
        for word in ("gate", "server", "file", "line")
    ]
    outputs = [search.communicate()[0] for search in searches]
    for word, output in zip(("gate", "server", "file", "line"), outputs, strict=True):
        expected = subprocess.run(["grep", "-rc", word, "."], cwd=tree.behind, stdout=subprocess.PIPE, check=False).stdout
        assert sorted(output.splitlines()) == sorted(expected.splitlines())


def test_moving_and_removing_it_all(tree: Work) -> None:
    (tree.path / "part-5").rename(tree.path / "moved")
    assert (tree.behind / "moved").is_dir()
    assert describe(tree.path / "moved") == describe(tree.behind / "moved")
    subprocess.run(["rm", "-r", tree.path / "moved"], check=True)
    assert not (tree.behind / "moved").exists()
