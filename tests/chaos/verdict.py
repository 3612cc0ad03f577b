"""Whether what is there at the end is what the programs of the load say must be: on the client, and through the mount."""

import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import loads


def compare(reports: dict[str, dict[str, Any]], mount: Path, export: Path) -> list[str]:
    """All differences."""
    expected: dict[str, dict[str, str]] = {}
    found = []
    for report in reports.values():
        for name, tree in report["expected"].items():
            expected.setdefault(name, {}).update(tree)
    lines, commits = expected.pop("lines", {}), expected.pop("commits", {})
    locks = {kind: expected.pop(f"held-{kind}", {}) for kind in loads.LOCKED.values()}
    for side in (export, mount):
        for name, tree in expected.items():
            found += _compare_tree(side / name, tree)
        found += _compare_lines(side, lines)
    found += [f"{name} has no repository" for name in commits if not (export / name / ".git").is_dir()]
    for kind in locks:
        counts = [int(report["expected"].get(f"held-{kind}", {"": "0"})[""]) for report in reports.values()]
        counted = int((mount / f"counted-{kind}").read_text())
        if counted != sum(counts):
            found.append(f"{kind}: the lock was held {sum(counts)} times, and {counted} were counted under it")
    return found


def _compare_tree(top: Path, expected: dict[str, str]) -> list[str]:
    found = {}
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(directory, name)
            found[str(path.relative_to(top))] = _what(path)
    return [
        f"{top / path}: is {found.get(path, 'not there')}, must be {expected.get(path, 'not there')}"
        for path in sorted(found.keys() | expected.keys())
        if found.get(path) != expected.get(path)
    ]


def _what(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"-> {path.readlink()}"
    return "directory" if stat.S_ISDIR(mode) else loads.told(path.read_bytes())


def _compare_lines(side: Path, expected: dict[str, str]) -> list[str]:
    """Every line once, each writer's in their order, whole."""
    found = []
    wanted: Counter[bytes] = Counter()
    for who, count in expected.items():
        name, generation = who.split()
        own = [loads.line(name, int(generation), number) for number in range(1, int(count) + 1)]
        wanted.update(own)
        found += _differences(side / f"appends-{name}-{generation}", own)
    shared = side / "appends-shared"
    if expected:
        lines = shared.read_bytes().splitlines(keepends=True)
        doubled = [line for line, count in (Counter(lines) - wanted).items() if count]
        lost = [line for line, count in (wanted - Counter(lines)).items() if count]
        found += [f"{shared}: a line too many: {line!r}" for line in doubled[:5]]
        found += [f"{shared}: a line is missing: {line!r}" for line in lost[:5]]
        for who in expected:
            numbers = [int(line.split()[2]) for line in lines if line.startswith(f"{who} ".encode())]
            if numbers != sorted(numbers):
                found.append(f"{shared}: the lines of {who} are out of order")
    return found


def _differences(path: Path, right: list[bytes]) -> list[str]:
    lines = path.read_bytes().splitlines(keepends=True)
    if lines == right:
        return []
    at = next((index for index, (one, other) in enumerate(zip(lines, right, strict=False)) if one != other), len(lines))
    return [f"{path}: {len(lines)} lines, must be {len(right)}; they differ from line {at + 1} on: {lines[at : at + 1]}"]
