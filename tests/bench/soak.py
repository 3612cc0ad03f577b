"""Sessions that come and go for a long time, with work in them: nothing may grow.

`make bench BENCH_FLAGS='--sessions --soak 30'` (minutes). There are always some that stay, and every round some leave, in order
or without a word, and as many come. After each round everybody's memory and descriptors are counted. They grow if the last third
of the rounds has more of them than the second one: the first is for what is only made once.
"""

import random
import statistics
import time
from typing import Any, Final

import crowd
import sessions

STAY: Final = 20
CHURN: Final = 30
"""Sessions that come, and go again, in each round."""
_SLACK: Final = {"pss": 1.0, "stay": 0.25, "descriptors": 1.0}
"""What may be more, and is no growth: MiB of the daemon's, the keeper's and the supervisor's memory, and of each that stays; and
a descriptor of one that has just ended."""
_LEFT_AFTER: Final = 60.0


def soak(seconds: float) -> dict[str, Any]:
    from harness.waiting import until

    chance = random.Random(1)
    rounds: list[dict[str, float]] = []
    errors: list[str] = []
    with sessions.place(outage={"grace": "0s"}) as here, crowd.Crowd(here.server.port, here.token) as clients:
        staying = list(clients.open([f"stays{number}" for number in range(STAY)], STAY)["mounts"].values())
        workers = here.parts.workers
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            number += 1
            names = [f"round{number}-{one}" for one in range(CHURN)]
            opened = clients.open(names, 10)
            errors += [f"{name}: {why}" for name, why in opened["refused"].items()]
            done = sessions.work([*staying, *opened["mounts"].values()], 2, 1)
            errors += done["errors"]
            lost = chance.sample(names, CHURN // 3)
            clients.vanish(lost)
            clients.leave([name for name in names if name not in lost])
            until(lambda: len(here.parts.workers) == STAY, "those that left have gone", _LEFT_AFTER)
            counted = sessions.descriptors(here)
            rounds.append({
                "pss": sessions.pss([here.parts.supervisor, here.keeper, here.daemon]),
                "stay": sessions.pss(workers) / STAY,
                "descriptors": counted["supervisor"] + counted["keeper"] + counted["daemon"] + counted["worker"],
                "p99": max(done[name]["p99"] for name in sessions.OPERATIONS),
            })  # fmt: skip
        clients.close()
    third = max(1, len(rounds) // 3)
    medians = {
        name: [statistics.median(one[name] for one in part) for part in (rounds[third : 2 * third] or rounds, rounds[-third:])]
        for name in ("pss", "stay", "descriptors", "p99")
    }
    grown = [name for name, slack in _SLACK.items() if medians[name][1] > medians[name][0] + slack]
    return {
        "seconds": seconds, "rounds": len(rounds), "sessions": STAY + CHURN * len(rounds), "medians": medians, "grown": grown,
        "errors": errors, "all": rounds,
    }  # fmt: skip


def show(of: dict[str, Any]) -> None:
    print(f"{of['rounds']} rounds, {of['sessions']} sessions in {of['seconds']:.0f} s, {len(of['errors'])} errors")
    texts = {
        "pss": "MiB of supervisor, keeper and daemon", "stay": "MiB of each session that stays",
        "descriptors": "descriptors of all of them and of a worker", "p99": "p99 of the slowest operation, ms",
    }  # fmt: skip
    for name, text in texts.items():
        middle, last = of["medians"][name]
        print(f"{text:<44} {middle:>9.2f} in the second third, {last:>9.2f} in the last")
    print("grown: " + (", ".join(of["grown"]) or "nothing"))


__all__ = ["show", "soak"]
