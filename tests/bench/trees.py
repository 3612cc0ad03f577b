"""The trees that the rows work on: made up, always the same ones for the same sizes, so that figures can be compared."""

import os
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NEEDLE: Final = "needle_to_find"
OLD: Final = 1_700_000_000
"""The time of last change of all files: git takes what changed just before its index for possibly changed."""
_WORDS: Final = (
    "static", "int", "struct", "return", "if", "else", "while", "buffer", "length", "offset", "node", "inode", "page", "cache",
    "lock", "unlock", "error", "result", "value", "index", "entry", "name", "path", "table", "flags", "mask", "size", "count",
    "next", "previous", "first", "last", "read", "write", "open", "close", "flush", "sync", "wait", "wake", "queue",
)  # fmt: skip
GIT: Final = {
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "bench", "GIT_AUTHOR_EMAIL": "bench@example.org", "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_NAME": "bench", "GIT_COMMITTER_EMAIL": "bench@example.org", "GIT_COMMITTER_DATE": "1700000000 +0000",
}  # fmt: skip


def source(root: Path, files: int) -> None:
    """Like a program's sources: directories of about a dozen files, three deep, with 12 KiB in a file on average."""
    chance = random.Random(5)
    root.mkdir()
    lines = [_line(chance) for _ in range(5000)]
    for number, directory in zip(range(files), _directories(root, 12), strict=False):
        wanted, text = min(400_000, chance.lognormvariate(8.9, 1.0)), ""
        while len(text) < wanted:
            text += "\n".join(chance.choices(lines, k=20)) + "\n"
        if number % 50 == 0:
            text += f"int {NEEDLE}{number};\n"
        _write(directory / f"file{number}.c", text.encode())
    _age(root)


def tiny(root: Path, files: int) -> None:
    """Like what a package manager unpacks: eight files in a directory, 400 bytes in a file on average."""
    chance = random.Random(6)
    root.mkdir()
    for number, directory in zip(range(files), _directories(root, 8), strict=False):
        _write(directory / f"index{number}.js", chance.randbytes(int(chance.expovariate(1 / 400))))
    _age(root)


def repository(root: Path, files: int) -> None:
    """The source tree under git, on branch main; every tenth file differs on branch other, which lacks one of a hundred."""
    source(root, files)
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message=all")
    git(root, "checkout", "--quiet", "-b", "other")
    every = sorted(root.rglob("*.c"))
    for number, file in enumerate(every):
        if number % 100 == 1:
            file.unlink()
        elif number % 10 == 0:
            file.write_bytes(file.read_bytes() + b"int other;\n")
    git(root, "add", "--all", ".")
    git(root, "commit", "--quiet", "--message=other")
    git(root, "checkout", "--quiet", "main")
    git(root, "gc", "--quiet")
    settle(root)


def settle(root: Path) -> None:
    """Give the working tree an old time and git an index that knows it: then nothing has to be read to see what changed. A copy
    of a repository has other inodes, and needs it again."""
    _age(root, skip=".git")
    git(root, "update-index", "-q", "--refresh")
    git(root, "status", "--porcelain")


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", root, *words], check=True, capture_output=True, env={**os.environ, **GIT})


def program(root: Path, units: int) -> None:
    """A program in C of so many files, each of which includes a dozen headers of a hundred, with a Makefile that says a line for
    each file compiled."""
    headers = 100
    (root / "include").mkdir(parents=True)
    for number in range(headers):
        text = f"#ifndef H{number}\n#define H{number}\n"
        text += "".join(f"struct s{number}_{k} {{ int a[{k + 1}]; long b; }};\n" for k in range(30))
        text += f"int shared{number}(int);\n#endif\n"
        _write(root / "include" / f"h{number}.h", text.encode())
    chance = random.Random(7)
    for number in range(units):
        text = "".join(f'#include "h{one}.h"\n' for one in sorted(chance.sample(range(headers), 12)))
        text += f"int unit{number}(int x)\n{{\n\treturn x + {number};\n}}\n"
        _write(root / "src" / f"u{number}.c", text.encode())
    calls = "".join(f"\tsum += unit{number}(sum);\n" for number in range(units))
    declared = "".join(f"int unit{number}(int);\n" for number in range(units))
    text = f'#include <stdio.h>\n{declared}int main(void)\n{{\n\tint sum = 0;\n{calls}\tprintf("%d\\n", sum);\n\treturn 0;\n}}\n'
    _write(root / "src" / "main.c", text.encode())
    _write(root / "Makefile", (
        b"objects := $(patsubst src/%.c,out/%.o,$(wildcard src/*.c))\n"
        b"program: $(objects)\n\tgcc -o $@ $^\n"
        b"out/%.o: src/%.c | out\n\t@gcc -O0 -Iinclude -c -o $@ $< && echo $@\n"
        b"out:\n\tmkdir out\n"
    ))  # fmt: skip
    _age(root)


def package(root: Path) -> str:
    """A large package of Python, compiled; its name. pandas with what it needs if it is installed here, else the largest of the
    standard library that hang together."""
    root.mkdir()
    site = Path(sysconfig.get_paths()["platlib"])
    if (site / "pandas").is_dir() and (site / "numpy").is_dir():
        wanted = ("pandas", "numpy", "numpy.libs", "pandas.libs", "dateutil", "six.py", "pytz", "tzdata")
        name, found = "pandas", [site / one for one in wanted if (site / one).exists()]
    else:
        library = Path(sysconfig.get_paths()["stdlib"])
        wanted = ("asyncio", "concurrent", "email", "http", "json", "logging", "unittest", "urllib", "xml", "multiprocessing")
        name, found = "unittest.mock, asyncio, email.mime.text, http.server, xml.dom.minidom", [library / one for one in wanted]
    for one in found:
        ignore = shutil.ignore_patterns("__pycache__", "tests")
        shutil.copytree(one, root / one.name, ignore=ignore) if one.is_dir() else shutil.copy2(one, root / one.name)
    # By content, so that a copy's times do not matter.
    compileall = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*compileall, root], check=False, capture_output=True)
    _age(root)
    return name


def large(root: Path, size: int) -> None:
    """One file of so many bytes that no two blocks of are alike."""
    root.mkdir()
    chance = random.Random(8)
    with (root / "large").open("wb") as file:
        for _ in range(0, size, 2**20):
            file.write(chance.randbytes(2**20))


def count(root: Path) -> int:
    """Files and directories, `root` itself too."""
    return 1 + sum(len(directories) + len(files) for _, directories, files in os.walk(root))


def weight(root: Path) -> int:
    """Bytes in all files."""
    return sum(os.lstat(os.path.join(where, name)).st_size for where, _, files in os.walk(root) for name in files)


def different(one: Path, other: Path, times: bool = True, skip: str = "") -> str:
    """The first difference of two trees in names, kinds, permissions, times of files' last change and content; '' if none.
    `skip` is a name at their top that is left out."""
    return next(_differences(one, other, times, skip), "")


def _differences(one: Path, other: Path, times: bool, skip: str = "") -> Iterator[str]:
    names, others = (sorted(name for name in os.listdir(root) if name != skip) for root in (one, other))
    if names != others:
        yield f"{one}: {sorted(set(names) ^ set(others))[:5]}"
        return
    for name in names:
        a, b = one / name, other / name
        x, y = a.lstat(), b.lstat()
        if x.st_mode != y.st_mode:
            yield f"{a}: mode {x.st_mode:o} and {y.st_mode:o}"
        elif a.is_symlink():
            if os.readlink(a) != os.readlink(b):
                yield f"{a}: target"
        elif a.is_dir():
            yield from _differences(a, b, times)
        elif times and int(x.st_mtime) != int(y.st_mtime):
            yield f"{a}: time of last change"
        elif a.read_bytes() != b.read_bytes():
            yield f"{a}: content"


def _directories(root: Path, files: int) -> Iterator[Path]:
    """The directory for the next file, for ever: each one for so many."""
    number = 0
    while True:
        directory = root / f"part{number // 36}" / f"sub{number // 6 % 6}" / f"d{number}"
        for _ in range(files):
            yield directory
        number += 1


def _line(chance: random.Random) -> str:
    return "\t" * chance.randrange(3) + " ".join(chance.choices(_WORDS, k=chance.randrange(1, 11))) + ";"


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _age(root: Path, skip: str = "") -> None:
    for where, directories, files in os.walk(root, topdown=True):
        if skip in directories:
            directories.remove(skip)
        for name in files:
            os.utime(os.path.join(where, name), (OLD, OLD), follow_symlinks=False)

