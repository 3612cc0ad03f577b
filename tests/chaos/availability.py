"""Each part killed three times a minute, on a schedule: how many operations end right, and within 10 s."""

import contextlib
import itertools
import random
import time
from collections.abc import Callable
from typing import Any, Final

import faults
import run
from arena import Arena, Crowd, NotRecovered, Prober

EVERY: Final = 20.0
"""Seconds between two kills of one part."""
PARTS: Final = (faults.worker_killed, faults.daemon_killed, faults.keeper_killed, faults.link_cut)
PROMISED: Final = 0.999


def availability(arena: Arena, seconds: float, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The share, and the run's report. Recovery is automatic, or it is none."""
    crowd, prober = Crowd(arena, seed), Prober(arena.mount / "probe")
    chance = random.Random(seed)
    injected: list[faults.Injected] = []
    failures: list[str] = []
    began = time.monotonic()
    try:
        for number, fault in enumerate(itertools.cycle(PARTS), 1):
            due = began + number * EVERY / len(PARTS)
            if due > began + seconds:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            name = fault.__name__.replace("_", " ")
            try:
                one = faults.Injected(name, name, time.monotonic())
                injected.append(one)
                one.at = fault(arena.scene, chance)
                answered = prober.answered()
            except (NotRecovered, AssertionError) as error:
                failures.append(f"{name}: {error}")
                break
            one.recovered = None if answered is None else answered - one.at
            say(f"{time.monotonic() - began:7.1f} s  {name:20} {one.recovered}")
        failures += crowd.stop()
        with contextlib.suppress(NotRecovered):
            prober.end()
        failures += run.finished(arena, crowd, injected)
    finally:
        crowd.kill()
        prober.kill()
    report = run.summary(crowd, injected)
    bad = report["slow"] + report["errors"] + report["wrong"]
    share = 1.0 - bad / max(1, report["operations"])
    if share < PROMISED:
        failures.append(f"only {share:.4%} of the operations ended right within 10 s")
    say(f"{share:.5%} of {report['operations']} operations ended right within 10 s; the slowest took {report['slowest']:.2f} s")
    run.show(report, say)
    return {**report, "share": share, "lasted": time.monotonic() - began, "failures": failures}
