"""Trees of files: made the same every time, described, compared."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

_WORDS: Final = ("gate", "decides", "program", "server", "may", "do", "with", "file", "that", "stays", "its", "client")


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    """Each path beneath `root`: type and permissions, size and content or target, mtime in nanoseconds, hard-link group."""
    found: dict[str, tuple[object, ...]] = {}
    groups: dict[int, str] = {}
    for directory, directories, files in os.walk(root):
        # Each filesystem lists in an order of its own, and a hard link belongs to the name that comes first.
        directories.sort()
        for name in sorted([*directories, *files]):
            path = Path(directory, name)
            info = path.lstat()
            relative = str(path.relative_to(root))
            content: object = None
            if stat.S_ISREG(info.st_mode):
                content = (info.st_size, hashlib.sha256(path.read_bytes()).hexdigest(), _group(groups, info, relative))
            elif stat.S_ISLNK(info.st_mode):
                content = path.readlink()
            found[relative] = (stat.filemode(info.st_mode), content, info.st_mtime_ns)
    return found


def _group(groups: dict[int, str], info: os.stat_result, relative: str) -> str:
    return groups.setdefault(info.st_ino, relative) if info.st_nlink > 1 else ""


def source_tree(root: Path, directories: int, files: int) -> None:
    """`directories` times `files` small text files with odd modes and times, some links, an empty directory, a program."""
    for one in range(directories):
        below = root / f"part-{one % 7}" / f"module-{one}"
        below.mkdir(parents=True)
        for two in range(files):
            path = below / f"file-{two}.txt"
            words = [_WORDS[(one * 31 + two * 17 + index * (one + 3)) % len(_WORDS)] for index in range(20 + (one * two) % 300)]
            path.write_text(" ".join(words) + f"\nline of {one} and {two}\n")
            if two % 10 == 3:
                path.chmod((0o600, 0o755, 0o444, 0o640)[one % 4])
            os.utime(path, ns=(1_600_000_000_000_000_000 + two, 1_500_000_000_123_456_789 + one * 1_000_000_007 + two))
        (below / "link").symlink_to("file-0.txt")
        os.utime(below / "link", ns=(1_600_000_000_000_000_000, 1_450_000_000_111_222_333), follow_symlinks=False)
        os.link(below / "file-1.txt", below / "hard-link.txt")
    (root / "empty").mkdir()
    (root / "name with spaces and ümlauts\n").write_text("odd")
    (root / "dangling").symlink_to("no/such/thing")
    for directory, _, _ in os.walk(root, topdown=False):
        os.utime(directory, ns=(1_600_000_000_000_000_000, 1_400_000_000_000_000_000))
