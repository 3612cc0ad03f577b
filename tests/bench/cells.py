"""One cell of the table: a program that works on a mount is run, timed, cut short where it takes too long, and counted.

Progress is lines in what a program prints (tar's and find's names, grep's counts), so that a program that was cut short is
compared by what it had done until then.
"""

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from contestants import Mounted

_TICK: Final = os.sysconf("SC_CLK_TCK")
_LOOK: Final = 0.02
_TIMES, _LONG = 3, 5.0
SEEN_WITHIN: Final = 3.0
"""Seconds beside the round trips after which a change on the client counts as not seen."""


@dataclass
class Figure:
    """What was measured in one step. `seconds` for `units` of `whole`, which are `unit`s; `right`: what came out was what it
    should have been (None: it was not compared, or it was cut short); `cpu`: seconds of processor time by process."""

    seconds: float
    units: float
    whole: float
    unit: str
    right: bool | None = None
    cpu: dict[str, float] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def capped(self) -> bool:
        return self.units < self.whole

    def told(self) -> dict[str, Any]:
        return {**asdict(self), "capped": self.capped}


@dataclass(frozen=True)
class Ran:
    """How a program went: `status` is None if it was cut short, `lines` how many it had printed. `output` and `errors` are what
    it wrote to stdout and stderr."""

    seconds: float
    status: int | None
    lines: int
    output: Path
    errors: Path
    cpu: dict[str, float]

    def complaint(self) -> str:
        """The end of what it wrote to stderr."""
        return self.errors.read_text(errors="replace")[-2000:].strip()


class Cell:
    """One contestant with one row: `mount` is where programs work, `export` the same directory on the client. `cap`: seconds
    that one step may take."""

    def __init__(self, mounted: Mounted, export: Path, scratch: Path, cap: float, round_trip: float) -> None:
        self.mount, self.export, self.scratch, self.cap = mounted.path, export, scratch, cap
        self.round_trip = round_trip
        self.figures: dict[str, Figure] = {}
        self.seen: float | bool | None = None
        """Seconds until a change on the client was seen on the mount; False if it was not."""
        self.restored = True
        """Whether the mount showed in time that all is as it was before. What comes next is compared with the client's own."""
        self._mounted = mounted
        self._runs = 0

    @property
    def is_local(self) -> bool:
        return self.mount == self.export

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        lines: int | None = None,
    ) -> Ran:
        """Run it with its output in a file, in memory, until it ends, the cap is reached, or it has printed so many lines."""
        self._runs += 1
        output, errors = self.scratch / f"output{self._runs}", self.scratch / f"errors{self._runs}"
        before, started = processor_times(self._mounted), time.perf_counter()
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                [str(word) for word in command], cwd=cwd, env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        # Popen.wait with a timeout looks now and then; a wait without one is told.
        cut = threading.Event()
        timer = threading.Timer(self.cap, _cut_short, (process, cut))
        timer.start()
        while lines is not None and process.poll() is None and not cut.is_set():
            if _lines(output) >= lines:
                _cut_short(process, cut)
            time.sleep(_LOOK)
        status = process.wait()
        seconds = time.perf_counter() - started
        timer.cancel()
        timer.join()
        _end_group(process)
        after = processor_times(self._mounted)
        cpu = {name: round(after[name] - before.get(name, 0.0), 3) for name in after}
        return Ran(seconds, None if cut.is_set() else status, _lines(output), output, errors, cpu)

    def again(self, run: Callable[[], Ran]) -> Ran:
        """The middle one of three, in time; where one takes long it says enough."""
        runs = [run()]
        while len(runs) < _TIMES and runs[-1].status == 0 and runs[-1].seconds < _LONG:
            runs.append(run())
        return sorted(runs, key=lambda one: one.seconds)[len(runs) // 2]

    def keep(self, step: str, ran: Ran, whole: float, unit: str, right: Callable[[], bool], units: float | None = None) -> Figure:
        """Enter a run into the table. `units`: what it did, where that is not its lines; a run to its end did it all.
        Raises RuntimeError where the program failed."""
        if ran.status:
            raise RuntimeError(f"{step}: exit status {ran.status}: {ran.complaint()}")
        if ran.status is None:
            done = min(whole, ran.lines if units is None else units)
            figure = Figure(ran.seconds, done, whole, unit, None, ran.cpu)
        else:
            figure = Figure(ran.seconds, whole, whole, unit, right(), ran.cpu)
        self.figures[step] = figure
        return figure

    def watch_a_change(self, name: str) -> None:
        """Change a file on the client, in place and then by a new one under its name, and see how long the mount shows what was
        there before. The worst is kept; the file is then as it was, on the mount too if that shows it within the same time. It
        may be one that the mount has not shown yet."""
        if self.is_local:
            return
        behind, shown = self.export / name, self.mount / name
        before, stat = behind.read_bytes(), behind.stat()
        took = [self._until(lambda: shown.read_bytes() == before)]
        in_place, another = before + b"changed in place\n", b"another file\n" + before
        behind.write_bytes(in_place)
        took.append(self._until(lambda: shown.read_bytes() == in_place))
        if False not in took:
            new = behind.with_name(behind.name + ".new")
            new.write_bytes(another)
            new.chmod(stat.st_mode & 0o7777)
            new.rename(behind)
            took.append(self._until(lambda: shown.read_bytes() == another))
        behind.write_bytes(before)
        os.utime(behind, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        self.seen = False if False in took else max(took)
        self.restored = self._until(lambda: _told_of(shown) == _told_of(behind) and shown.read_bytes() == before) is not False

    def _until(self, shows: Callable[[], bool]) -> float | bool:
        """Seconds until the mount does; False where it takes too long."""
        started = time.perf_counter()
        until = started + SEEN_WITHIN + 10 * self.round_trip / 1000
        while time.perf_counter() < until:
            with contextlib.suppress(OSError):
                if shows():
                    return time.perf_counter() - started
            time.sleep(0.002)
        return False


def processor_times(mounted: Mounted) -> dict[str, float]:
    """Seconds of processor time of the contestant's processes (proc(5)), and of the programs that have ended, with this one."""
    found = {name: sum(map(_processor_time, pids)) for name, pids in mounted.processes().items()}
    of_mine = (resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF))
    return {**found, "program": sum(one.ru_utime + one.ru_stime for one in of_mine)}


def _told_of(file: Path) -> list[tuple[object, ...]]:
    """What is said of a file, of its directory and of the names there. Times in seconds, which is all that SFTP knows."""
    both = [one.lstat() for one in (file, file.parent)]
    names = tuple(sorted(os.listdir(file.parent)))
    return [(one.st_mode, int(one.st_mtime), one.st_size if one is both[0] else names) for one in both]


def _cut_short(process: subprocess.Popen[bytes], cut: threading.Event) -> None:
    cut.set()
    _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """What it has started ends with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n")


def _processor_time(pid: int) -> float:
    """Seconds. The scheduler's count is exact, but of the threads that are there; the other one has ticks, and all threads."""
    try:
        # The second field is a name in parentheses, with whatever in it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = [Path(f"/proc/{pid}/task/{thread}/schedstat").read_text() for thread in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return max((int(fields[11]) + int(fields[12])) / _TICK - 1 / _TICK, sum(int(one.split()[0]) for one in threads) / 1e9)
