"""The rows that read: what programs do on the mount, and what must come out. Those that write are in writing.py."""

import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import transfers
import trees
from cells import Cell, Ran
from link import Link


@dataclass(frozen=True)
class Sizes:
    """How much there is to do: `scale` 1 is the full size."""

    scale: float

    def of(self, whole: int, least: int = 1) -> int:
        return max(least, round(whole * self.scale))

    files = property(lambda self: self.of(5000, 20))
    tiny = property(lambda self: self.of(20_000, 40))
    units = property(lambda self: self.of(120, 6))
    large = property(lambda self: self.of(1024) * 2**20)
    transactions = property(lambda self: self.of(1000, 10))
    seconds = property(lambda self: max(1.0, 10 * self.scale))
    operations = property(lambda self: self.of(1000, 10))


@dataclass(frozen=True)
class Target:
    """What is promised of one step at 20 ms: so many times faster than sshfs, within so many times of the link or of a plain
    directory. `near`: at 0 ms too, as far as sshfs goes."""

    sshfs: float | None = None
    link: float | None = None
    local: float | None = None
    near: bool = False


@dataclass(frozen=True)
class Row:
    """`plant(tree, sizes)` makes what is to be there; `prepare(tree, export)` the export of one cell, by default a copy of it;
    `work(cell, tree, sizes)` is what is measured; `limit(link, tree, scratch, cap)` gives the seconds by step that the link alone
    would take; for one operation if `each`. `needs` are programs. `steps` are those that `work` enters, with what is promised."""

    name: str
    steps: dict[str, Target]
    plant: Callable[[Path, Sizes], object]
    work: Callable[[Cell, Path, Sizes], None]
    limit: Callable[[Link, Path, Path, float], dict[str, float]] | None = None
    prepare: Callable[[Path, Path], object] = field(default=lambda tree, export: copy(tree, export))
    needs: tuple[str, ...] = ()
    only_near: bool = False
    each: bool = False


def copy(tree: Path, export: Path) -> None:
    subprocess.run(["cp", "-a", "--reflink=auto", tree, export], check=True)


def empty(_tree: Path, export: Path) -> None:
    export.mkdir()


# A source tree.


def _source(tree: Path, sizes: Sizes) -> None:
    trees.source(tree, sizes.files)


def _a_file(tree: Path) -> str:
    return str(min(tree.rglob("*.c")).relative_to(tree))


def _tar(cell: Cell, tree: Path, sizes: Sizes) -> None:
    archive = cell.scratch / "archive"
    ran = cell.run(["tar", "-C", cell.mount, "-cvf", archive, "."])
    cell.keep("tar, cold", ran, trees.count(tree), "files", lambda: _holds(archive, cell.export))
    cell.watch_a_change(_a_file(tree))


def _holds(archive: Path, export: Path) -> bool:
    """Whether it has what `export` has: names, kinds, permissions, times and content."""
    names = set()
    with tarfile.open(archive) as members:
        for member in members:
            real = export / member.name
            stat = real.lstat()
            names.add(member.name)
            if (member.mode, int(member.mtime), member.isdir()) != (stat.st_mode & 0o7777, int(stat.st_mtime), real.is_dir()):
                return False
            if member.isfile():
                content = members.extractfile(member)
                if content is None or content.read() != real.read_bytes():
                    return False
    return len(names) == trees.count(export)


def _grep(cell: Cell, tree: Path, sizes: Sizes) -> None:
    command = ["grep", "-rc", "--line-buffered", trees.NEEDLE, "."]

    def right(ran: Ran) -> bool:
        expected = subprocess.run(command, cwd=cell.export, capture_output=True, check=True).stdout
        return sorted(ran.output.read_bytes().splitlines()) == sorted(expected.splitlines())

    cold = cell.run(command, cwd=cell.mount)
    cell.keep("grep -r, cold", cold, sizes.files, "files", lambda: right(cold))
    cell.watch_a_change(_a_file(tree))
    _warm(cell, "grep -r, warm", cold, command, sizes.files, right)


def _find(cell: Cell, tree: Path, sizes: Sizes) -> None:
    command = ["stdbuf", "-oL", "find", ".", "-ls"]
    whole = trees.count(tree)

    def seen(output: bytes) -> list[list[bytes]]:
        # Permissions, owner, group, size, time, name: neither inode numbers nor links, which sshfs does not know.
        return sorted([line.split(maxsplit=10)[2], *line.split(maxsplit=10)[4:]] for line in output.splitlines())

    def right(ran: Ran) -> bool:
        expected = subprocess.run(command, cwd=cell.export, capture_output=True, check=True).stdout
        return seen(ran.output.read_bytes()) == seen(expected)

    cold = cell.run(command, cwd=cell.mount)
    cell.keep("find -ls, cold", cold, whole, "files", lambda: right(cold))
    cell.watch_a_change(_a_file(tree))
    _warm(cell, "find -ls, warm", cold, command, whole, right)


def _warm(cell: Cell, step: str, cold: Ran, command: list[str], whole: int, right: Callable[[Ran], bool]) -> None:
    """What was read before, once more: as far as that came, if it was cut short."""
    ran = cell.again(lambda: cell.run(command, cwd=cell.mount, lines=cold.lines if cold.status is None else None))
    figure = cell.keep(step, ran, whole, "files", lambda: right(ran))
    if cold.status is None:
        figure.more["after"] = cold.lines


# A git repository.


def _status(cell: Cell, tree: Path, sizes: Sizes) -> None:
    index = cell.export / ".git" / "index"
    trees.settle(cell.export)
    known = index.read_bytes()
    whole = sizes.files

    def status() -> Ran:
        return cell.run(["git", "status", "--porcelain"], cwd=cell.mount, env=trees.GIT)

    for step, ask in (("git status, cold", status), ("git status, warm", lambda: cell.again(status))):
        ran = ask()
        figure = cell.keep(step, ran, whole, "files", lambda ran=ran: ran.output.read_bytes() == b"", units=0)
        # Git writes an index anew when it had to read a file to know that it is the same.
        figure.more["rehashed"] = index.read_bytes() != known
        known = index.read_bytes()
        # One that was cut short may leave it.
        index.with_name("index.lock").unlink(missing_ok=True)
    changed = int(subprocess.run(
        "git diff --name-only main other | wc -l", shell=True, cwd=cell.export, capture_output=True, check=True, env=trees.GIT,
    ).stdout)  # fmt: skip
    ran = cell.run(["git", "checkout", "--progress", "other"], cwd=cell.mount, env=trees.GIT)

    def right() -> bool:
        # Reads whatever git would not take for unchanged by its attributes.
        command = ["git", "status", "--porcelain", "--branch"]
        said = subprocess.run(command, cwd=cell.export, capture_output=True, check=True, env=trees.GIT)
        return said.stdout == b"## other\n"

    cell.keep("git checkout", ran, changed, "files", right, units=_updated(ran))
    cell.watch_a_change(_a_file(tree))


def _updated(ran: Ran) -> int:
    """Files that git says it has written."""
    said = re.findall(r"Updating files: +\d+% \((\d+)/", ran.complaint())
    return int(said[-1]) if said else 0


def _clone(cell: Cell, tree: Path, sizes: Sizes) -> None:
    ran = cell.run(["git", "clone", "--progress", f"file://{tree}", cell.mount / "clone"], env=trees.GIT)

    def right() -> bool:
        made = cell.export / "clone"
        whole = subprocess.run(["git", "fsck", "--full"], cwd=made, capture_output=True, check=False, env=trees.GIT)
        return whole.returncode == 0 and not trees.different(tree, made, times=False, skip=".git")

    if not cell.keep("git clone", ran, sizes.files, "files", right, units=_updated(ran)).capped:
        cell.watch_a_change(f"clone/{_a_file(tree)}")


# A package of Python.


def _import(cell: Cell, tree: Path, sizes: Sizes) -> None:
    names = (tree / ".names").read_text()
    text = (
        f"import sys; sys.path.insert(0, sys.argv[1]); import {names}; import os\n"
        "print(sorted(sys.modules))\n"
        "print(sorted(os.path.relpath(m.__file__, sys.argv[1]) for m in sys.modules.values()\n"
        "    if (getattr(m, '__file__', None) or '').startswith(sys.argv[1])))\n"
    )
    # It says a line for each module, so that what was cut short can be compared.
    command = [sys.executable, "-I", "-B", "-X", "importtime", "-c", text]
    expected = subprocess.run([*command, cell.export], capture_output=True, check=True)
    whole = expected.stderr.count(b"\n")

    def use() -> Ran:
        return cell.run([*command, cell.mount])

    for step, start in (("python import, cold", use), ("python import, warm", lambda: cell.again(use))):
        ran = start()
        units = ran.errors.read_bytes().count(b"\n")
        cell.keep(step, ran, whole, "modules", lambda ran=ran: ran.output.read_bytes() == expected.stdout, units=units)
    cell.watch_a_change(".names")


def _package(tree: Path, sizes: Sizes) -> None:
    name = trees.package(tree)
    (tree / ".names").write_text(name)


def _pulled(*steps: str) -> Callable[[Link, Path, Path, float], dict[str, float]]:
    def limit(link: Link, tree: Path, scratch: Path, cap: float) -> dict[str, float]:
        seconds = transfers.pulled(link, tree, scratch / "pulled", cap)
        return dict.fromkeys(steps, seconds)

    return limit


def pushed(*steps: str) -> Callable[[Link, Path, Path, float], dict[str, float]]:
    def limit(link: Link, tree: Path, scratch: Path, cap: float) -> dict[str, float]:
        (scratch / "pushed").mkdir()
        return dict.fromkeys(steps, transfers.pushed(link, tree, scratch / "pushed", cap))

    return limit


READING: Final = (
    Row("tar", {"tar, cold": Target(sshfs=20, link=3)}, _source, _tar, _pulled("tar, cold")),
    Row(
        "grep",
        {"grep -r, cold": Target(sshfs=20), "grep -r, warm": Target(sshfs=20, local=2)},
        _source, _grep, _pulled("grep -r, cold"),
    ),
    Row("find", {"find -ls, cold": Target(), "find -ls, warm": Target(sshfs=20, local=2)}, _source, _find, needs=("stdbuf",)),
    Row(
        "git",
        {"git status, cold": Target(sshfs=5), "git status, warm": Target(sshfs=20), "git checkout": Target(sshfs=2)},
        lambda tree, sizes: trees.repository(tree, sizes.files), _status, needs=("git",),
    ),
    Row(
        "clone", {"git clone": Target(sshfs=2)}, lambda tree, sizes: trees.repository(tree, sizes.files), _clone,
        pushed("git clone"), prepare=empty, needs=("git",),
    ),
    Row(
        "import", {"python import, cold": Target(sshfs=5), "python import, warm": Target()}, _package, _import,
        _pulled("python import, cold"),
    ),
)  # fmt: skip

__all__ = ["READING", "Row", "Sizes", "Target", "pushed"]
