"""Random operations, the same every time: on a file against a model of its bytes, on a tree against a twin that is local."""

import mmap
import os
import random
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import outcome
from harness.files import make, open_close, opened
from harness.syscalls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate, renameat2

SEEDS = range(4)
LARGEST = 300_000


class Model:
    """What a file of these bytes must do."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, offset: int, data: bytes) -> None:
        self.extend(offset)
        self.data[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        self.extend(size)
        del self.data[size:]

    def extend(self, size: int) -> None:
        self.data.extend(bytes(max(0, size - len(self.data))))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_file_against_a_model(area: Path, behind: Callable[[Path], Path], seed: int) -> None:
    """Two descriptors and a map of one file, as fsx does: every byte is where the model has it."""
    chance = random.Random(seed)
    model = Model()
    path = make("file", area / "thing")
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as two:
        for step in range(400):
            descriptor = chance.choice((one, two))
            offset, length = chance.randrange(LARGEST), chance.randrange(1, 40_000)
            match chance.choice(("write", "read", "truncate", "store", "punch", "zero", "append", "size", "copy")):
                case "write":
                    data = chance.randbytes(length)
                    assert os.pwrite(descriptor, data, offset) == length
                    model.write(offset, data)
                case "append":
                    data = chance.randbytes(length % 5000 + 1)
                    os.lseek(descriptor, 0, os.SEEK_END)
                    os.write(descriptor, data)
                    model.write(len(model.data), data)
                case "truncate":
                    os.ftruncate(descriptor, offset)
                    model.truncate(offset)
                case "store" if offset < len(model.data):
                    data = chance.randbytes(min(length, len(model.data) - offset))
                    with mmap.mmap(descriptor, len(model.data)) as view:
                        view[offset : offset + len(data)] = data
                    model.write(offset, data)
                case "punch" | "zero" as kind if offset < len(model.data):
                    length = min(length, len(model.data) - offset)
                    mode = (FALLOC_PUNCH_HOLE if kind == "punch" else FALLOC_ZERO_RANGE) | FALLOC_KEEP_SIZE
                    if outcome(fallocate, descriptor, mode, offset, length) == "ok":
                        model.write(offset, bytes(length))
                case "copy" if offset + 40_000 < len(model.data):
                    to = LARGEST + 50_000
                    copied = os.copy_file_range(one, two, length, offset, to)
                    model.write(to, bytes(model.data[offset : offset + copied]))
                case "size":
                    assert os.fstat(descriptor).st_size == path.stat().st_size == len(model.data)
                case _:
                    assert os.pread(descriptor, length, offset) == model.data[offset : offset + length], f"step {step}"
    assert path.read_bytes() == model.data
    assert behind(path).read_bytes() == model.data


@pytest.fixture
def twin(area: Path) -> Iterator[Path]:
    """A local directory that is done to as the area is."""
    with tempfile.TemporaryDirectory(prefix="fuse-gated-test-") as name:
        yield Path(name)


NAMES = ("a", "b", "c", "d")
OFTEN = ("create", "mkdir", "link", "rename", "exchange")
DIRECTORIES = ("", "x/", "y/", "x/z/", "y/z/", "missing/")


def _step(chance: random.Random) -> tuple[str, tuple[Any, ...]]:
    def name() -> str:
        return chance.choice(DIRECTORIES) + chance.choice((*NAMES, "z", "x", "y"))

    kind = chance.choices(tuple(OPERATIONS), [3 if kind in OFTEN else 1 for kind in OPERATIONS])[0]
    detail = {
        "symlink": (chance.choice(NAMES),),
        "link": (name(),),
        "rename": (name(),),
        "noreplace": (name(),),
        "exchange": (name(),),
        "write": (chance.randbytes(chance.randrange(3000)),),
        "truncate": (chance.randrange(5000),),
        "chmod": (chance.randrange(0o10000),),
        "chown": (chance.randrange(1000), chance.randrange(1000)),
        "xattr": (chance.randbytes(5),),
    }
    return kind, (name(), *detail.get(kind, ()))


def _write(path: Path, data: bytes) -> None:
    with opened(path, os.O_WRONLY | os.O_NONBLOCK) as descriptor:
        os.write(descriptor, data)


OPERATIONS: dict[str, Callable[..., object]] = {
    "create": lambda root, name: open_close(root / name, os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK, 0o640),
    "open-excl": lambda root, name: open_close(root / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o4751),
    "mkdir": lambda root, name: os.mkdir(root / name, 0o751),
    "symlink": lambda root, name, target: os.symlink(target, root / name),
    "mkfifo": lambda root, name: os.mkfifo(root / name),
    "link": lambda root, name, new: os.link(root / name, root / new, follow_symlinks=False),
    "unlink": lambda root, name: os.unlink(root / name),
    "rmdir": lambda root, name: os.rmdir(root / name),
    "rename": lambda root, name, new: os.rename(root / name, root / new),
    "noreplace": lambda root, name, new: renameat2(root / name, root / new, 1),
    "exchange": lambda root, name, new: renameat2(root / name, root / new, 2),
    "write": lambda root, name, data: _write(root / name, data),
    "truncate": lambda root, name, size: os.truncate(root / name, size),
    "chmod": lambda root, name, mode: os.chmod(root / name, mode),
    "chown": lambda root, name, uid, gid: os.lchown(root / name, uid, gid),
    "xattr": lambda root, name, value: os.setxattr(root / name, "user.test", value),
    "readlink": lambda root, name: os.readlink(root / name),
}


def _shown(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    groups: dict[int, str] = {}
    for directory, directories, files in os.walk(root):
        # Each filesystem lists in an order of its own, and a hard link belongs to the name that comes first.
        directories.sort()
        for name in sorted(directories + files):
            path = Path(directory, name)
            info = path.lstat()
            relative = str(path.relative_to(root))
            content: object = None
            if stat.S_ISREG(info.st_mode):
                content = (path.read_bytes(), groups.setdefault(info.st_ino, relative))
            elif stat.S_ISLNK(info.st_mode):
                content = path.readlink()
            attributes = [] if stat.S_ISLNK(info.st_mode) else [(key, os.getxattr(path, key)) for key in os.listxattr(path)]
            found[relative] = (oct(info.st_mode), info.st_uid, info.st_gid, info.st_nlink, content, attributes)
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.beyond_libfuse("rename flags")
def test_a_tree_against_a_local_twin(area: Path, twin: Path, behind: Callable[[Path], Path], seed: int) -> None:
    """Every call ends there as it ends here, and both trees are the same all the way."""
    chance = random.Random(seed)
    for step in range(1500):
        kind, arguments = _step(chance)
        expected = outcome(OPERATIONS[kind], twin, *arguments)
        assert outcome(OPERATIONS[kind], area, *arguments) == expected, f"step {step}: {kind} {arguments}"
        if step % 250 == 249:
            assert _shown(area) == _shown(twin), f"after step {step}"
    assert _shown(area) == _shown(behind(area)) == _shown(twin)
