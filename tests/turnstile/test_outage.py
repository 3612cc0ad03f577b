"""turnstile/outage.py and memory.py: the client is away. Who waits, who fails, who is answered from memory."""

from typing import Any

import pytest
from harness.sansio import CALLER, DIRECTORY, FIFO, REGULAR, ROOT, STRANGER, Errno, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError, errno_name
from fuse_gated.gate.tenant import Limits, Outage
from fuse_gated.gate.verdict import ALL, Rule
from fuse_gated.operations import Filesystem
from fuse_gated.turnstile.memory import acquaint
from fuse_gated.turnstile.outage import Waits
from fuse_gated.turnstile.turnstile import INTERRUPT_GRACE
from fuse_gated.turnstile.turnstile import Limits as Bounds
from fuse_gated.wire import messages as wire

FILESYSTEM = Filesystem(1, 2, 3, 4, 5, 4096, 255, 4096)
MODES = ("wait", "fail", "cached")
SLOW = Limits(operations={"*": 1.0})
RULES = (Rule("/**", allow=ALL),)


def mounted(mode: str = "wait", *, knows: bool = True, **other: Any) -> Mount:
    mount = Mount(outage=Outage(mode=mode), **other)
    if knows:
        mount.t.ledger.saw_root(attributes(1, DIRECTORY))
        mount.t.ledger.saw_filesystem(FILESYSTEM)
    return mount


def suspend(mount: Mount) -> Mount:
    mount.clear()
    mount.t.suspend(mount.now)
    mount.gather()
    return mount


def outcome(mount: Mount, number: int) -> str:
    """The name of the answer's kind or of its errno; '' while it waits."""
    answers = mount.answers(number)
    assert len(answers) <= 1
    if not answers:
        return ""
    return errno_name(answers[0].errno) if isinstance(answers[0], op.Failed) else type(answers[0]).__name__


def asked(mount: Mount, request: op.Request) -> str:
    return outcome(mount, mount.ask(request))


# Each mode.


@pytest.mark.parametrize(("mode", "expected"), [("wait", ""), ("fail", "EIO"), ("cached", "")])
def test_what_nobody_can_answer(mode: str, expected: str) -> None:
    mount = suspend(mounted(mode))
    for request in (op.Lookup(ROOT, b"f"), op.Mkdir(ROOT, b"d", 0o755, 0), op.Readlink(5), op.Read(2, 3, 0, 4)):
        assert asked(mount, request) == expected
    assert mount.sent == []
    assert mount.records == [], "nothing was done, and nothing was refused"


@pytest.mark.parametrize(("mode", "expected"), [("wait", ""), ("fail", "EIO"), ("cached", "")])
def test_who_waits_when_the_client_goes(mode: str, expected: str) -> None:
    mount = mounted(mode)
    read = mount.ask(op.Read(2, mount.open(mount.lookup(b"f")), 0, 4))
    made = mount.ask(op.Mkdir(ROOT, b"d", 0o755, 0))
    suspend(mount)
    assert [outcome(mount, number) for number in (read, made)] == [expected] * 2
    failures = [record for record in mount.records if record.kind == "failed"]
    assert [(record.operation, record.errno) for record in failures] == ([("mkdir", "EIO")] if expected else [])
    with pytest.raises(ProtocolError):
        mount.reply(read, b"data")


@pytest.mark.parametrize("mode", MODES)
def test_the_root_and_the_filesystem_are_answered(mode: str) -> None:
    mount = suspend(mounted(mode))
    statfs = mount.ask(op.Statfs(ROOT))
    assert mount.answer(statfs) == FILESYSTEM
    found = mount.answer(mount.ask(op.Getattr(ROOT)))
    assert isinstance(found, op.Attr)
    assert (found.attributes.inode, found.attributes.uid) == (1, 1000)
    assert mount.t.outage is not None
    assert (mount.t.outage.stale, mount.t.outage.failed) == (2, 0)


@pytest.mark.parametrize(("mode", "expected"), [("wait", ""), ("fail", "EIO"), ("cached", "")])
def test_what_the_client_never_said(mode: str, expected: str) -> None:
    mount = suspend(mounted(mode, knows=False))
    assert asked(mount, op.Statfs(ROOT)) == asked(mount, op.Getattr(ROOT)) == expected


def test_cached_answers_what_was_seen() -> None:
    mount = mounted("cached")
    node = mount.lookup(b"d/f", size=5)
    handle = mount.open(node, remote=70)
    other = mount.lookup(b"g")
    nameless = mount.do(op.Open(b"h", 0), wire.OpenedFile(71, attributes(9)))
    assert isinstance(nameless, op.Opened)
    suspend(mount)
    found = mount.answer(mount.ask(op.Getattr(other)))
    assert isinstance(found, op.Attr)
    entry = mount.answer(mount.ask(op.Lookup(ROOT, b"g")))
    assert isinstance(entry, op.Entry)
    assert entry.node == other
    again = mount.answer(mount.ask(op.Getattr(node, handle)))
    assert isinstance(again, op.Attr)
    assert asked(mount, op.Access(other, 4)) == "Done"
    assert asked(mount, op.Getattr(b"h", nameless.handle)) == "", "of what has no node nothing is kept"
    assert asked(mount, op.Getattr(b"", 99)) in ("", "Attr", "EBADF")
    assert asked(mount, op.Lookup(ROOT, b"never")) == ""
    assert asked(mount, op.Lookup(5000, b"never")) == "ESTALE"
    assert mount.t.outage is not None
    assert mount.t.outage.stale >= 4


@pytest.mark.parametrize("mode", ["wait", "fail"])
def test_other_modes_answer_nothing_of_it(mode: str) -> None:
    mount = mounted(mode)
    node = mount.lookup(b"g")
    suspend(mount)
    assert asked(mount, op.Getattr(node)) == ("EIO" if mode == "fail" else "")


def test_the_gate_is_asked_all_the_same() -> None:
    mount = mounted("cached", rules=(Rule("/secret", hide=True), *RULES))
    mount.lookup(b"g")
    suspend(mount)
    assert asked(mount, op.Lookup(ROOT, b"secret")) == "ENOENT"
    assert outcome(mount, mount.ask(op.Lookup(ROOT, b"g"), STRANGER)) == "EACCES"
    assert {record.kind for record in mount.records} == {"refused"}


# Signals.


@pytest.mark.parametrize("mode", ["wait", "cached"])
def test_who_waits_can_be_interrupted(mode: str) -> None:
    mount = suspend(mounted(mode))
    number = mount.ask(op.Mkdir(ROOT, b"d", 0o755, 0))
    mount.interrupt(number)
    mount.interrupt(number)
    assert outcome(mount, number) == ""
    assert mount.t.holds
    assert mount.t.next_due(mount.now) == mount.now + INTERRUPT_GRACE
    mount.tick(INTERRUPT_GRACE)
    assert outcome(mount, number) == "EINTR"


def test_who_waits_for_a_lock_is_interrupted_at_once() -> None:
    mount = mounted()
    handle = mount.open(mount.lookup(b"f"))
    suspend(mount)
    number = mount.ask(op.Setlk(2, handle, 9, 0, 5, 1, 1, True, False))
    mount.interrupt(number)
    assert outcome(mount, number) == "EINTR"


def test_who_was_interrupted_before() -> None:
    """The kernel says so once; a client that is gone does not answer within what was left."""
    mount = mounted()
    number = mount.ask(op.Mkdir(ROOT, b"d", 0o755, 0))
    mount.interrupt(number)
    suspend(mount)
    assert outcome(mount, number) == "EINTR"
    assert [(record.kind, record.errno) for record in mount.records] == [("failed", "EINTR")]
    assert "may have carried it out" in mount.records[0].detail
    mount.tick(1.0)
    assert outcome(mount, number) == "EINTR"


def test_who_was_interrupted_while_it_was_held() -> None:
    mount = mounted(limits=SLOW)
    numbers = [mount.ask(op.Mkdir(ROOT, b"%d" % number, 0o755, 0)) for number in range(3)]
    mount.interrupt(numbers[2])
    suspend(mount)
    assert [outcome(mount, number) for number in numbers] == ["", "", "EINTR"]


def test_who_was_interrupted_while_it_was_held_and_came_to_the_client() -> None:
    """It has what is left of its time there."""
    mount = mounted(limits=Limits(operations={"*": 10.0}))
    numbers: list[int] = []
    while not mount.t.holds:
        numbers.append(mount.ask(op.Unlink(ROOT, b"%d" % len(numbers))))
    mount.interrupt(numbers[-1])
    mount.tick(0.3)
    assert outcome(mount, numbers[-1]) == ""
    assert mount.sent[-1].operation == "unlink"
    mount.tick(0.3)
    assert outcome(mount, numbers[-1]) == "EINTR"


def test_a_refusal_that_waits_for_its_turn_is_a_refusal_still() -> None:
    mount = mounted("fail", rules=(Rule("/f", deny=ALL), *RULES), bounds=Bounds(refusals=1.0))
    numbers = [mount.ask(op.Unlink(ROOT, b"f")) for _ in range(4)]
    suspend(mount)
    assert outcome(mount, numbers[-1]) == ""
    mount.tick(100.0)
    assert [record.kind for record in mount.records] == []
    assert outcome(mount, numbers[-1]) == "EACCES"


def test_what_the_client_was_asked_besides_waits() -> None:
    mount = suspend(mounted("cached"))
    assert mount.t.outage is not None
    with pytest.raises(Waits):
        mount.t.outage.answer(wire.Readlink(b"l"))


def test_the_kernel_is_to_forget_everything() -> None:
    mount = mounted()
    node = mount.lookup(b"f")
    mount.clear()
    mount.t.forget_all()
    mount.gather()
    assert mount.story == ["forget 1", "forget 1/f", f"forget {node}"]


# What the limiter holds.


@pytest.mark.parametrize(("mode", "expected"), [("wait", ""), ("fail", "EIO"), ("cached", "")])
def test_what_the_limiter_held_waits_like_the_rest(mode: str, expected: str) -> None:
    mount = mounted(mode, limits=SLOW)
    for number in range(3):
        mount.ask(op.Mkdir(ROOT, b"%d" % number, 0o755, 0))
    held = mount.ask(op.Mkdir(ROOT, b"held", 0o755, 0))
    suspend(mount)
    assert outcome(mount, held) == expected
    mount.tick(100.0)
    assert outcome(mount, held) == expected
    assert mount.sent == []


@pytest.mark.parametrize("mode", MODES)
def test_what_can_be_answered_is_answered_when_its_turn_comes(mode: str) -> None:
    mount = suspend(mounted(mode, limits=SLOW))
    numbers = [mount.ask(op.Statfs(ROOT)) for _ in range(4)]
    assert outcome(mount, numbers[-1]) == ""
    mount.tick(100.0)
    assert [outcome(mount, number) for number in numbers] == ["Filesystem"] * 4


@pytest.mark.parametrize(("mode", "expected"), [("fail", "EIO"), ("cached", "")])
def test_what_was_to_be_answered_and_cannot_be(mode: str, expected: str) -> None:
    """It was held for what it might have been told; meanwhile the policy has changed, or nothing is known."""
    mount = suspend(mounted("cached", limits=SLOW))
    for _ in range(3):
        mount.ask(op.Statfs(ROOT))
    held = mount.ask(op.Lookup(ROOT, b"never"))
    assert mount.t.outage is not None
    mount.t.outage.mode = mode
    mount.tick(100.0)
    assert outcome(mount, held) == expected


def test_a_refusal_comes_when_its_turn_comes() -> None:
    mount = suspend(mounted("cached", rules=(Rule("/x", deny=ALL), *RULES)))
    assert asked(mount, op.Access(ROOT, 4)) == "Done"
    assert mount.t.busy is False


# A new policy.


def test_a_policy_that_fails_at_once_ends_the_waiting() -> None:
    mount = suspend(mounted("wait"))
    waiting = mount.ask(op.Mkdir(ROOT, b"d", 0o755, 0))
    mount.apply(RULES, outage=Outage(mode="fail"))
    assert outcome(mount, waiting) == asked(mount, op.Readlink(5)) == "EIO"
    assert mount.t.outage is not None
    assert mount.t.outage.failed == 2
    mount.apply(RULES, outage=Outage(mode="wait"))
    assert asked(mount, op.Readlink(5)) == ""


# The end.


def test_once_the_grace_is_over_everybody_is_told() -> None:
    mount = suspend(mounted("wait"))
    waiting = mount.ask(op.Mkdir(ROOT, b"d", 0o755, 0))
    mount.t.lost(mount.now)
    mount.gather()
    assert outcome(mount, waiting) == "EIO"


def test_nothing_is_asked_of_who_is_away() -> None:
    mount = mounted("wait")
    handle = mount.open(mount.lookup(b"f"))
    suspend(mount)
    mount.t.ask_aside(wire.Release(handle))
    mount.gather()
    assert mount.sent == []


# What is known, is asked for when the session begins.


def test_the_client_is_asked_what_will_be_shown() -> None:
    mount = mounted(knows=False)
    mount.t.inodes.root.identity = None
    acquaint(mount.t, mount.now)
    mount.gather()
    assert [frame.operation for frame in mount.sent] == ["getattr", "statfs"]
    first, second = (frame.id for frame in mount.sent)
    mount.reply(first, attributes(1, DIRECTORY))
    mount.reply(second, FILESYSTEM)
    assert mount.t.ledger.known.root == attributes(1, DIRECTORY)
    assert mount.t.ledger.known.filesystem == FILESYSTEM
    assert mount.t.inodes.root.identity == (7, 1, DIRECTORY)
    acquaint(mount.t, mount.now)
    mount.gather()
    mount.reply(mount.sent[-2].id, attributes(1, DIRECTORY, size=9))
    assert mount.t.ledger.known.root == attributes(1, DIRECTORY, size=9)
    acquaint(mount.t, mount.now)
    mount.gather()
    mount.reply(mount.sent[-2].id, Errno("EACCES"))
    mount.reply(mount.sent[-1].id, Errno("EIO"))
    assert mount.t.ledger.known.root is not None


def test_what_it_says_then_is_checked_too() -> None:
    mount = mounted(knows=False)
    acquaint(mount.t, mount.now)
    mount.gather()
    with pytest.raises(ProtocolError):
        mount.reply(mount.sent[0].id, attributes(1, DIRECTORY, size=-1))


@pytest.mark.parametrize("kind", [REGULAR, FIFO])
def test_only_cached_keeps_attributes(kind: int) -> None:
    for mode in MODES:
        mount = mounted(mode)
        node = mount.t.inodes.get(mount.lookup(b"f", kind))
        assert node is not None
        assert (node.attributes is not None) is (mode == "cached")
    assert CALLER.uid == 1000
