"""One session that reconnects again and again: nothing may grow."""

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import run
from arena import Arena, Crowd, NotRecovered, Prober
from harness.waiting import until

SAMPLES: Final = 40
"""How often it is looked. A process's memory goes up and down with what it has just done, so the largest figure of the first
third of them is set beside the largest of the last."""
MOST_GROWTH: Final = 1.15
SLACK: Final = 1 << 20
"""Bytes by which a process may differ whatever happens."""
OPEN: Final = 4
"""Files that the load may have open at one time and not at another."""
ENOUGH: Final = 200
"""Reconnects after which memory that is allocated once has been."""
Figures = dict[str, dict[str, int]]
"""By part, and what of it."""
_PROGRAMS: Final = ["names", "locks-mount", "locks-export"]


def reconnects(arena: Arena, count: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The figures before and after, and what has grown."""
    crowd, prober = Crowd(arena, seed, _PROGRAMS), Prober(arena.mount / "probe")
    failures: list[str] = []
    times: list[float] = []
    samples: list[Figures] = []
    began = time.monotonic()
    try:
        for number in range(count):
            times_before = arena.resumed
            cut_at = time.monotonic()
            arena.proxy.cut()
            try:
                answered = prober.answered()
                until(lambda before=times_before: arena.resumed > before, "the client has resumed its session")
            except (NotRecovered, AssertionError) as error:
                failures.append(f"reconnect {number + 1}: {error}")
                break
            times.append((answered or cut_at) - cut_at)
            if (number + 1) % max(1, count // SAMPLES) == 0:
                samples.append(measure(arena))
                memory = {part: figures["pss"] >> 10 for part, figures in samples[-1].items() if "pss" in figures}
                say(f"{number + 1} reconnects, {time.monotonic() - began:.0f} s; KiB: {memory}")
        failures += crowd.stop()
        prober.end()
        failures += run.finished(arena, crowd, [])
        if prober.errors:
            failures.append(f"errors of the prober: {prober.errors}")
    finally:
        crowd.kill()
        prober.kill()
    third = max(1, len(samples) // 3)
    before, after = most(samples[:third]), most(samples[-third:])
    failures += [one for one in grown(before, after) if count >= ENOUGH or "pss" not in one]
    for part in after:
        say(f"{part:14} {before.get(part)}\n{'':14} {after[part]}")
    times.sort()
    figures = {"median": times[len(times) // 2], "worst": times[-1]} if times else {}
    say(f"{len(times)} reconnects, seconds to the first answered operation: {figures}")
    return {"count": len(times), **figures, "before": before, "after": after, "failures": failures}


def most(samples: list[Figures]) -> Figures:
    """The largest of each."""
    found: Figures = {}
    for sample in samples:
        for part, figures in sample.items():
            of = found.setdefault(part, {})
            of.update({what: max(figure, of.get(what, 0)) for what, figure in figures.items()})
    return found


def measure(arena: Arena) -> Figures:
    """Of each process: memory (bytes, its share of what is shared: PSS of proc(5)) and descriptors; the files under the runtime
    directory; the bytes of the session's state. One worker is there then."""
    until(lambda: len(arena.parts.workers) == 1, "one worker is left")
    processes = {**arena.parts.all, "client": arena.client.program.process.pid}
    found = {name: {"pss": _pss(pid), "descriptors": len(os.listdir(f"/proc/{pid}/fd"))} for name, pid in processes.items()}
    found["runtime"] = {"files": _files(arena.server.runtime)}
    found["state"] = {"bytes": _state(arena.parts.keeper)}
    return found


def grown(before: Figures, after: Figures) -> list[str]:
    """What is more than it was."""
    found = []
    for part, figures in before.items():
        for what, was in figures.items():
            now = after[part][what]
            if now > (was * MOST_GROWTH + SLACK if what in ("pss", "bytes") else was + OPEN * (what == "descriptors")):
                found.append(f"{part}: {what} grew from {was} to {now}")
    return found


def _pss(pid: int) -> int:
    return int(re.findall(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[0]) * 1024


def _files(runtime: Path) -> int:
    """Without asking a mount."""
    count = 0
    for directory, directories, files in os.walk(runtime):
        count += len(directories) + len(files)
        if Path(directory).parent == runtime / "mnt":
            directories.clear()
    return count


def _state(keeper: int) -> int:
    """The pages of the memfds that the mount keeper holds."""
    total = 0
    for entry in os.listdir(f"/proc/{keeper}/fd"):
        # It may be closed while it is looked at.
        with contextlib.suppress(FileNotFoundError):
            if "memfd:" in os.readlink(f"/proc/{keeper}/fd/{entry}"):
                total += os.stat(f"/proc/{keeper}/fd/{entry}").st_blocks * 512
    return total
