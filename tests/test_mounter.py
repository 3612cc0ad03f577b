"""mounter.py: what the daemon asks the mount keeper, and what it makes of the answers, over the real channel."""

import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from harness.leftovers import descriptors

from fuse_gated.edge import keeping
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Loop
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.gate.verdict import ALL, READ, Rule
from fuse_gated.mounter import Found, Mounter

IDENTITY = Identity(owner_uid=1000, owner_gid=1001, uids=(1000, 1002), gids=(7,))


def gate(**changes: Any) -> Gate:
    return Gate(Tenant(**{"name": "acme", "rules": (Rule("/**", allow=ALL),), **changes}), IDENTITY)


class Scene:
    """A mounter, and the keeper's end of its channel."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, self.keeper = Channel.pair(keeping.ANSWERS, keeping.REQUESTS)
        self._ours = ours
        self.lost = 0
        self.answers: list[tuple[keeping.FromKeeper, list[int]]] = []
        self.mounter = Mounter(self.loop, ours, self._on_lost)

    def _on_lost(self) -> None:
        self.lost += 1

    def then(self, answer: keeping.FromKeeper, fds: list[int]) -> None:
        self.answers.append((answer, fds))

    def asked(self) -> Any:
        """What the keeper is asked next."""
        received = self.keeper.receive()
        assert received is not None
        return received[0]

    def close(self) -> None:
        self.keeper.close()
        self._ours.close()
        self.loop.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


@pytest.mark.parametrize(
    ("changes", "default_permissions", "noexec", "nosymfollow"),
    [
        ({}, False, False, False),
        ({"ownership": "passthrough"}, True, False, False),
        ({"rules": (Rule("/**", allow=READ),)}, False, True, False),
        ({"symlinks": "deny"}, False, False, True),
    ],
    ids=["plain", "passthrough", "nothing to execute", "no links"],
)
def test_what_a_policy_asks_of_a_mount(
    scene: Scene, changes: dict[str, Any], default_permissions: bool, noexec: bool, nosymfollow: bool
) -> None:
    scene.mounter.mount(gate(**changes), "work", scene.then)
    asked = scene.asked()
    assert (asked.tenant, asked.export, asked.uids, asked.gids, asked.anyone) == ("acme", "work", (1000, 1002), (7,), False)
    assert (asked.default_permissions, asked.noexec, asked.nosymfollow) == (default_permissions, noexec, nosymfollow)


def test_answers_may_come_in_any_order(scene: Scene) -> None:
    scene.mounter.mount(gate(), "one", scene.then)
    scene.mounter.unmount("acme", "two", scene.then)
    first, second = scene.asked(), scene.asked()
    reader, writer = os.pipe()
    scene.keeper.send(keeping.Done(id=second.id))
    scene.keeper.send(keeping.Mounted(id=first.id, path="/mnt/acme/one"), [reader])
    scene.loop.turn()
    scene.loop.turn()
    (done, none), (mounted, fds) = scene.answers
    assert (done, none) == (keeping.Done(id=second.id), [])
    assert mounted == keeping.Mounted(id=first.id, path="/mnt/acme/one")
    assert os.fstat(fds[0]).st_ino == os.fstat(reader).st_ino
    for descriptor in (*fds, reader, writer):
        os.close(descriptor)


def test_a_new_policy_is_for_the_tenant_and_for_each_mount(scene: Scene) -> None:
    scene.mounter.apply(gate(rules=(Rule("/**", allow=READ),)), ["one", "two"])
    access, *remounts = scene.asked(), scene.asked(), scene.asked()
    assert (type(access), access.tenant, access.uids, access.gids) == (keeping.Access, "acme", (1000, 1002), (7,))
    assert [(type(one), one.export, one.noexec) for one in remounts] == [
        (keeping.Remount, "one", True),
        (keeping.Remount, "two", True),
    ]
    for request in (access, *remounts):
        scene.keeper.send(keeping.Done(id=request.id))
        scene.loop.turn()
    assert scene.answers == [], "nobody waits for it"


def test_nothing_was_said(scene: Scene) -> None:
    scene.mounter._ready(0)
    assert scene.mounter.alive
    assert scene.lost == 0


@pytest.mark.parametrize("end", ["gone", "nonsense"])
def test_a_keeper_that_is_lost(scene: Scene, end: str) -> None:
    """Who waits is told, once, and who asks from now on is told at once."""
    scene.mounter.mount(gate(), "one", scene.then)
    scene.asked()
    if end == "nonsense":
        os.write(scene.keeper.fileno(), b"\xc1")
    else:
        scene.keeper.close()
    scene.loop.turn()
    assert (scene.lost, scene.mounter.alive) == (1, False)
    assert [answer for answer, _ in scene.answers] == [keeping.Refused(id=1, reason="the mount keeper is gone")]
    scene.mounter.note("acme", "one", b"to nobody")
    scene.keeper.close()
    scene.mounter.unmount("acme", "one", scene.then)
    answer = scene.answers[1][0]
    assert isinstance(answer, keeping.Refused)
    assert answer.reason.startswith("the mount keeper does not answer: ")


def test_what_a_keeper_has_no_room_for_is_asked_later_and_in_order(scene: Scene) -> None:
    """When all clients are gone at once, each session's mount is to be taken away all the same."""
    exports = [f"export{number}" for number in range(5000)]
    for export in exports:
        scene.mounter.unmount("acme", export, scene.then)
    assert scene.answers == []
    asked = []
    while len(asked) < len(exports):
        request = scene.asked()
        asked.append(request.export)
        scene.keeper.send(keeping.Done(id=request.id))
        scene.loop.turn()
    assert asked == exports
    assert [type(answer) for answer, _ in scene.answers] == [keeping.Done] * len(exports)


def test_what_was_never_sent_is_told_of_when_the_keeper_is_gone(scene: Scene) -> None:
    for number in range(5000):
        scene.mounter.unmount("acme", f"export{number}", scene.then)
    scene.keeper.close()
    scene.loop.turn()
    assert len(scene.answers) == 5000
    assert all(isinstance(answer, keeping.Refused) for answer, _ in scene.answers)


# Notes, and what an earlier daemon has left.


def test_notes_go_one_at_a_time_and_the_newest_counts(scene: Scene) -> None:
    for export, note in (("one", b"1"), ("two", b"1"), ("one", b"2"), ("two", b"2"), ("two", b"3"), ("gone", b"1")):
        scene.mounter.note("acme", export, note)
    scene.mounter.unmount("acme", "gone", scene.then)
    first, unmount = scene.asked(), scene.asked()
    assert (type(first), first.export, first.data) == (keeping.Note, "one", b"1")
    assert type(unmount) is keeping.Unmount
    expected = [("two", b"3"), ("one", b"2")]
    for export, note in expected:
        with pytest.raises(BlockingIOError):
            scene.asked()
        scene.keeper.send(keeping.Done(id=first.id))
        scene.loop.turn()
        first = scene.asked()
        assert (first.tenant, first.export, first.data) == ("acme", export, note)
    scene.keeper.send(keeping.Refused(id=first.id, reason="not mounted"))
    scene.loop.turn()
    scene.mounter.note("acme", "three", b"")
    assert scene.asked().export == "three"


def test_a_note_for_which_there_was_no_room_is_sent_when_there_is(scene: Scene) -> None:
    for _ in range(5000):
        scene.mounter.unmount("acme", "one", scene.then)
    scene.mounter.note("acme", "web", b"note")
    noted: list[keeping.Note] = []
    asked = 0
    while not noted:
        request = scene.asked()
        if isinstance(request, keeping.Note):
            noted.append(request)
        else:
            asked += 1
            scene.keeper.send(keeping.Done(id=request.id))
            scene.loop.turn()
    assert (noted[0].export, noted[0].data) == ("web", b"note")
    assert asked > 10


def hold(scene: Scene, exports: list[str]) -> None:
    """Answer as a keeper that holds these mounts."""
    while True:
        request = scene.asked()
        assert type(request) is keeping.Fetch
        if request.index == len(exports):
            scene.keeper.send(keeping.Done(id=request.id))
            scene.loop.turn()
            return
        export = exports[request.index]
        held = keeping.Held(id=request.id, tenant="acme", export=export, path="/mnt", note=b"n", nosymfollow=False)
        fds = [os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)]
        scene.keeper.send(held, fds)
        for fd in fds:
            os.close(fd)
        scene.loop.turn()


@pytest.mark.parametrize("exports", [[], ["one"], ["one", "two", "three"]])
def test_what_was_left_is_found_with_its_descriptors(scene: Scene, exports: list[str]) -> None:
    found: list[list[Found]] = []
    scene.mounter.fetch(found.append)
    hold(scene, exports)
    (left,) = found
    assert [one.held.export for one in left] == exports
    for one in left:
        assert (os.read(one.device, 1), os.read(one.state, 1)) == (b"", b"\0")
        os.close(one.device)
        os.close(one.state)


@pytest.mark.parametrize("how", ["lost", "half"])
def test_where_it_cannot_be_known_whole_nothing_is_found(scene: Scene, how: str) -> None:
    before = descriptors()
    found: list[list[Found]] = []
    scene.mounter.fetch(found.append)
    request = scene.asked()
    held = keeping.Held(id=request.id, tenant="acme", export="web", path="/mnt", note=b"", nosymfollow=False)
    scene.keeper.send(held, [0, 0])
    scene.loop.turn()
    request = scene.asked()
    if how == "lost":
        scene.keeper.close()
    else:
        scene.keeper.send(msgspec.structs.replace(held, id=request.id), [0])
    scene.loop.turn()
    assert found == [[]]
    assert len(descriptors() - before) == 0


def test_an_answer_for_nobody_leaves_no_descriptor(scene: Scene) -> None:
    before = descriptors()
    scene.keeper.send(keeping.Mounted(id=99, path="/mnt"), [0, 0])
    scene.loop.turn()
    assert descriptors() == before
