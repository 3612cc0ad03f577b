"""mounter.py, when the mount keeper is started anew in the middle: what was lost is asked again, and nobody notices."""

from collections.abc import Iterator
from typing import Any

import pytest

from fuse_gated.edge import keeping
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Loop
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.mounter import Mounter

GATE = Gate(Tenant(name="acme"), Identity(owner_uid=1, owner_gid=1))


class Scene:
    """A mounter, and the keeper's end of its channel."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.ours, self.keeper = Channel.pair(keeping.ANSWERS, keeping.REQUESTS)
        self.answers: list[tuple[str, keeping.FromKeeper]] = []
        self.mounter = Mounter(self.loop, self.ours, lambda: None)

    def then(self, name: str) -> Any:
        return lambda answer, _fds: self.answers.append((name, answer))

    def asked(self) -> list[Any]:
        """All that the keeper was asked since the last call, which it takes and does not answer."""
        asked = []
        while True:
            try:
                received = self.keeper.receive()
            except BlockingIOError:
                return asked
            assert received is not None
            asked.append(received[0])

    def answer(self, answer: keeping.FromKeeper) -> None:
        self.keeper.send(answer)
        self.loop.turn()

    def resume(self) -> list[Any]:
        """The keeper is started anew. What it is asked once it has caught up."""
        self.answer(keeping.Resumed(id=0))
        sync = self.asked()[-1]
        assert isinstance(sync, keeping.Sync)
        self.answer(keeping.Done(id=sync.id))
        return self.asked()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.keeper.close()
    scene.ours.close()
    scene.loop.close()


def test_a_mount_that_was_lost_is_made_from_the_beginning(scene: Scene) -> None:
    scene.mounter.mount(GATE, "work", scene.then("mount"))
    (first,) = scene.asked()
    undone, again = scene.resume()
    assert isinstance(undone, keeping.Unmount)
    assert (undone.tenant, undone.export) == ("acme", "work")
    assert again == keeping.Mount(**{name: getattr(first, name) for name in first.__struct_fields__} | {"id": again.id})
    scene.answer(keeping.Refused(id=undone.id, reason="it is not mounted"))
    assert scene.answers == []
    mounted = keeping.Mounted(id=again.id, path="/mnt")
    scene.answer(mounted)
    assert scene.answers == [("mount", mounted)]


def test_an_unmount_that_was_lost_is_done_whether_it_was_done_before_or_not(scene: Scene) -> None:
    scene.mounter.unmount("acme", "work", scene.then("unmount"))
    scene.asked()
    (again,) = scene.resume()
    assert isinstance(again, keeping.Unmount)
    scene.answer(keeping.Refused(id=again.id, reason="it is not mounted"))
    assert scene.answers == [("unmount", keeping.Done(id=again.id))]


def test_a_policy_that_was_lost_is_applied(scene: Scene) -> None:
    scene.mounter.apply(GATE, ["work"])
    first = scene.asked()
    again = scene.resume()
    assert [type(request) for request in again] == [type(request) for request in first] == [keeping.Access, keeping.Remount]


def test_what_waited_in_the_channel_is_not_asked_twice(scene: Scene) -> None:
    scene.mounter.unmount("acme", "one", scene.then("one"))
    (lost,) = scene.asked()
    scene.mounter.unmount("acme", "two", scene.then("two"))
    scene.answer(keeping.Resumed(id=0))
    two, sync = scene.asked()
    scene.answer(keeping.Done(id=two.id))
    assert scene.answers == [("two", keeping.Done(id=two.id))]
    scene.answer(keeping.Done(id=sync.id))
    (again,) = scene.asked()
    assert (again.export, again.id > lost.id) == ("one", True)


def test_what_is_asked_while_it_catches_up_waits_its_turn(scene: Scene) -> None:
    scene.answer(keeping.Resumed(id=0))
    (sync,) = scene.asked()
    scene.mounter.unmount("acme", "work", scene.then("later"))
    scene.answer(keeping.Done(id=sync.id))
    (asked,) = scene.asked()
    scene.answer(keeping.Done(id=asked.id))
    assert scene.answers == [("later", keeping.Done(id=asked.id))]


def test_a_keeper_that_is_killed_again_before_it_has_caught_up(scene: Scene) -> None:
    scene.mounter.unmount("acme", "work", scene.then("unmount"))
    scene.asked()
    scene.answer(keeping.Resumed(id=0))
    scene.asked()
    (again,) = scene.resume()
    assert isinstance(again, keeping.Unmount)


def test_notes_and_what_was_left_are_asked_for_again(scene: Scene) -> None:
    found: list[object] = []
    scene.mounter.fetch(found.append)
    scene.mounter.note("acme", "web", b"old")
    scene.mounter.note("acme", "web", b"new")
    scene.asked()
    fetch, note = scene.resume()
    assert (type(fetch), fetch.index) == (keeping.Fetch, 0)
    assert (type(note), note.data) == (keeping.Note, b"old")
    scene.answer(keeping.Done(id=fetch.id))
    assert found == [[]]
    scene.answer(keeping.Done(id=note.id))
    (newest,) = scene.asked()
    assert (type(newest), newest.data) == (keeping.Note, b"new")
