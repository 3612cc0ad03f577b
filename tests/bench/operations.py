"""operations.py DIRECTORY TIMES: every operation of a filesystem by itself, so many times, in a new directory beneath; prints the
seconds of each as JSON: mean, median and 99th percentile. What a filesystem does not have is told by the errno."""

import contextlib
import errno
import fcntl
import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Step = Callable[[int], object]
DATA = bytes(range(256)) * 16
FILES = 100


class Scene:
    """`root` has files f0 to f99 of 4 KiB each, in the directory `d`."""

    def __init__(self, root: Path, times: int) -> None:
        self.root, self.times = os.fsencode(root), times
        os.mkdir(self.at("d"))
        for number in range(FILES):
            with open(self.file(number), "wb") as file:
                file.write(DATA)
        self.fd = os.open(self.file(0), os.O_RDWR)

    def at(self, name: str) -> bytes:
        return self.root + b"/" + name.encode()

    def file(self, number: int) -> bytes:
        return self.at(f"d/f{number % FILES}")


def _stat(scene: Scene) -> Step:
    return lambda number: os.stat(scene.file(number)).st_size == len(DATA)


def _missing(scene: Scene) -> Step:
    return lambda number: not os.path.exists(scene.at(f"d/none{number}"))


def _open_close(scene: Scene) -> Step:
    return lambda number: os.close(os.open(scene.file(number), os.O_RDONLY))


def _open_read_close(scene: Scene) -> Step:
    def one(number: int) -> bool:
        fd = os.open(scene.file(number), os.O_RDONLY)
        data = os.read(fd, len(DATA))
        os.close(fd)
        return data == DATA

    return one


def _read(scene: Scene) -> Step:
    return lambda _: os.pread(scene.fd, len(DATA), 0) == DATA


def _write(scene: Scene) -> Step:
    return lambda _: os.pwrite(scene.fd, DATA, 0) == len(DATA)


def _fsync(scene: Scene) -> Step:
    def one(number: int) -> None:
        os.pwrite(scene.fd, DATA, 0)
        os.fsync(scene.fd)

    return one


def _create(scene: Scene) -> Step:
    os.mkdir(scene.at("made"))
    return lambda number: os.close(os.open(scene.at(f"made/n{number}"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def _rename(scene: Scene) -> Step:
    return lambda number: os.rename(scene.at(f"made/n{number}"), scene.at(f"made/m{number}"))


def _link(scene: Scene) -> Step:
    return lambda number: os.link(scene.at(f"made/m{number}"), scene.at(f"made/l{number}"))


def _unlink(scene: Scene) -> Step:
    return lambda number: os.unlink(scene.at(f"made/m{number}"))


def _symlink(scene: Scene) -> Step:
    os.mkdir(scene.at("links"))
    return lambda number: os.symlink(b"target", scene.at(f"links/s{number}"))


def _readlink(scene: Scene) -> Step:
    return lambda number: os.readlink(scene.at(f"links/s{number}")) == b"target"


def _mkdir(scene: Scene) -> Step:
    os.mkdir(scene.at("directories"))
    return lambda number: os.mkdir(scene.at(f"directories/n{number}"))


def _rmdir(scene: Scene) -> Step:
    return lambda number: os.rmdir(scene.at(f"directories/n{number}"))


def _list(scene: Scene) -> Step:
    return lambda _: len(os.listdir(scene.at("d"))) == FILES


def _list_and_stat(scene: Scene) -> Step:
    def one(number: int) -> bool:
        with os.scandir(scene.at("d")) as entries:
            return sum(entry.stat().st_size for entry in entries) == FILES * len(DATA)

    return one


def _chmod(scene: Scene) -> Step:
    return lambda number: os.chmod(scene.file(number), 0o600 if number // FILES % 2 else 0o640)


def _utimes(scene: Scene) -> Step:
    return lambda number: os.utime(scene.file(number), (number, number))


def _truncate(scene: Scene) -> Step:
    return lambda number: os.ftruncate(scene.fd, len(DATA) - number % 2)


def _access(scene: Scene) -> Step:
    return lambda number: os.access(scene.file(number), os.R_OK | os.W_OK)


def _statfs(scene: Scene) -> Step:
    return lambda _: os.statvfs(scene.root).f_bsize > 0


def _setxattr(scene: Scene) -> Step:
    return lambda number: os.setxattr(scene.file(number), b"user.bench", b"value")


def _getxattr(scene: Scene) -> Step:
    os.setxattr(scene.file(0), b"user.bench", b"value")
    return lambda _: os.getxattr(scene.file(0), b"user.bench") == b"value"


def _listxattr(scene: Scene) -> Step:
    return lambda number: isinstance(os.listxattr(scene.file(number)), list)


def _lseek(scene: Scene) -> Step:
    return lambda _: os.lseek(scene.fd, 0, os.SEEK_DATA) == 0


def _fallocate(scene: Scene) -> Step:
    return lambda _: os.posix_fallocate(scene.fd, 0, len(DATA))


def _copy_file_range(scene: Scene) -> Step:
    target = os.open(scene.at("d/f1"), os.O_RDWR)
    return lambda _: os.copy_file_range(scene.fd, target, len(DATA) // 2, 0, 0) == len(DATA) // 2


def _flock(scene: Scene) -> Step:
    def one(number: int) -> None:
        fcntl.flock(scene.fd, fcntl.LOCK_EX)
        fcntl.flock(scene.fd, fcntl.LOCK_UN)

    return one


def _posix_lock(scene: Scene) -> Step:
    def one(number: int) -> None:
        fcntl.lockf(scene.fd, fcntl.LOCK_EX, 1, 0)
        fcntl.lockf(scene.fd, fcntl.LOCK_UN, 1, 0)

    return one


def _query_lock(scene: Scene) -> Step:
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    return lambda _: struct.unpack("hhqqi4x", fcntl.fcntl(scene.fd, fcntl.F_GETLK, asked))[0] == fcntl.F_UNLCK


OPERATIONS: dict[str, Callable[[Scene], Step]] = {
    "stat": _stat, "stat of nothing": _missing, "open, close": _open_close, "open, read 4 KiB, close": _open_read_close,
    "read 4 KiB": _read, "write 4 KiB": _write, "write 4 KiB, fsync": _fsync, "create, close": _create, "rename": _rename,
    "link": _link, "unlink": _unlink, "symlink": _symlink, "readlink": _readlink, "mkdir": _mkdir, "rmdir": _rmdir,
    "list 100 names": _list, "list and stat 100 files": _list_and_stat, "chmod": _chmod, "utimensat": _utimes,
    "ftruncate": _truncate, "access": _access, "statfs": _statfs, "setxattr": _setxattr, "getxattr": _getxattr,
    "listxattr": _listxattr, "lseek to data": _lseek, "fallocate": _fallocate, "copy_file_range": _copy_file_range,
    "flock and back": _flock, "lock a range and back": _posix_lock, "query a lock": _query_lock,
}  # fmt: skip
"""In this order: what one makes, a later one removes."""


def measure(root: Path, times: int) -> dict[str, dict[str, Any]]:
    """By operation, seconds; or the errno by name under `error`. `right` is whether each call gave what it should."""
    root.mkdir()
    scene = Scene(root, times)
    found: dict[str, dict[str, Any]] = {}
    for name, make in OPERATIONS.items():
        try:
            found[name] = _figures(list(_timed(make(scene), times)))
        except OSError as error:
            found[name] = {"error": errno.errorcode.get(error.errno or 0, str(error))}
    os.close(scene.fd)
    return found


def _timed(step: Step, times: int) -> Iterator[tuple[float, bool]]:
    for number in range(times):
        started = time.perf_counter()
        result = step(number)
        yield time.perf_counter() - started, result is not False


def _figures(all_of_them: list[tuple[float, bool]]) -> dict[str, Any]:
    took = sorted(seconds for seconds, _ in all_of_them)
    return {
        "seconds": sum(took), "mean": sum(took) / len(took), "p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100],
        "right": all(right for _, right in all_of_them),
    }  # fmt: skip


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(measure(Path(sys.argv[1], "operations"), int(sys.argv[2]))))
