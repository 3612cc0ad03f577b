"""What holds for every operation: allowed, denied, hidden; told before sent, sent before answered; and every way to end."""

import pytest
from harness.cases import ASIDE, CASES, Case, Scene, scene_by_path
from harness.sansio import CALLER, EVERYTHING, STRANGER, Errno, Mount, told

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.gate.tenant import Limits
from fuse_gated.gate.verdict import ALL, Rule
from fuse_gated.operations import Caller
from fuse_gated.turnstile.table import TABLE
from fuse_gated.wire.messages import Release, Releasedir, Setlk

every_case = pytest.mark.parametrize("case", CASES, ids=str)
asking = pytest.mark.parametrize("case", [case for case in CASES if case.asks and case.operation not in ASIDE], ids=str)
LEVELS = ["denials", "writes", "opens", "everything"]


def failure(mount: Mount, number: int) -> str:
    answer = mount.answer(number)
    assert isinstance(answer, op.Failed), answer
    return errno_name(answer.errno)


def asked(mount: Mount, number: int) -> list[str]:
    return [frame.operation for frame in mount.sent if frame.id == number]


def played(mount: Mount, scene: Scene, case: Case) -> int:
    """The whole of a case that goes well."""
    number = mount.ask(case.request(scene))
    if case.asks and case.operation not in ASIDE:
        mount.reply(number, case.result)
    return number


def test_every_operation_of_the_table_is_tried_here():
    scene = Scene(Mount())
    assert {type(case.request(scene)) for case in CASES} == set(TABLE)
    assert {case.operation for case in CASES} == {row.name for row in TABLE.values()}


# Allowed, denied, hidden.


@pytest.mark.parametrize("make", [Scene, scene_by_path])
@every_case
def test_an_allowed_operation_is_asked_and_answered(case, make):
    mount = Mount()
    scene = make(mount)
    number = played(mount, scene, case)
    assert type(mount.answer(number)) is case.answer
    assert [frame.operation for frame in mount.sent] == ([case.asks] if case.asks else [])
    assert mount.t.statistics.failed == mount.t.statistics.denied == 0


@pytest.mark.parametrize("make", [Scene, scene_by_path])
@pytest.mark.parametrize("hide", [False, True], ids=["denied", "hidden"])
@every_case
def test_what_the_rules_refuse_is_told_and_never_asked(case, hide, make):
    """The rules narrow while everything is open: what is open is judged again."""
    mount = Mount()
    scene = make(mount)
    mount.apply([Rule(case.about, hide=True) if hide else Rule(f"{case.about}/**", deny=ALL, place="policy.yaml:3"), *EVERYTHING])
    mount.clear()
    expected = case.hidden if hide else case.denied
    number = mount.ask(case.request(scene))
    if not expected:
        assert asked(mount, number) == ([case.asks] if case.asks and case.operation not in ASIDE else [])
        assert mount.records == []
        return
    assert failure(mount, number) == expected
    assert mount.sent == []
    (record,) = mount.records
    assert (record.kind, record.operation, record.decision, record.errno) == ("refused", case.operation, "denied", expected)
    assert (record.uid, record.pid, record.request) == (CALLER.uid, CALLER.pid, number)
    assert record.rule == (case.about if hide else f"{case.about}/** (policy.yaml:3)")
    assert case.about.encode()[1:] in (record.path, record.new_path)
    assert mount.story[0].startswith("tell refused"), "told before it is answered"
    assert mount.t.statistics.denied == mount.t.statistics.failed == 1


@every_case
def test_a_read_only_export_refuses_every_change(case):
    mount = Mount(read_only=True)
    scene = _scene_of_a_reader(mount)
    number = mount.ask(case.request(scene))
    changes = case.level == "writes" or case.operation in ("write", "fallocate", "copy_file_range")
    if changes:
        assert failure(mount, number) == "EROFS"
        assert mount.sent == []
        assert [record.kind for record in mount.records] == ["refused"]
    else:
        assert mount.records == []


def _scene_of_a_reader(mount: Mount) -> Scene:
    """What is open was opened when the export could still be written."""
    writable = Mount()
    scene = Scene(writable)
    mount.t.inodes, mount.t.handles, mount.t.session = writable.t.inodes, writable.t.handles, writable.t.session
    mount.t.generation = 1
    scene.mount = mount
    return scene


# Who may ask.


@every_case
def test_who_is_no_user_of_the_tenant_gets_no_new_name_and_nothing_opened(case):
    mount = Mount()
    scene = Scene(mount)
    number = mount.ask(case.request(scene), STRANGER)
    row = TABLE[type(case.request(scene))]
    assert row.by_name == case.by_name
    if not case.by_name:
        assert mount.records == [] or mount.records[0].kind != "refused"
        return
    assert failure(mount, number) == "EACCES"
    assert mount.sent == []
    (record,) = mount.records
    assert (record.rule, record.errno, record.uid, record.kind) == ("users", "EACCES", STRANGER.uid, "refused")
    assert record.path is not None


OTHERS = {"root": Caller(0, 0, 1), "the kernel itself": Caller(6666, 6666, 0)}


@pytest.mark.parametrize("caller", OTHERS.values(), ids=OTHERS)
@every_case
def test_root_and_the_kernel_itself_may(case, caller):
    mount = Mount()
    scene = Scene(mount)
    number = mount.ask(case.request(scene), caller)
    assert not any(record.kind == "refused" for record in mount.records)
    assert asked(mount, number) == ([case.asks] if case.asks and case.operation not in ASIDE else [])


# The audit.


@pytest.mark.parametrize("level", LEVELS)
@every_case
def test_an_operation_is_told_once_at_its_level_and_before_it_is_sent(case, level):
    mount = Mount(audit=level)
    scene = Scene(mount)
    number = played(mount, scene, case)
    announced = [record for record in mount.records if record.kind == "operation"]
    if case.level and LEVELS.index(level) >= LEVELS.index(case.level):
        (record,) = announced
        assert (record.operation, record.decision, record.errno) == (case.operation, "allowed", "")
        assert (record.uid, record.pid, record.request) == (CALLER.uid, CALLER.pid, number)
        assert case.about.encode()[1:] in (record.path, record.new_path) or case.operation == "statfs"
        kinds = [word.split()[0] for word in mount.story]
        assert kinds[0] == "tell"
        assert kinds.index("tell") <= (kinds.index("send") if "send" in kinds else 99) < 100
        assert kinds.index("answer") > kinds.index("tell")
    else:
        assert announced == []


@asking
def test_a_failure_is_told_where_the_operation_was(case):
    for level in LEVELS:
        mount = Mount(audit=level)
        scene = Scene(mount)
        number = mount.ask(case.request(scene))
        mount.now += 0.5
        mount.reply(number, Errno("EIO"))
        assert failure(mount, number) == "EIO"
        was_told = bool(case.level) and LEVELS.index(level) >= LEVELS.index(case.level)
        assert [record.kind for record in mount.records] == (["operation", "failed"] if was_told else [])
        if was_told:
            record = mount.records[-1]
            assert (record.decision, record.errno, record.duration_usec, record.detail) == ("failed", "EIO", 500_000, "")
            assert mount.story[-2:] == [told(mount.log[-2]), "answer EIO"]
            assert mount.story[-2].startswith("tell failed")


def test_a_link_that_leaves_the_export_was_allowed_and_then_refused():
    mount = Mount(audit="everything")
    scene = Scene(mount)
    mount.do(op.Readlink(scene.l), b"../../etc/passwd")
    assert mount.story == [
        "tell operation readlink /l",
        "send readlink",
        "tell refused readlink /l EACCES",
        "answer EACCES",
    ]
    assert mount.records[-1].rule == "symlinks"


# The ways to end.


@asking
def test_an_errno_of_the_client_is_the_callers(case):
    mount = Mount()
    scene = Scene(mount)
    number = mount.ask(case.request(scene))
    mount.reply(number, Errno("ENOSPC"))
    assert failure(mount, number) == "ENOSPC"
    assert mount.t.statistics.failed == 1


@asking
def test_enosys_never_reaches_the_kernel_which_would_not_ask_again(case):
    mount = Mount()
    scene = Scene(mount)
    number = mount.ask(case.request(scene))
    mount.reply(number, Errno("ENOSYS"))
    assert failure(mount, number) == "EOPNOTSUPP"


@asking
def test_a_client_that_never_answers_costs_its_caller_the_deadline(case):
    mount = Mount()
    scene = Scene(mount)
    number = mount.ask(case.request(scene))
    due = mount.t.next_due(mount.now)
    assert due == mount.now + 0.25
    mount.tick(29.9)
    assert mount.answers(number) == []
    mount.tick(0.1)
    assert failure(mount, number) == "ETIMEDOUT"
    announced = case.level == "writes"
    ending = [word for word in mount.story if word.split()[0] not in ("send", "forget")]
    assert [word.split()[:2] for word in ending] == [
        *([["tell", "operation"]] if announced else []), ["cancel"], *([["tell", "failed"]] if announced else []),
        ["answer", "ETIMEDOUT"],
    ]  # fmt: skip


@asking
def test_an_interrupted_caller_gets_what_the_client_answers_within_the_grace(case):
    mount = Mount()
    scene = Scene(mount)
    number = mount.ask(case.request(scene))
    mount.interrupt(number)
    mount.interrupt(number)
    # Only a wait for a lock is ended by the signal itself.
    assert mount.story.count("cancel") == (case.name == "setlk waiting")
    assert mount.answers(number) == []
    mount.reply(number, Errno("EIO"))
    assert failure(mount, number) == "EIO"


@asking
def test_an_interrupted_caller_gets_eintr_after_the_grace_whatever_the_client_does(case):
    mount = Mount()
    scene = Scene(mount)
    number = mount.ask(case.request(scene))
    mount.interrupt(number)
    mount.tick(0.49)
    assert mount.answers(number) == []
    mount.tick(0.02)
    assert failure(mount, number) == "EINTR"
    if "writes" in case.level:
        assert mount.records[-1].detail == "the client may have carried it out"
    mount.clear()
    mount.reply(number, case.result)
    assert mount.answers(number) == [], "nobody is answered twice"
    if case.operation in ("open", "create"):
        assert mount.arguments == Release(80)
    elif case.operation == "opendir":
        assert mount.arguments == Releasedir(81)
    elif case.operation == "setlk":
        assert mount.arguments == Setlk(77, 9, 0, 10, 2, case.name == "setlk waiting")
    else:
        assert mount.log == []


@asking
def test_when_the_client_is_gone_every_caller_is_told_so(case):
    mount = Mount()
    scene = Scene(mount)
    number = mount.ask(case.request(scene))
    mount.t.lost(mount.now)
    mount.gather()
    assert failure(mount, number) == "ENOTCONN"
    assert mount.t.next_due(mount.now) is None
    after = mount.ask(case.request(scene))
    assert failure(mount, after) == "ENOTCONN"


@every_case
def test_while_no_record_can_be_written_everything_fails_but_closing(case):
    mount = Mount()
    scene = Scene(mount)
    mount.t.silenced = True
    number = mount.ask(case.request(scene))
    if TABLE[type(case.request(scene))].kind:
        assert (failure(mount, number), mount.sent, mount.records) == ("EIO", [], [])
        assert mount.t.untold == 1
    else:
        assert type(mount.answer(number)) is op.Done
        assert mount.t.untold == 0


@asking
def test_what_was_not_sent_because_its_record_was_not_written_fails(case):
    mount = Mount()
    scene = Scene(mount)
    number = mount.ask(case.request(scene))
    assert mount.t.withdraw(number)
    mount.gather()
    assert failure(mount, number) == "EIO"
    assert (mount.t.session.in_flight, mount.t.untold) == (0, 1)
    assert mount.t.withdraw(number), "its caller is gone, and it is dropped"
    assert mount.t.untold == 1


# Limits of the tenant.


@every_case
def test_too_many_operations_wait_their_turn(case):
    mount = Mount()
    scene = Scene(mount)
    mount.apply(EVERYTHING, limits=_limits("delay"))
    for _ in range(5):
        mount.t.limiter.take(mount.now, "other")
    mount.clear()
    number = mount.ask(case.request(scene))
    if not TABLE[type(case.request(scene))].kind:
        assert type(mount.answer(number)) is op.Done
        return
    assert mount.log == []
    due = mount.t.next_due(mount.now)
    assert due is not None
    assert due > mount.now
    mount.tick(due - mount.now - 0.001)
    assert mount.log == []
    mount.tick(0.002)
    assert asked(mount, number) == [case.asks]


@every_case
def test_too_many_operations_are_refused_where_the_policy_says_so(case):
    mount = Mount()
    scene = Scene(mount)
    mount.apply(EVERYTHING, limits=_limits("refuse"))
    while mount.t.limiter.take(mount.now, "other") == 0.0:
        pass
    mount.clear()
    number = mount.ask(case.request(scene))
    if not TABLE[type(case.request(scene))].kind:
        assert type(mount.answer(number)) is op.Done
        return
    assert failure(mount, number) == "EAGAIN"
    assert mount.sent == []
    (record,) = mount.records
    assert (record.kind, record.decision, record.errno, record.operation) == ("limited", "denied", "EAGAIN", case.operation)
    assert record.path is not None
    assert mount.t.statistics.denied == 1


def _limits(on_excess: str) -> Limits:
    return Limits(operations={"*": 5.0}, on_excess=on_excess)
