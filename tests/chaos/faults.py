"""What may go wrong with a session's parts, one at a time or several at once.

Each fault is a function of the Scene and of chance. It returns when it has had its effect: the moment from which the time to the
first answered operation counts (time.monotonic()).
"""

import random
import signal
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Final

from harness.parts import Parts, end
from harness.proxy import Proxy, any_direction
from harness.server import Server
from harness.waiting import until

DEAD_AFTER: Final = 2.0
"""The client's --dead-after."""
_QUIET: Final = 10.0
"""Seconds after which a link that nobody uses is cut anyway."""


@dataclass
class Scene:
    """Where faults happen."""

    server: Server
    parts: Parts
    proxy: Proxy
    pace: "Pace"


class Pace:
    """Holds a fault back where the product would take it for a crash loop, and end: its bounds are a decision of its own
    (supervisor.MAX_DEATHS, seats._MOST_FALLS), and these stay below them."""

    BOUNDS: Final = {"worker": (8, 60.0), "daemon": (4, 30.0), "keeper": (4, 30.0)}

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {part: deque() for part in self.BOUNDS}

    def await_turn(self, part: str, kills: int = 1) -> None:
        """Return when it may be killed so many times more."""
        most, within = self.BOUNDS[part]
        times = self._times[part]
        while len(times) + kills > most:
            time.sleep(max(0.0, times.popleft() + within - time.monotonic()))
        times.extend([time.monotonic()] * kills)


Fault = Callable[[Scene, random.Random], float]


def worker_killed(scene: Scene, chance: random.Random) -> float:
    scene.pace.await_turn("worker")
    end(scene.parts.worker, signal.SIGKILL)
    return time.monotonic()


def worker_killed_twice(scene: Scene, chance: random.Random) -> float:
    """And whoever comes after it, as soon as it is there."""
    worker_killed(scene, chance)
    return worker_killed(scene, chance)


def killed_in_takeover(scene: Scene, chance: random.Random) -> float:
    """The client is back with another worker, to which the session is just going over: that one is killed, or the old one."""
    old = scene.parts.worker
    scene.pace.await_turn("worker")
    scene.proxy.cut()
    until(lambda: any(pid != old for pid in scene.parts.workers), "the client comes back")
    time.sleep(chance.uniform(0.0, 0.03))
    end(chance.choice((scene.parts.worker, old)), signal.SIGKILL)
    return time.monotonic()


def standby_killed(scene: Scene, chance: random.Random) -> float:
    """While the client is away, who serves the mount is killed, and its successor too."""
    # Before: whoever waited for a turn while the client is kept out would measure that.
    scene.pace.await_turn("worker", 2)
    scene.proxy.refuse()
    try:
        scene.proxy.cut()
        for _ in range(2):
            end(scene.parts.worker, signal.SIGKILL)
        return time.monotonic()
    finally:
        scene.proxy.refuse(False)


def worker_terminated(scene: Scene, chance: random.Random) -> float:
    scene.pace.await_turn("worker")
    end(scene.parts.worker, signal.SIGTERM)
    return time.monotonic()


def daemon_killed(scene: Scene, chance: random.Random) -> float:
    scene.pace.await_turn("daemon")
    end(scene.parts.daemon, signal.SIGKILL)
    return time.monotonic()


def keeper_killed(scene: Scene, chance: random.Random) -> float:
    scene.pace.await_turn("keeper")
    end(scene.parts.keeper, signal.SIGKILL)
    return time.monotonic()


def daemon_and_keeper_killed(scene: Scene, chance: random.Random) -> float:
    first, second = chance.sample((daemon_killed, keeper_killed), 2)
    first(scene, chance)
    return second(scene, chance)


def reloaded(scene: Scene, chance: random.Random) -> float:
    scene.server.program.send(signal.SIGHUP)
    return time.monotonic()


def link_cut(scene: Scene, chance: random.Random) -> float:
    scene.proxy.cut()
    return time.monotonic()


def link_cut_in_a_frame(scene: Scene, chance: random.Random) -> float:
    happened = scene.proxy.cut_after(any_direction(chance), chance.randint(1, chance.choice((20, 400, 20_000))))
    try:
        return happened.result(_QUIET)
    except NotYet:
        return link_cut(scene, chance)


def link_half_open(scene: Scene, chance: random.Random) -> float:
    scene.proxy.darken()
    return time.monotonic()


def link_stalled(scene: Scene, chance: random.Random) -> float:
    """One way, for less than the time after which it would be taken for dead, or for more."""
    scene.proxy.stall(any_direction(chance), chance.choice((0.3, 0.8, 1.5)) * DEAD_AFTER)
    return time.monotonic()


def link_delayed(scene: Scene, chance: random.Random) -> float:
    scene.proxy.delay(chance.uniform(0.02, 0.2), 2.0)
    return time.monotonic()


def link_trickles(scene: Scene, chance: random.Random) -> float:
    scene.proxy.trickle(chance.choice((500.0, 5_000.0, 50_000.0)), 2.0)
    return time.monotonic()


@dataclass(frozen=True)
class Kind:
    """`weight`: how often, beside the others. `portable`: whether a mount of libfuse's survives it too."""

    name: str
    fault: Fault
    weight: int = 2
    portable: bool = True


KINDS: Final = (
    Kind("worker killed", worker_killed, 3),
    Kind("worker and its successor killed", worker_killed_twice),
    Kind("worker killed in a takeover", killed_in_takeover),
    Kind("standby killed, and its successor", standby_killed),
    Kind("worker told to end", worker_terminated),
    Kind("daemon killed", daemon_killed, 3, portable=False),
    Kind("mount keeper killed", keeper_killed, 3, portable=False),
    Kind("daemon and mount keeper killed", daemon_and_keeper_killed, 1, portable=False),
    Kind("policy reloaded", reloaded, 1),
    Kind("connection cut", link_cut, 3),
    Kind("connection cut in a frame", link_cut_in_a_frame, 4),
    Kind("connection half-open", link_half_open, 3),
    Kind("connection stalled one way", link_stalled, 3),
    Kind("connection delayed", link_delayed),
    Kind("connection slow", link_trickles),
)
OVERLAPPING: Final = "two at once"
_OVERLAPPING_SHARE: Final = 0.15


@dataclass
class Injected:
    """One fault that was injected. `at` is when it had its effect, `recovered` how many seconds later an operation that was
    begun then was answered. All times are of time.monotonic()."""

    kind: str
    what: str
    begun: float
    at: float = 0.0
    recovered: float | None = None


@dataclass
class Plan:
    """Which faults, and in which order: the same for the same seed and driver."""

    seed: int
    count: int
    only: tuple[str, ...] = ()
    driver: str = "kernel"
    steps: list[tuple[Kind, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        kinds = [kind for kind in KINDS if not self.only or kind.name in self.only]
        kinds = [kind for kind in kinds if kind.portable or self.driver == "kernel"]
        # Each kind once before chance decides, so that a short run has all of them where it has room.
        first = chance.sample(kinds, len(kinds))
        for number in range(self.count):
            if number < len(first):
                self.steps.append((first[number],))
            elif chance.random() < _OVERLAPPING_SHARE:
                self.steps.append(tuple(chance.choices(kinds, [kind.weight for kind in kinds], k=2)))
            else:
                self.steps.append(tuple(chance.choices(kinds, [kind.weight for kind in kinds])))


def inject(step: tuple[Kind, ...], scene: Scene, chance: random.Random) -> Injected:
    """Do it. Two at once: the second before the session has recovered from the first."""
    what = ", ".join(kind.name for kind in step)
    injected = Injected(step[0].name if len(step) == 1 else OVERLAPPING, what, time.monotonic())
    for number, kind in enumerate(step):
        if number:
            time.sleep(chance.uniform(0.0, 0.5))
        injected.at = kind.fault(scene, chance)
    return injected
