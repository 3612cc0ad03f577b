"""What is done on each mount, and how long it takes."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 2**20


@dataclass(frozen=True)
class Row:
    """`measure(root, amount)` does it `amount` times (or with so many bytes) beneath `root`; what it returns is in `unit`."""

    name: str
    measure: Callable[[Path, int], float]
    amount: int
    unit: str

    @property
    def operations(self) -> int:
        """How many `amount` is: of bytes, the MiB."""
        return self.amount // MIB if self.unit == "ms" else self.amount


def rows(count: int, mebibytes: int) -> list[Row]:
    """In this order: what one makes, a later one removes."""
    return [
        Row("stat, uncached", _stat, count, "µs"),
        Row("open, read 4 KiB, close", _open_read_close, count, "µs"),
        Row("create, write 4 KiB, close", _create, count, "µs"),
        Row("unlink", _unlink, count, "µs"),
        Row(f"write {mebibytes} MiB, fsync", _write_sequential, mebibytes * MIB, "ms"),
        Row(f"read {mebibytes} MiB", _read_sequential, mebibytes * MIB, "ms"),
    ]


def plant(export: Path) -> None:
    """The tree that the rows work on."""
    (export / "tree").mkdir(parents=True)
    for number in range(100):
        (export / "tree" / f"f{number}").write_bytes(os.urandom(4096))


def _timed(count: int, operation: Callable[[int], object]) -> float:
    """Microseconds for one operation."""
    start = time.perf_counter()
    for number in range(count):
        operation(number)
    return (time.perf_counter() - start) / count * 1e6


def _stat(root: Path, count: int) -> float:
    path = os.fsencode(root / "tree" / "f0")
    return _timed(count, lambda _: os.stat(path))


def _open_read_close(root: Path, count: int) -> float:
    def one(number: int) -> None:
        fd = os.open(root / "tree" / f"f{number % 100}", os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)

    return _timed(count, one)


def _create(root: Path, count: int) -> float:
    data = b"x" * 4096
    directory = root / f"made-{root.name}"
    directory.mkdir()

    def one(number: int) -> None:
        fd = os.open(directory / f"n{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, data)
        os.close(fd)

    return _timed(count, one)


def _unlink(root: Path, count: int) -> float:
    directory = root / f"made-{root.name}"
    names = sorted(os.listdir(directory))[:count]
    result = _timed(len(names), lambda number: os.unlink(directory / names[number]))
    shutil.rmtree(directory)
    return result


def _write_sequential(root: Path, size: int) -> float:
    """Milliseconds for the whole file."""
    data = os.urandom(MIB)
    start = time.perf_counter()
    with open(root / f"large-{root.name}", "wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(data)
        os.fsync(file.fileno())
    return (time.perf_counter() - start) * 1e3


def _read_sequential(root: Path, size: int) -> float:
    start = time.perf_counter()
    left = size
    with open(root / f"large-{root.name}", "rb", buffering=0) as file:
        while chunk := file.read(MIB):
            left -= len(chunk)
    assert left == 0, "the file came back with another length"
    elapsed = (time.perf_counter() - start) * 1e3
    os.unlink(root / f"large-{root.name}")
    return elapsed
