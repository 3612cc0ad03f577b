"""The rows that write, and those of single large files: builds, unpacking, sequential and random access, a database; and every
operation by itself."""

import contextlib
import json
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Final

import transfers
import trees
from cells import Cell, Figure
from link import Link
from operations import OPERATIONS
from workloads import Row, Sizes, Target, empty, pushed

_HERE: Final = Path(__file__).parent
_BLOCK: Final = 4096


# A C program.


def _program(tree: Path, sizes: Sizes) -> None:
    trees.program(tree, sizes.units)
    built = tree.with_name("built")
    shutil.copytree(tree, built)
    subprocess.run(["make", "-C", built, "--silent", "-j4"], check=True, capture_output=True)


def _build(cell: Cell, tree: Path, sizes: Sizes) -> None:
    ran = cell.run(["make", "--no-print-directory", "-j4"], cwd=cell.mount)
    whole = sizes.units + 1
    name = "program"
    expected = (tree.with_name("built") / name).read_bytes()
    if not cell.keep("make -j4", ran, whole, "files", lambda: (cell.export / name).read_bytes() == expected).capped:
        cell.watch_a_change("src/u1.c")


# Many tiny files.


def _archive(tree: Path, sizes: Sizes) -> None:
    trees.tiny(tree, sizes.tiny)
    subprocess.run(["tar", "-C", tree, "-cf", tree.with_name("archive.tar"), "."], check=True)


def _unpack(cell: Cell, tree: Path, sizes: Sizes) -> None:
    archive = tree.with_name("archive.tar")
    ran = cell.run(["tar", "-C", cell.mount, "--no-same-owner", "-xvf", archive, "."])
    whole = trees.count(tree)
    if not cell.keep("tar x, tiny files", ran, whole, "files", lambda: not trees.different(tree, cell.export)).capped:
        cell.watch_a_change(str(min(tree.rglob("*.js")).relative_to(tree)))


# One large file.


def _large(tree: Path, sizes: Sizes) -> None:
    trees.large(tree, sizes.large)


def _sequential(cell: Cell, tree: Path, sizes: Sizes) -> None:
    whole = sizes.large / 2**20
    for step, file in (("write, sequential", "written"), ("read, sequential", "large")):
        words = [step.partition(",")[0], cell.mount / file, tree / "large"]
        ran = cell.run([sys.executable, _HERE / "sequential.py", *words])
        said = ran.output.read_text().splitlines()

        def right(file: str = file, said: list[str] = said) -> bool:
            same = subprocess.run(["cmp", "--quiet", cell.export / file, tree / "large"], check=False).returncode == 0
            return same and said[-1].endswith("right")

        figure = cell.keep(step, ran, whole, "MiB", right)
        if not figure.capped:
            # Without the program's start, and without the comparison at its end.
            figure.seconds = float(said[-1].split()[0])


def _limit_sequential(link: Link, tree: Path, scratch: Path, cap: float) -> dict[str, float]:
    (scratch / "pushed").mkdir()
    return {
        "write, sequential": transfers.pushed(link, tree, scratch / "pushed", cap),
        "read, sequential": transfers.pulled(link, tree, scratch / "pulled", cap),
    }


def _random(cell: Cell, tree: Path, sizes: Sizes) -> None:
    seconds = min(sizes.seconds, cell.cap)
    for depth in (1, 32):
        ran = cell.run(_reader(cell.mount / "large", depth, seconds, direct=not cell.is_local))
        if ran.status:
            raise RuntimeError(f"random reads: {ran.complaint() or ran.output.read_text()[-300:]}")
        job = json.loads(ran.output.read_text())["jobs"][0]
        reads, took, latency = job["read"]["total_ios"], job["read"]["runtime"] / 1000, job["read"]["clat_ns"]
        more = {"p99": latency.get("percentile", {}).get("99.000000", 0) / 1e9, "by": job["jobname"]}
        figure = Figure(took, reads, reads, "reads", None, ran.cpu, more)
        cell.figures[f"read 4 KiB at random, depth {depth}"] = figure
    figure.right = _same_blocks(cell.mount / "large", tree / "large", direct=not cell.is_local)
    cell.figures["read 4 KiB at random, depth 1"].right = figure.right


def _reader(file: Path, depth: int, seconds: float, *, direct: bool) -> list[str | Path]:
    """fio where there is one; else a program of ours with as many threads as requests are to be on their way."""
    if shutil.which("fio") is None:
        return [sys.executable, _HERE / "random_reads.py", file, str(depth), str(seconds), "direct" if direct else "buffered"]
    return [
        "fio", "--name=fio", f"--filename={file}", "--rw=randread", "--bs=4k", f"--direct={int(direct)}", "--ioengine=libaio",
        f"--iodepth={depth}", "--time_based", f"--runtime={seconds:g}", "--readonly", "--norandommap", "--output-format=json",
    ]  # fmt: skip


def _same_blocks(file: Path, other: Path, *, direct: bool) -> bool:
    """Whether a hundred blocks, read as they were measured, are those of the other file."""
    chance, space = random.Random(9), mmap.mmap(-1, _BLOCK)
    fd = os.open(file, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    with contextlib.closing(space), other.open("rb") as expected:
        try:
            for _ in range(100):
                offset = chance.randrange(os.fstat(expected.fileno()).st_size // _BLOCK) * _BLOCK
                if os.preadv(fd, [space], offset) != _BLOCK or space[:] != os.pread(expected.fileno(), _BLOCK, offset):
                    return False
        finally:
            os.close(fd)
    return True


def _limit_random(link: Link, tree: Path, scratch: Path, cap: float) -> dict[str, float]:
    """A read is a round trip. With 32 on their way it is a 32nd of one, or the time that the line needs for 4 KiB."""
    one = transfers.round_trip(link, 20, cap)
    line = _BLOCK * 8 / (link.megabits * 1e6) if link.megabits else 0.0
    return {"read 4 KiB at random, depth 1": one, "read 4 KiB at random, depth 32": max(one / 32, line)}


# A database.

_TRANSACTIONS: Final = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("create table t (number integer primary key, text text)")
for number in range(int(sys.argv[2])):
    connection.execute("begin")
    connection.execute("insert into t values (?, ?)", (number, f"row {number}"))
    connection.execute("commit")
    print(number, flush=True)
"""


def _sqlite(cell: Cell, tree: Path, sizes: Sizes) -> None:
    whole = sizes.transactions
    ran = cell.run([sys.executable, "-c", _TRANSACTIONS, cell.mount / "db", str(whole)])

    def right() -> bool:
        with contextlib.closing(sqlite3.connect(cell.export / "db")) as connection:
            rows = connection.execute("select number, text from t order by number").fetchall()
            sound = connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        return sound and rows == [(number, f"row {number}") for number in range(whole)]

    cell.keep("sqlite, transactions", ran, whole, "transactions", right)
    (cell.export / "watched").write_bytes(b"as it was\n")
    cell.watch_a_change("watched")


# Every operation.


def _operations(cell: Cell, tree: Path, sizes: Sizes) -> None:
    times = sizes.operations
    ran = cell.run([sys.executable, _HERE / "operations.py", cell.mount, str(times)])
    if ran.status != 0:
        raise RuntimeError(f"operations: {'cut short' if ran.status is None else ran.complaint()}")
    for step, found in json.loads(ran.output.read_text()).items():
        if "error" in found:
            cell.figures[step] = Figure(0.0, 0, 0, "operations", None, {}, found)
        else:
            more = {"mean": found["mean"], "p50": found["p50"], "p99": found["p99"]}
            cell.figures[step] = Figure(found["seconds"], times, times, "operations", found["right"], {}, more)


def _operations_limit(link: Link, tree: Path, scratch: Path, cap: float) -> dict[str, float]:
    return dict.fromkeys(OPERATIONS, transfers.round_trip(link, 100, cap))


def _nothing(tree: Path, sizes: Sizes) -> None:
    tree.mkdir()


def _any_of(*steps: str, target: Target) -> dict[str, Target]:
    return dict.fromkeys(steps, target)


WRITING: Final = (
    Row("build", {"make -j4": Target(sshfs=3)}, _program, _build, needs=("make", "gcc")),
    Row("unpack", {"tar x, tiny files": Target(sshfs=3)}, _archive, _unpack, pushed("tar x, tiny files"), prepare=empty),
    Row(
        "sequential", _any_of("write, sequential", "read, sequential", target=Target(sshfs=1.2, link=1.3, near=True)),
        _large, _sequential, _limit_sequential, needs=("cmp",),
    ),
    Row(
        "random",
        _any_of("read 4 KiB at random, depth 1", "read 4 KiB at random, depth 32", target=Target(sshfs=1.2, link=1.3, near=True)),
        _large, _random, _limit_random, each=True,
    ),
    Row("sqlite", {"sqlite, transactions": Target(sshfs=1)}, _nothing, _sqlite, prepare=empty),
    Row(
        "operations", dict.fromkeys(OPERATIONS, Target()), _nothing, _operations, _operations_limit,
        prepare=empty, only_near=True, each=True,
    ),
)  # fmt: skip

__all__ = ["WRITING"]
