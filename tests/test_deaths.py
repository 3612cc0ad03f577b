"""deaths.py: whose end is noticed, and how many are looked at for it. The clock is the test's."""

import time
from collections.abc import Iterator

import pytest

from fuse_gated import deaths
from fuse_gated.deaths import Deaths
from fuse_gated.edge.loop import Loop


class Worker:
    """A guest, as far as it is looked at."""

    def __init__(self, *, seat: object | None = "a session") -> None:
        self.seat = seat
        self.dead = False
        self.ended = False
        self.looks = 0

    def has_ended(self) -> bool:
        self.looks += 1
        return self.ended


class Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.loop = Loop()
        self.loop.now = self.now
        self.workers: list[Worker] = []
        self.died: list[Worker] = []
        self.deaths = Deaths(self.loop, lambda: self.workers, self._die)

    def _die(self, worker: Worker) -> None:
        worker.dead = True
        self.died.append(worker)

    def pass_(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.125)
            self.loop.soon(lambda: None)
            self.loop.turn()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(monkeypatch)
    yield made
    made.loop.close()


def test_one_whose_channel_ends_is_looked_at_soon(scene):
    worker = Worker()
    worker.ended = True
    scene.deaths.silent(worker)
    assert scene.died == [], "its pidfd may tell first"
    scene.pass_(deaths.SOON)
    assert scene.died == [worker]
    scene.pass_(10.0)
    assert worker.looks == 1, "and no more then"


def test_what_the_pidfd_has_told_is_not_told_again(scene):
    worker = Worker()
    scene.deaths.silent(worker)
    worker.ended = worker.dead = True
    scene.pass_(10.0)
    assert scene.died == []
    assert worker.looks == 0


def test_one_that_closes_its_channel_and_lives_on_is_looked_at_until_it_ends(scene):
    worker = Worker()
    scene.deaths.silent(worker)
    scene.pass_(100.0)
    assert scene.died == []
    worker.ended = True
    scene.pass_(deaths.EVERY)
    assert scene.died == [worker]


def test_one_that_says_nothing_is_noticed_too(scene):
    scene.workers = [Worker() for _ in range(3)]
    scene.deaths.begin()
    scene.workers[1].ended = True
    scene.pass_(deaths.EVERY)
    assert scene.died == [scene.workers[1]]


def test_who_has_no_session_is_nobodys_loss(scene):
    worker = Worker(seat=None)
    worker.ended = True
    scene.workers = [worker]
    scene.deaths.begin()
    scene.deaths.silent(worker)
    scene.pass_(5.0)
    assert scene.died == []
    worker.seat = "a session"
    scene.pass_(deaths.EVERY)
    assert scene.died == [worker]


def test_a_thousand_are_looked_at_in_turn(scene):
    scene.workers = [Worker() for _ in range(1000)]
    scene.deaths.begin()
    scene.pass_(10.0)
    assert sum(worker.looks for worker in scene.workers) == 11 * deaths.AT_ONCE
    scene.pass_(9.0)
    assert {worker.looks for worker in scene.workers} == {1}
    scene.workers.pop()
    scene.pass_(20.0)
    assert {worker.looks for worker in scene.workers} == {2}, "whoever comes or goes: each has its turn"
