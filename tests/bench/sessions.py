"""A thousand sessions on one machine: `make bench BENCH_FLAGS=--sessions`; `BENCH_FLAGS='--sessions --help'` for the sizes.

The clients are a crowd in one process (crowd.py), so that nearly all of the machine is the server's; the mounts are real. For
each number of sessions: how long opening takes, what an idle session costs (memory is PSS, smaps_rollup of proc(5): pages that
several processes share count in parts; processor time is the scheduler's own count, /proc/PID/task/TID/schedstat), how programs
fare that list, read and write in every session in turn, and how long closing takes. Then fairness (fairness.py); with --soak
instead a soak (soak.py). What is compared is measured in one run. Prints tables, writes JSON; fails nothing.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import crowd
import msgspec

COUNTS: Final = (1, 100, 1000, 2000)
AT_ONCE: Final = 50
"""Connections that are being opened at any moment."""
_ROOM: Final = 3 * 2**30
"""Bytes of memory that are left to the machine's others: where there are fewer, no more sessions are opened."""
_STEP: Final = 250
_LEFT_AFTER: Final = 60.0
_STILL: Final = 0.5
OPERATIONS: Final = ("list", "stat", "read", "write")


def main(arguments: Sequence[str]) -> int:
    """With the flags after --sessions; the exit status."""
    import fairness
    import soak

    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="bench.py --sessions", description=__doc__, formatter_class=formatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, metavar="N", help="of sessions (%(default)s)")
    parser.add_argument("--most", type=int, default=0, metavar="N", help="then go on to so many, or to where it breaks")
    parser.add_argument("--burst", type=int, default=100, metavar="N", help="connections at once (%(default)s)")
    parser.add_argument("--programs", type=int, default=4, metavar="N", help="that work at the same time (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="of every program through its sessions (%(default)s)")
    parser.add_argument("--idle", type=float, default=20, metavar="S", help="seconds to watch idle ones (%(default)s)")
    parser.add_argument("--seconds", type=float, default=6, metavar="S", help="of each part of fairness (%(default)s; 0: none)")
    parser.add_argument("--soak", type=float, default=0, metavar="MIN", help="minutes of churn, instead of all that (30)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/sessions.json"), help="where the figures go (%(default)s)")
    chosen = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("bench: run it as root: it is about the kernel driver", file=sys.stderr)
        return 1
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(), "load": os.getloadavg()}
    report: dict[str, Any] = {"machine": machine}
    if chosen.soak:
        report["soak"] = soak.soak(chosen.soak * 60)
        soak.show(report["soak"])
    else:
        report["sessions"] = [measure(count, chosen) for count in sorted(chosen.counts)]
        show(report["sessions"])
        report["burst"] = burst(chosen.burst)
        show_burst(report["burst"])
        if chosen.seconds:
            report["fairness"] = fairness.measure(chosen.seconds)
            fairness.show(report["fairness"])
        if chosen.most:
            report["most"] = most(chosen.most)
            print(f"\n{report['most']['sessions']} sessions were open; then: {report['most']['why']}")
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(report, indent=1))
    print(f"\nThe figures are in {chosen.json}.")
    return 0


class Place:
    """A server for very many sessions, and its processes."""

    def __init__(self, stage: Any, **tenant: Any) -> None:
        from harness import ALLOW_ALL, token
        from harness.parts import Parts

        self.token = token("bench")
        policy = {"users": ["root"], "rules": ALLOW_ALL, "exports": {"max_sessions": 100_000}, **tenant}
        # All of them come from one address, and at once; nothing else differs from what there is without a fuse-gated.yaml.
        settings = {"max_sessions": 100_000, "admission": {"startups": 1000, "per_address": 1000}, "seccomp": True}
        self.server = stage.server({"tenants": {"bench": policy}}, settings)
        self.parts = Parts(self.server)
        self.daemon, self.keeper = self.parts.daemon, self.parts.keeper

    @property
    def pids(self) -> list[int]:
        return [self.parts.supervisor, self.keeper, self.daemon, *self.parts.workers]


@contextlib.contextmanager
def place(**tenant: Any) -> Iterator[Place]:
    """One to measure, which has served a session already: what the first connection loads is not the first session's."""
    from harness import Stage
    from harness.waiting import until

    with Stage("kernel") as stage:
        made = Place(stage, **tenant)
        with crowd.Crowd(made.server.port, made.token) as first:
            first.open(["first"], 1)
            first.close()
        until(lambda: not made.parts.workers, "the first session has gone")
        # Its last words are told and its descriptors let go of a moment later.
        until(lambda: _stands_still(made), "the daemon has let go of the first session")
        yield made


def measure(count: int, chosen: Any) -> dict[str, Any]:
    """A row of figures for so many sessions."""
    from harness.waiting import until

    with place() as here, crowd.Crowd(here.server.port, here.token) as clients:
        row: dict[str, Any] = {"sessions": count, "empty": {"pss": pss(here.pids), "descriptors": descriptors(here)}}
        before = processor([here.daemon, here.keeper, clients.pid])
        began = time.monotonic()
        opened = clients.open([f"s{number}" for number in range(count)], AT_ONCE)
        row["open"] = {
            "seconds": time.monotonic() - began, "each": spread(opened["seconds"]), "refused": opened["refused"],
            "tries": opened["tries"],
        }  # fmt: skip
        after = processor(before)
        names = {here.daemon: "daemon", here.keeper: "keeper", clients.pid: "clients"}
        row["open"]["processor"] = {names[pid]: (after[pid] - before[pid]) / count for pid in before}
        mounts = list(opened["mounts"].values())
        # What was put off has been done.
        time.sleep(min(6.0, chosen.idle))
        row["idle"] = {**idle(here, chosen.idle), "pss": pss(here.pids), "descriptors": descriptors(here)}
        began = time.monotonic()
        row["work"] = work(mounts, chosen.programs, chosen.rounds)
        row["work"]["seconds"] = time.monotonic() - began
        row["after"] = {"pss": pss(here.pids)}
        began = time.monotonic()
        row["close"] = {"in_order": clients.close()}
        until(lambda: not any(map(os.path.lexists, mounts)), "all mounts are gone", _LEFT_AFTER)
        until(lambda: not here.parts.workers, "all workers have ended", _LEFT_AFTER)
        until(lambda: _settled(here, row["empty"]["descriptors"]), "the daemon has let go of them", _LEFT_AFTER)
        row["close"]["seconds"] = time.monotonic() - began
        row["left"] = {"pss": pss(here.pids), "descriptors": descriptors(here)}
    return row


def burst(count: int) -> dict[str, Any]:
    """So many connections at once, before a server that has no session; and one alone, several times."""
    with place() as here, crowd.Crowd(here.server.port, here.token) as clients:
        alone = [clients.open([f"alone{number}"], 1)["seconds"][0] for number in range(20)]
        opened = clients.open([f"s{number}" for number in range(count)], count)
        clients.close()
        return {"count": count, "alone": spread(alone), "each": spread(opened["seconds"]), "refused": opened["refused"]}


def most(count: int) -> dict[str, Any]:
    """Open more and more of them."""
    with place() as here, crowd.Crowd(here.server.port, here.token) as clients:
        opened, why = 0, "as many as were asked for"
        while opened < count:
            if (free := _free()) < _ROOM:
                why = f"{free / 2**30:.1f} GiB of memory are left"
                break
            some = min(_STEP, count - opened)
            answer = clients.open([f"s{number}" for number in range(opened, opened + some)], AT_ONCE)
            opened += len(answer["mounts"])
            if answer["refused"]:
                why = next(iter(answer["refused"].values()))
                break
        figures = {"sessions": opened, "why": why, "pss": pss(here.pids), "descriptors": descriptors(here)}
        clients.close()
        return figures


def work(mounts: list[str], programs: int, rounds: int) -> dict[str, Any]:
    """Programs go through all sessions, each through its share, and list, stat, read and write in every one."""
    shares = [mounts[number::programs] for number in range(programs)]
    children = [_program(share, rounds) for share in shares if share]
    results = [_result(*child) for child in children]
    return {
        "errors": sorted({error for _, errors in results for error in errors}),
        **{name: spread([taken for times, _ in results for taken in times[name]]) for name in OPERATIONS},
    }


def _program(mounts: list[str], rounds: int) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            be_by_itself()
            with open(writer, "wb") as pipe:
                pipe.write(msgspec.msgpack.encode(_rounds(mounts, rounds)))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    return pid, reader


def be_by_itself() -> None:
    """As a login of its own, or what systemd has started: the scheduler counts it by itself."""
    os.setsid()


def _result(pid: int, reader: int) -> tuple[dict[str, list[float]], list[str]]:
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    times, errors = msgspec.msgpack.decode(answer)
    return times, errors


def _rounds(mounts: list[str], rounds: int) -> tuple[dict[str, list[float]], list[str]]:
    times: dict[str, list[float]] = {name: [] for name in OPERATIONS}
    errors: list[str] = []
    for number in range(rounds):
        for mount in random.sample(mounts, len(mounts)):
            try:
                for name, taken in one_turn(mount, number).items():
                    times[name].append(taken)
            except (OSError, AssertionError) as error:
                errors.append(f"{mount}: {error}")
    return times, errors


def one_turn(mount: str, number: int) -> dict[str, float]:
    """Work in one session: seconds by what was done. Raises AssertionError for what is not as it should be."""
    chosen = random.randrange(crowd.FILES)
    path, own = f"{mount}/file{chosen}", f"{mount}/written"
    moments = [time.perf_counter()]
    names = os.listdir(mount)
    moments.append(time.perf_counter())
    size = os.stat(path).st_size
    moments.append(time.perf_counter())
    with open(path, "rb", buffering=0) as file:
        content = file.read()
    moments.append(time.perf_counter())
    with open(own, "wb", buffering=0) as file:
        file.write(b"%d" % number * 100)
    moments.append(time.perf_counter())
    assert content == (b"file%d" % chosen).ljust(crowd.SIZE, b"."), "other content"
    assert (len(names) >= crowd.FILES, size) == (True, crowd.SIZE), f"{len(names)} names, {size} bytes"
    return {name: moments[index + 1] - moments[index] for index, name in enumerate(OPERATIONS)}


def idle(here: Place, seconds: float) -> dict[str, float]:
    """Of a core, in per cent, by what takes it."""
    pids = here.pids
    before, began = processor(pids), time.monotonic()
    time.sleep(seconds)
    after, passed = processor(before), time.monotonic() - began
    used = {pid: (after[pid] - before[pid]) / passed * 100 for pid in before if pid in after}
    workers = sum(share for pid, share in used.items() if pid not in (here.daemon, here.keeper, here.parts.supervisor))
    return {"daemon": used[here.daemon], "workers": workers, "all": sum(used.values())}


def processor(pids: Any) -> dict[int, float]:
    """Seconds of processor time that each has used, with all its threads; without those that are gone."""
    used = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            tasks = os.listdir(f"/proc/{pid}/task")
            used[pid] = sum(int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0]) for task in tasks) / 1e9
    return used


def pss(pids: Sequence[int]) -> float:
    """MiB, of all together; those that have just ended have none."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def descriptors(here: Place) -> dict[str, int]:
    """How many each part has open; of the workers, the one with most."""
    def of(pid: int) -> int:
        with contextlib.suppress(FileNotFoundError):
            return len(os.listdir(f"/proc/{pid}/fd"))
        return 0

    workers = here.parts.workers
    sample = workers if len(workers) <= _STEP else random.sample(workers, _STEP)
    return {
        "supervisor": of(here.parts.supervisor), "keeper": of(here.keeper), "daemon": of(here.daemon),
        "worker": max(map(of, sample), default=0),
    }  # fmt: skip


def _stands_still(here: Place) -> bool:
    first = descriptors(here)
    time.sleep(_STILL)
    return descriptors(here) == first


def _settled(here: Place, empty: dict[str, int]) -> bool:
    return descriptors(here)["daemon"] <= empty["daemon"] + 1


def spread(times: list[float]) -> dict[str, float]:
    """In milliseconds: mean, median, 99th percentile and the most."""
    if not times:
        return {"count": 0, "mean": 0.0, "p50": 0.0, "p99": 0.0, "max": 0.0}
    ordered = sorted(times)
    return {
        "count": len(times), "mean": statistics.fmean(times) * 1000, "p50": ordered[len(times) // 2] * 1000,
        "p99": ordered[min(len(times) - 1, len(times) * 99 // 100)] * 1000, "max": ordered[-1] * 1000,
    }  # fmt: skip


def _free() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no MemAvailable")


def show(rows: list[dict[str, Any]]) -> None:
    """As tables."""
    print(f"{'':>8} {'opening':^43} {'idle: memory':^21} {'processor,':>10}  {'descriptors':^35} {'closing':>8}")
    heads = ("sessions", "all of them", "one: median", "p99", "refused", "all", "a session", "of a core")
    print("{:>8} {:>12} {:>12} {:>9} {:>7} {:>10} {:>10} {:>10}".format(*heads), " supervisor keeper  daemon worker")
    for row in rows:
        opening, resting = row["open"], row["idle"]
        each, there = opening["each"], resting["descriptors"]
        print(
            f"{row['sessions']:>8} {opening['seconds']:>10.1f} s {each['p50']:>9.0f} ms {each['p99']:>6.0f} ms"
            f" {len(opening['refused']):>7} {resting['pss']:>6.0f} MiB {_each(row, 'idle'):>6.2f} MiB {resting['all']:>8.2f} %"
            f"  {there['supervisor']:>10} {there['keeper']:>6} {there['daemon']:>7} {there['worker']:>6}"
            f" {row['close']['seconds']:>6.1f} s"
        )
    heads = ("median", "p99", "mean", "most")
    print("\n{:>8} programs in all sessions in turn, ms: {:>8} {:>8} {:>8} {:>8}   errors  memory a session".format("", *heads))
    for row in rows:
        for name in OPERATIONS:
            done = row["work"][name]
            last = f"   {len(row['work']['errors']):>6}  {_each(row, 'after'):>6.2f} MiB" if name == OPERATIONS[0] else ""
            figures = " ".join(f"{done[which]:>8.2f}" for which in ("p50", "p99", "mean", "max"))
            print(f"{row['sessions']:>8} {name:<35} {figures}{last}")


def _each(row: dict[str, Any], when: str) -> float:
    more: float = row[when]["pss"] - row["empty"]["pss"]
    return more / row["sessions"]


def show_burst(of: dict[str, Any]) -> None:
    alone, each = of["alone"], of["each"]
    print(f"\none connection alone until it is mounted: {alone['p50']:.0f} ms, at most {alone['max']:.0f} ms")
    print(f"{of['count']} at once: {each['p50']:.0f} ms, p99 {each['p99']:.0f} ms; refused: {len(of['refused'])}")


__all__ = ["main"]
