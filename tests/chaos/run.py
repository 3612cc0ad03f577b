"""One run: the load, the faults in the plan's order, and the verdict."""

import contextlib
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import verdict
from arena import Arena, Crowd, NotRecovered, Prober
from faults import Injected, Plan, inject
from harness.waiting import told

Say = Callable[[str], None]
_WARM: Final = 1.0
"""Seconds in which the load gets going."""


def chaos(arena: Arena, plan: Plan, say: Say) -> dict[str, Any]:
    """Inject what the plan says. `failures` of the report is empty if nobody has noticed anything."""
    crowd = Crowd(arena, plan.seed)
    prober = Prober(arena.mount / "probe")
    chance = random.Random(f"faults of {plan.seed}")
    injected: list[Injected] = []
    failures: list[str] = []
    count = 0
    try:
        time.sleep(_WARM)
        for number, step in enumerate(plan.steps, 1):
            try:
                one = inject(step, arena.scene, chance)
                injected.append(one)
                answered = prober.answered()
            except (NotRecovered, AssertionError) as error:
                failures.append(f"fault {number} ({', '.join(kind.name for kind in step)}): {error}")
                break
            one.recovered = None if answered is None else answered - one.at
            say(f"{number:4}/{len(plan.steps)} {one.what:45} {_seconds(one.recovered)}")
            if crowd.fallen:
                failures.append(f"programs ended by themselves: {crowd.fallen}")
                break
            time.sleep(chance.uniform(0.0, 0.8))
        say("the load comes to its end")
        failures += crowd.stop()
        with contextlib.suppress(NotRecovered):
            count = prober.end()
        failures += finished(arena, crowd, injected)
        if prober.errors:
            failures.append(f"errors of the prober: {prober.errors}")
        if not failures and prober.path.read_bytes() != f"{count:010}".encode():
            failures.append(f"the prober wrote {count}, and {prober.path.read_bytes()!r} is there")
    finally:
        crowd.kill()
        prober.kill()
    return {**summary(crowd, injected), "failures": failures}


def finished(arena: Arena, crowd: Crowd, injected: list[Injected]) -> list[str]:
    """What was wrong, once the load has ended."""
    found = []
    for report in crowd.reports.values():
        for error in report["errors"]:
            found.append(f"{error['program']}: {error['operation']} {error['path']}: {error['text']} {after(error, injected)}")
        for wrong in report["wrong"]:
            found.append(f"{wrong['program']}: {wrong['what']} {after(wrong, injected)}")
    if crowd.reports:
        found += verdict.compare(crowd.reports, arena.mount, arena.export)
    return found + arena.faults_of_the_end()


def after(what: dict[str, Any], injected: list[Injected]) -> str:
    """Which faults came before it."""
    before = [one for one in injected if one.begun <= what["at"]]
    lasted = f"began {what['at'] - what['began']:.3f} s before, " if "began" in what else ""
    return f"[{lasted}" + "; ".join(f"{what['at'] - one.begun:.3f} s after {one.what}" for one in before[-2:]) + "]"


def summary(crowd: Crowd, injected: list[Injected]) -> dict[str, Any]:
    """The figures: by kind of fault, and of the load as a whole."""
    kinds: dict[str, list[float]] = {}
    for one in injected:
        if one.recovered is not None:
            kinds.setdefault(one.kind, []).append(one.recovered)
    by_kind = {
        kind: {"count": len(times), "median": statistics.median(times), "worst": max(times)}
        for kind, times in sorted(kinds.items())
    }
    reports = crowd.reports.values()
    return {
        "faults": len(injected),
        "kinds": by_kind,
        "operations": sum(report["operations"] for report in reports),
        "slow": sum(report["slow"] for report in reports),
        "slowest": max((report["slowest"] for report in reports), default=0.0),
        "errors": sum(len(report["errors"]) for report in reports),
        "wrong": sum(len(report["wrong"]) for report in reports),
        "programs": {name: report["operations"] for name, report in crowd.reports.items()},
    }


def show(report: dict[str, Any], say: Say) -> None:
    """As a table."""
    say(f"\n{'fault':36} {'times':>6} {'median':>9} {'worst':>9}   seconds to the first answered operation")
    for kind, of in report["kinds"].items():
        say(f"{kind:36} {of['count']:>6} {of['median']:>9.3f} {of['worst']:>9.3f}")
    say(f"{report['faults']} faults, {report['operations']} operations, the slowest took {report['slowest']:.1f} s; "
        f"{report['errors']} errors, {report['wrong']} times something wrong")  # fmt: skip


def audit_kinds(arena: Arena) -> dict[str, int]:
    """How many records of each kind there are."""
    kinds: dict[str, int] = {}
    for record in told(arena.server):
        kinds[record["FUSE_GATED_KIND"]] = kinds.get(record["FUSE_GATED_KIND"], 0) + 1
    return kinds


def _seconds(value: float | None) -> str:
    return "an error" if value is None else f"{value:7.3f} s"
