"""turnstile/telling.py: what is told, in which words, and at which level."""

import pytest
from harness.sansio import CALLER

from fuse_gated import operations as op
from fuse_gated.gate.audit import Record
from fuse_gated.gate.verdict import Verdict
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.effects import Tell
from fuse_gated.turnstile.limits import Limits
from fuse_gated.turnstile.telling import Telling


def call() -> Call:
    return Call(8, CALLER, op.Mkdir(1, b"d", 0o755, 0), "mkdir", 100.0)


def telling(level: str = "writes", refusals: float = float("inf")) -> Telling:
    made = Telling(Limits(refusals=refusals, deadline=10.0), level)
    made.now = 102.5
    return made


def records(telling: Telling) -> list[Record]:
    assert all(isinstance(effect, Tell) for effect in telling.effects)
    return [effect.record for effect in telling.effects if isinstance(effect, Tell)]


@pytest.mark.parametrize(
    ("level", "changes", "opens", "everything"),
    [("denials", False, False, False), ("writes", True, False, False), ("opens", True, True, False),
     ("everything", True, True, True)],
)
def test_levels(level: str, changes: bool, opens: bool, everything: bool) -> None:
    made = telling("denials")
    made.set_audit_level(level)
    assert (made.tells_changes, made.tells_opens, made.tells_everything) == (changes, opens, everything)
    made.announce_other(call(), b"d")
    assert bool(records(made)) is everything


def test_what_is_allowed_is_told_once() -> None:
    made, one = telling(), call()
    made.announce(one, b"d", b"e", rule="policy.yaml:3")
    made.announce(one, b"d")
    assert records(made) == [
        Record(kind="operation", operation="mkdir", path=b"d", new_path=b"e", decision="allowed", rule="policy.yaml:3", uid=1000,
               pid=4321, request=8)
    ]  # fmt: skip
    assert one.told


def test_what_another_process_may_have_told_says_so() -> None:
    made, one = telling(), call()
    one.before = True
    made.announce(one, b"d")
    assert [record.detail[:7] for record in records(made)] == ["again: "]


def test_a_refusal() -> None:
    made, one = telling(), call()
    one.told = True
    failure = made.refused(one, Verdict("EACCES", "policy.yaml:3", "not allowed"), b"d")
    [record] = records(made)
    assert (failure.errno, record.kind, record.decision, record.errno) == ("EACCES", "refused", "denied", "EACCES")
    assert (record.rule, record.detail, record.duration_usec) == ("policy.yaml:3", "not allowed", None)
    assert (one.told, one.pause, made.statistics.denied) == (False, 0.0, 1)


def test_a_limit() -> None:
    made, one = telling(), call()
    failure = made.limited(one, "EMFILE", b"d", "5 files are open")
    [record] = records(made)
    assert (failure.errno, record.kind, record.errno, record.detail) == ("EMFILE", "limited", "EMFILE", "5 files are open")
    assert made.statistics.denied == 1


def test_refusals_wait_for_their_turn() -> None:
    made = telling(refusals=1.0)
    made.limits = Limits(refusals=1.0, deadline=10.0)
    calls = [call() for _ in range(4)]
    for one in calls[:2]:
        made.refused(one, Verdict("EACCES", "", ""), b"d")
    for one in calls[2:]:
        made.limited(one, "EAGAIN", b"d", "")
    pauses = [one.pause for one in calls]
    assert pauses == sorted(pauses)
    assert pauses[-1] > pauses[0]


def test_a_failure_says_how_long_it_took() -> None:
    made, one = telling(), call()
    made.tell(one, "failed", "failed", errno="EIO")
    assert [record.duration_usec for record in records(made)] == [2_500_000]
