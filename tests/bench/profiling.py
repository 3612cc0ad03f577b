"""Where the time of an operation goes: the processor time of each process, and of its functions.

The product knows nothing of it: processor time is the kernel's own count (proc(5)), and py-spy looks at the stacks from
outside, a few hundred times a second, on the other CPUs where there are any. It sees only who holds the interpreter's lock, so
the shares are of the time in the program; system calls are in the time in the kernel.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rows import MIB, Row, rows

_RATE: Final = 400
_TICK: Final = os.sysconf("SC_CLK_TCK")
_FRAME: Final = re.compile(r"(?P<function>.+) \((?P<place>[^()]+)\)$")
_SHOWN: Final = 12

Figures = dict[str, Any]


@dataclass(frozen=True)
class _Work:
    """What is profiled: rows that follow one another, and how many operations one round of them is."""

    name: str
    rows: tuple[Row, ...]
    operations: int


def spy() -> str:
    """py-spy's program. Raises SystemExit where it is missing."""
    found = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise SystemExit("bench: --profile needs py-spy: pip install py-spy")
    return found


def profile(root: Path, processes: dict[str, int], seconds: float, cpus: set[int]) -> dict[str, Figures]:
    """By kind of work and process: microseconds of processor time for one operation, in the program and in the kernel, and the
    functions that had it. py-spy runs on `cpus`."""
    stat, opened, create, unlink, write, read = rows(200, 32)
    works = (
        _Work(stat.name, (stat,), stat.amount),
        _Work(opened.name, (opened,), opened.amount),
        _Work("create, write 4 KiB, close, unlink", (create, unlink), create.amount),
        _Work("write 1 MiB, read 1 MiB", (write, read), write.amount // MIB),
    )
    return {work.name: _one(work, root, processes, seconds, cpus) for work in works}


def show(found: dict[str, Figures]) -> None:
    """Print what `profile` found."""
    print("\nWhere the time of one operation goes; shares of the program's time: in the function itself, and with what it calls")
    for work, figures in found.items():
        print(f"\n{work}: {figures['elapsed']:.0f} µs")
        for name, of in figures["processes"].items():
            print(f"  {name}: {of['user']:.0f} µs in the program, {of['system']:.0f} µs in the kernel")
            for function in of.get("functions", ())[:_SHOWN]:
                where = f"{function['function']} ({function['place']})"
                print(f"    {function['self']:5.1f} % {function['total']:6.1f} %  {where}")


def _one(work: _Work, root: Path, processes: dict[str, int], seconds: float, cpus: set[int]) -> Figures:
    everybody = {**processes, "caller": os.getpid()}
    before = {name: _processor_time(pid) for name, pid in everybody.items()}
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        count += _round(work, root)
    elapsed = (time.perf_counter() - start) / count * 1e6
    found: dict[str, Figures] = {}
    for name, pid in everybody.items():
        user, system = (now - then for now, then in zip(_processor_time(pid), before[name], strict=True))
        found[name] = {"user": user / count * 1e6, "system": system / count * 1e6}
    for name, stacks in _stacks(processes, seconds, cpus, lambda: _round(work, root)).items():
        found[name]["samples"] = sum(stacks.values())
        found[name]["functions"] = _functions(stacks)
    return {"elapsed": elapsed, "operations": count, "processes": found}


def _round(work: _Work, root: Path) -> int:
    for row in work.rows:
        row.measure(root, row.amount)
    return work.operations


def _processor_time(pid: int) -> tuple[float, float]:
    """Seconds in the program and in the kernel, of all threads (proc(5), stat)."""
    # The second field is a name in parentheses, with whatever in it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / _TICK, int(fields[12]) / _TICK


def _stacks(processes: dict[str, int], seconds: float, cpus: set[int], busy: Callable[[], object]) -> dict[str, Counter[str]]:
    """How often each stack was seen while `busy` was called: frames with semicolons between, the outermost first."""
    with tempfile.TemporaryDirectory(prefix="fuse-gated-bench-") as directory:
        outputs = {name: Path(directory, name) for name in processes}
        options = ["--rate", str(_RATE), "--duration", str(max(1, round(seconds))), "--format", "raw", "--function", "--gil"]
        spies = [
            subprocess.Popen(
                [spy(), "record", "--pid", str(processes[name]), *options, "--output", str(output)],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, cpus),
            )
            for name, output in outputs.items()
        ]  # fmt: skip
        while any(one.poll() is None for one in spies):
            busy()
        for one in spies:
            assert one.stderr is not None
            said = one.stderr.read().decode(errors="replace")
            if one.wait() != 0:
                raise SystemExit(f"bench: py-spy failed:\n{said}")
        return {name: _counted(output.read_text()) for name, output in outputs.items()}


def _counted(raw: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, number = line.rpartition(" ")
        found[stack] += int(number)
    return found


def _functions(stacks: Counter[str]) -> list[Figures]:
    """The functions in percent of all samples: seen at the top of the stack, and anywhere in it."""
    whole = sum(stacks.values()) or 1
    top: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    for stack, number in stacks.items():
        frames = stack.split(";")
        top[frames[-1]] += number
        for frame in set(frames):
            anywhere[frame] += number
    functions = []
    for frame, number in sorted(anywhere.items(), key=lambda one: (-top[one[0]], -one[1])):
        match = _FRAME.fullmatch(frame)
        function, place = (match["function"], match["place"]) if match else (frame, "")
        share = {"self": 100 * top[frame] / whole, "total": 100 * number / whole}
        functions.append({"function": function, "place": place, **share})
    return functions
