"""Whether a greedy session makes another's operations slow.

One session is worked in at leisure: a file opened, written and closed, a hundred times a second. Beside it are, in turn, nobody;
one program that works in another session as fast as it can; ten of them, each in a session of its own; a client that tells of
changes as fast as the server takes it; and, to tell what is the machine's own doing, as many programs that only count, and have
nothing to do with the server. Every part comes several times, between two in which there is nobody, and is compared with those.

Clients are on other machines. Here they have one processor to themselves, and the server and all programs have the others: or
what a busy client takes of the machine for itself would be counted as what it costs others. With one processor nothing is apart.
"""

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import crowd
import sessions

TIMES: Final = 3
_PAUSE: Final = 0.01
_MANY: Final = 10
ALONE: Final = "nobody"


def measure(seconds: float) -> dict[str, Any]:
    """Each part takes so long in all."""
    with _apart() as far, sessions.place() as here, contextlib.ExitStack() as stack:
        # Processes of their own, so that no client waits for another: they would not be on one machine.
        light, greedy = (stack.enter_context(crowd.Crowd(here.server.port, here.token, cpus=far)) for _ in range(2))
        noisy = stack.enter_context(crowd.Crowd(here.server.port, here.token, first=False, cpus=far))
        names = [f"greedy{number}" for number in range(_MANY)]
        mount = light.open(["light"], 1)["mounts"]["light"]
        mounts = list(greedy.open(names, 5)["mounts"].values())
        noisy.open(["noisy"], 1)
        parts: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
            "one program": lambda: _programs(mounts[:1]),
            f"{_MANY} programs": lambda: _programs(mounts),
            "a busy client": lambda: _busy(noisy),
            "one that counts": lambda: _programs([""]),
            f"{_MANY} that count": lambda: _programs([""] * _MANY),
        }
        times: dict[str, list[float]] = {name: [] for name in (ALONE, *parts)}
        ratios: dict[str, list[float]] = {name: [] for name in parts}
        each = seconds / TIMES
        before = _work(mount, each)
        for _ in range(TIMES):
            for name, beside in parts.items():
                with beside():
                    during = _work(mount, each)
                after = _work(mount, each)
                alone = sessions.spread(before + after)["p99"]
                ratios[name].append(sessions.spread(during)["p99"] / alone)
                times[name] += during
                times[ALONE] += after
                before = after
        for clients in (light, greedy, noisy):
            clients.close()
    return {
        name: {**sessions.spread(taken), "ratio": statistics.median(ratios[name]) if name in ratios else 1.0}
        for name, taken in times.items()
    }


@contextlib.contextmanager
def _apart() -> Iterator[set[int]]:
    """One processor for the clients, which is given; this process, and what it starts, has the others meanwhile."""
    every = os.sched_getaffinity(0)
    far = set(sorted(every)[:1]) if len(every) > 1 else set[int]()
    os.sched_setaffinity(0, every - far)
    try:
        yield far
    finally:
        os.sched_setaffinity(0, every)


def _work(mount: str, seconds: float) -> list[float]:
    """How long each of its steps took."""
    times = []
    path, end = f"{mount}/light", time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            file.write(b"light")
        times.append(time.perf_counter() - began)
        time.sleep(_PAUSE)
    return times


@contextlib.contextmanager
def _programs(mounts: list[str]) -> Iterator[None]:
    pids = [_program(mount) for mount in mounts]
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def _program(mount: str) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            sessions.be_by_itself()
            number = 0
            while True:
                number += 1
                if mount:
                    sessions.one_turn(mount, number)
        finally:
            os._exit(1)
    return pid


@contextlib.contextmanager
def _busy(noisy: crowd.Crowd) -> Iterator[None]:
    noisy.busy("noisy", busy=True)
    try:
        yield
    finally:
        noisy.busy("noisy", busy=False)


def show(parts: dict[str, Any]) -> None:
    """As a table."""
    print(f"\n{'one session at leisure; beside it':<36} {'median':>8} {'p99':>8} {'most':>8} ms   p99 against alone")
    for name, of in parts.items():
        print(f"{name:<36} {of['p50']:>8.2f} {of['p99']:>8.2f} {of['max']:>8.2f}      {of['ratio']:>8.2f}x")


__all__ = ["measure", "show"]
