"""The checking load: programs that work on the mount, each in a process of its own, and know what must come of it.

`python loads.py NAME MOUNT EXPORT SEED STOP REPORT LOCKED...` runs until the file STOP exists, then writes what it saw to REPORT
(JSON). MOUNT and EXPORT are the same directory, seen through the mount and on the client; LOCKED are the files to lock.
"""

import contextlib
import fcntl
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from load import Load, Wrong, told

SOURCE: Final = Path(__file__).resolve().parents[2] / "fuse_gated"
"""The source tree that is copied: the product's own."""
ENTRIES: Final = 3000
"""In the large directory."""


class Contents(Load):
    """Random writes, reads, truncations and maps, each file beside its model in memory."""

    name = "contents"
    FILES: Final = 6
    LARGEST: Final = 1 << 18

    def generation(self, number: int) -> None:
        top = self.mount / f"contents-{number}"
        self.do("mkdir", top, os.mkdir, top)
        paths = [top / f"file-{index}" for index in range(self.FILES)]
        models = {path: bytearray() for path in paths}
        files = {path: self.do("open", path, os.open, path, os.O_RDWR | os.O_CREAT | os.O_EXCL) for path in paths}
        try:
            while not self.stopped:
                path = self.chance.choice(paths)
                steps = (self._write, self._write, self._append, self._truncate, self._map, self._read, self._sync)
                self.chance.choice(steps)(path, files[path], models[path])
                if self.chance.random() < 0.02:
                    self.do("close", path, os.close, files.pop(path))
                    files[path] = self.do("open", path, os.open, path, os.O_RDWR)
                self.pause()
            for path in paths:
                self._compare(path, files[path], models[path], 0, len(models[path]) + 1)
        finally:
            for file in files.values():
                with contextlib.suppress(OSError):
                    os.close(file)
        self.expected[top.name] = {path.name: told(bytes(models[path])) for path in paths}

    def _data(self) -> bytes:
        return self.chance.randbytes(self.chance.choice((1, 100, 4096, 5000, 40_000)))

    def _write(self, path: Path, file: int, model: bytearray) -> None:
        data, offset = self._data(), self.chance.randrange(self.LARGEST)
        count = self.do("pwrite", path, os.pwrite, file, data, offset)
        self.must(count == len(data), f"{path}: {count} of {len(data)} bytes written")
        self._put(model, data, offset)

    def _append(self, path: Path, file: int, model: bytearray) -> None:
        if len(model) < self.LARGEST:
            data, offset = self._data(), len(model)
            self.do("append", path, os.pwrite, file, data, offset)
            self._put(model, data, offset)

    def _truncate(self, path: Path, file: int, model: bytearray) -> None:
        size = self.chance.randrange(self.LARGEST)
        self.do("ftruncate", path, os.ftruncate, file, size)
        if size < len(model):
            del model[size:]
        else:
            model.extend(bytes(size - len(model)))

    def _map(self, path: Path, file: int, model: bytearray) -> None:
        if len(model) < 10:
            return
        data = self.chance.randbytes(min(3000, len(model)))
        offset = self.chance.randrange(len(model) - len(data) + 1)
        with self.operation("mmap", path), mmap.mmap(file, len(model)) as mapped:
            mapped[offset : offset + len(data)] = data
            mapped.flush()
        model[offset : offset + len(data)] = data

    def _read(self, path: Path, file: int, model: bytearray) -> None:
        if self.chance.random() < 0.5:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        self._compare(path, file, model, self.chance.randrange(self.LARGEST), 30_000)

    def _sync(self, path: Path, file: int, model: bytearray) -> None:
        self.do("fsync", path, os.fsync, file)
        size = self.do("fstat", path, os.fstat, file).st_size
        self.must(size == len(model), f"{path} is {size} bytes long, not {len(model)}")

    def _compare(self, path: Path, file: int, model: bytearray, offset: int, length: int) -> None:
        found = self.do("pread", path, os.pread, file, length, offset)
        if found != model[offset : offset + length]:
            right = bytes(model[offset : offset + length])
            at = next((index for index, (one, other) in enumerate(zip(found, right, strict=False)) if one != other), "the end")
            raise Wrong(f"{path}: {len(found)} bytes at {offset} differ from {len(right)}, from byte {at} on")

    @staticmethod
    def _put(model: bytearray, data: bytes, offset: int) -> None:
        model.extend(bytes(max(0, offset - len(model))))
        model[offset : offset + len(data)] = data


class Names(Load):
    """Names made, moved and removed, none of them twice: what is done twice, or lost, meets EEXIST or ENOENT."""

    name = "names"
    MOST: Final = 150

    def generation(self, number: int) -> None:
        top = self.mount / f"names-{number}"
        self.do("mkdir", top, os.mkdir, top)
        self._count = 0
        self._directories = [top]
        self._others: dict[Path, str] = {}
        while not self.stopped:
            steps = [self._create, self._create, self._link, self._symlink, self._rename, self._rename, self._look, self._mkdir]
            if self.chance.random() < len(self._others) / self.MOST:
                steps = [self._unlink, self._unlink, self._rename, self._rmdir]
            self.chance.choice(steps)()
            self.pause()
        expected = {str(path.relative_to(top)): what for path, what in self._others.items()}
        expected |= {str(path.relative_to(top)): "directory" for path in self._directories[1:]}
        self.expected[top.name] = expected

    def _new(self) -> Path:
        self._count += 1
        return self.chance.choice(self._directories) / f"n{self._count}"

    def _some(self, what: str = "") -> Path | None:
        found = [path for path, is_a in self._others.items() if what in is_a]
        return self.chance.choice(found) if found else None

    def _create(self) -> None:
        path = self._new()
        content = f"{path.name} of {path.parent.name}\n".encode() * self.chance.randint(1, 50)
        file = self.do("create", path, os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            self.do("write", path, os.write, file, content)
        finally:
            os.close(file)
        self._others[path] = told(content)

    def _mkdir(self) -> None:
        if len(self._directories) < 12:
            path = self._new()
            self.do("mkdir", path, os.mkdir, path)
            self._directories.append(path)

    def _symlink(self) -> None:
        path = self._new()
        self.do("symlink", path, os.symlink, f"to-{path.name}", path)
        self._others[path] = f"-> to-{path.name}"

    def _link(self) -> None:
        if (old := self._some(" ")) is not None and not self._others[old].startswith("->"):
            path = self._new()
            self.do("link", path, os.link, old, path)
            self._others[path] = self._others[old]

    def _rename(self) -> None:
        if (old := self._some()) is not None:
            path = self._new()
            self.do("rename", old, os.rename, old, path)
            self._others[path] = self._others.pop(old)

    def _unlink(self) -> None:
        if (path := self._some()) is not None:
            self.do("unlink", path, os.unlink, path)
            del self._others[path]

    def _rmdir(self) -> None:
        full = {parent for path in (*self._others, *self._directories) for parent in path.parents}
        if empty := [one for one in self._directories[1:] if one not in full]:
            path = self.chance.choice(empty)
            self.do("rmdir", path, os.rmdir, path)
            self._directories.remove(path)

    def _look(self) -> None:
        directory = self.chance.choice(self._directories)
        found = set(self.do("listdir", directory, os.listdir, directory))
        right = {path.name for path in (*self._others, *self._directories[1:]) if path.parent == directory}
        self.must(found == right, f"{directory}: {sorted(found ^ right)} are too many or too few")


class Appends(Load):
    """Numbered lines: into a file of its own, and into one that both of them append to."""

    def generation(self, number: int) -> None:
        shared, own = self.mount / "appends-shared", self.mount / f"appends-{self.name}-{number}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        files = [self.do("open", path, os.open, path, flags, 0o644) for path in (own, shared)]
        count = 0
        try:
            while not self.stopped:
                count += 1
                for file, path in zip(files, (own, shared), strict=True):
                    self.do("append", path, os.write, file, line(self.name, number, count))
                if count % 50 == 0:
                    self.do("fsync", own, os.fsync, files[0])
                self.pause()
        finally:
            for file in files:
                with contextlib.suppress(OSError):
                    os.close(file)
        self.expected.setdefault("lines", {})[f"{self.name} {number}"] = str(count)


def line(who: str, generation: int, number: int) -> bytes:
    """One line of Appends: what belongs together, so that a torn one shows."""
    return f"{who} {generation} {number} {'.' * (number % 60)} {who} {generation} {number}\n".encode()


class AppendsOne(Appends):
    name = "appends-1"


class AppendsTwo(Appends):
    name = "appends-2"


class Locks(Load):
    """Exclusion between the two sides. Who holds the lock is alone: that is looked for beside the mount."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._times: dict[str, int] = {}

    def top(self) -> Path:
        raise NotImplementedError

    def generation(self, _number: int) -> None:
        beside, top = self.export, self.top()
        files = [(self.do("open", top / name, os.open, top / name, os.O_RDWR), LOCKED[name]) for name in self.locked]
        try:
            while not self.stopped:
                for file, kind in files:
                    lock = fcntl.flock if kind == "flock" else fcntl.lockf
                    self.do(kind, self.top(), lock, file, fcntl.LOCK_EX)
                    self._alone(beside / f"held-{kind}", beside / f"counted-{kind}")
                    self.do(f"{kind} free", self.top(), lock, file, fcntl.LOCK_UN)
                    self.pause()
        finally:
            for file, _ in files:
                with contextlib.suppress(OSError):
                    os.close(file)

    def _alone(self, held: Path, counted: Path) -> None:
        try:
            os.close(os.open(held, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise Wrong(f"{held}: two have the lock at once") from None
        count = int(counted.read_text())
        time.sleep(self.chance.choice((0.0, 0.002, 0.1)))
        counted.write_text(str(count + 1))
        self._times[held.name] = self._times.get(held.name, 0) + 1
        self.expected[held.name] = {"": str(self._times[held.name])}
        held.unlink()


class LocksOnMount(Locks):
    name = "locks-mount"

    def top(self) -> Path:
        return self.mount / "locks"


class LocksOnExport(Locks):
    name = "locks-export"

    def top(self) -> Path:
        return self.export / "locks"


LOCKED: Final = {"posix": "lockf", "whole": "flock"}


class Copies(Load):
    """A source tree copied with cp(1) and compared with diff(1), from both sides."""

    name = "copies"

    @property
    def _source(self) -> Path:
        return self.export.parent / "source"

    def generation(self, number: int) -> None:
        copy = 0
        while not self.stopped:
            copy += 1
            name = f"copy-{number}-{copy}"
            self.command("cp -r", "cp", "-r", self._source, self.mount / name)
            self.command("diff -r", "diff", "-r", self._source, self.mount / name)
            differences = subprocess.run(["diff", "-r", self._source, self.export / name], capture_output=True, text=True)
            self.must(differences.returncode == 0, f"{name} is no copy: {differences.stdout[:300]}{differences.stderr[:300]}")
            if not self.stopped:
                self.command("rm -r", "rm", "-r", self.mount / name)
                self.must(not (self.export / name).exists(), f"{name} was removed, and is there")


class Git(Load):
    """A repository on the mount: every commit is there, and fsck finds nothing."""

    name = "git"

    def generation(self, number: int) -> None:
        top = self.mount / f"git-{number}"
        git = ("git", "-C", top, "-c", "user.name=chaos", "-c", "user.email=chaos@example.org", "-c", "gc.auto=0")
        self.command("git init", "git", "init", "--quiet", top)
        commits = 0
        while not self.stopped:
            for _ in range(3):
                path = top / f"file-{self.chance.randrange(40)}"
                with self.operation("write file", path):
                    path.write_text(f"{self.chance.random()}\n" * self.chance.randint(1, 200))
            self.command("git add", *git, "add", ".")
            self.command("git commit", *git, "commit", "--quiet", "--allow-empty", "-m", f"commit {commits}")
            commits += 1
            said = self.command("git status", *git, "status", "--porcelain")
            self.must(not said, f"git status after a commit says: {said}")
            if commits % 5 == 0:
                self._check(git, commits)
        self._check(git, commits)
        self.expected.setdefault("commits", {})[top.name] = str(commits)

    def _check(self, git: tuple[object, ...], commits: int) -> None:
        self.command("git fsck", *git, "fsck", "--strict", "--no-dangling")
        count = len(self.command("git log", *git, "log", "--format=%H").split())
        self.must(count == commits, f"git log shows {count} commits, not {commits}")


class Listing(Load):
    """A large directory, read to its end, slowly: its reader is in the middle when something happens."""

    name = "listing"

    def generation(self, _number: int) -> None:
        top = self.mount / "large"
        right = {f"entry-{index:05}" for index in range(ENTRIES)}
        while not self.stopped:
            found: list[str] = []
            with self.operation("readdir", top, single=False), os.scandir(top) as entries:
                for entry in entries:
                    found.append(entry.name)
                    if len(found) % 500 == 0:
                        time.sleep(0.02)
            self.must(len(found) == len(set(found)), f"{top}: names are listed twice: {_twice(found)}")
            self.must(set(found) == right, f"{top}: {len(set(found) ^ right)} names are too many or too few")
            self.pause()


def _twice(found: list[str]) -> str:
    """Where a listing repeats itself."""
    first: dict[str, int] = {}
    again = [(first[name], place, name) for place, name in enumerate(found) if first.setdefault(name, place) != place]
    return f"{len(again)} of {len(found)}, {len(first)} different; first {again[:2]}, last {again[-2:]}"


LOADS: Final[dict[str, type[Load]]] = {
    load.name: load
    for load in (Contents, Names, AppendsOne, AppendsTwo, LocksOnMount, LocksOnExport, Copies, Git, Listing)
}


def plant(export: Path) -> None:
    """What the loads find on the client before they begin."""
    (export / "locks").mkdir()
    for name, kind in LOCKED.items():
        (export / "locks" / name).touch()
        (export / f"counted-{kind}").write_text("0")
    (export / "large").mkdir()
    for index in range(ENTRIES):
        (export / "large" / f"entry-{index:05}").touch()
    shutil.copytree(SOURCE, export.parent / "source", ignore=shutil.ignore_patterns("__pycache__", "commands"))


def main() -> None:
    name, mount, export, seed, stop, report, *locked = sys.argv[1:]
    load = LOADS[name](Path(mount), Path(export), int(seed), Path(stop))
    load.locked = locked
    load.run()
    Path(report).write_text(json.dumps(load.report()))


if __name__ == "__main__":
    main()
