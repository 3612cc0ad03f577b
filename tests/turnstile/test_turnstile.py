"""turnstile/turnstile.py: what the driver, the client, the clock and the operator say, beside single operations."""

import pytest
from harness.sansio import CALLER, DIRECTORY, EVERYTHING, REGULAR, ROOT, STRANGER, Errno, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError, errno_name
from fuse_gated.gate.tenant import Identity
from fuse_gated.gate.tenant import Limits as TenantLimits
from fuse_gated.gate.verdict import ALL, DELETE, EXECUTE, Rule
from fuse_gated.turnstile.effects import InvalidateEntry
from fuse_gated.turnstile.knowing import MAX_NOTICES
from fuse_gated.turnstile.limits import Limits
from fuse_gated.wire import messages
from fuse_gated.wire.messages import OpenedFile


def failed(answer):
    assert isinstance(answer, op.Failed), answer
    return errno_name(answer.errno)


# What has no answer, or one of the table.


def test_forgotten_nodes_are_forgotten_and_not_answered():
    mount = Mount()
    f, g = mount.lookup(b"f"), mount.lookup(b"g")
    mount.lookup(b"g")
    mount.clear()
    mount.ask(op.Forget(((f, 1), (g, 1), (999, 5))))
    assert mount.log == []
    assert (mount.t.inodes.get(f), mount.t.inodes.get(g).lookups) == (None, 1)


@pytest.mark.parametrize("errno", ["ENOSYS", "ENOTTY"])
def test_what_is_not_served_is_answered_as_the_table_says(errno):
    mount = Mount()
    assert failed(mount.do(op.Unserved(39, errno))) == errno
    assert mount.records == mount.sent == []


def test_a_destroyed_mount_ends_the_session_in_order():
    mount = Mount()
    mount.ask(op.Destroy())
    assert mount.story == ["close 1000"]
    assert mount.log[0].reason == "unmounted"


def test_operations_are_counted():
    mount = Mount([Rule("/f", hide=True), *EVERYTHING])
    mount.do(op.Lookup(ROOT, b"f"))
    mount.do(op.Lookup(ROOT, b"g"), Errno("ENOENT"))
    mount.do(op.Statfs(ROOT), op.Filesystem(1, 1, 1, 1, 1, 4096, 255, 4096))
    mount.ask(op.Forget(()))
    statistics = mount.t.statistics
    assert (statistics.operations, statistics.denied, statistics.failed) == (3, 1, 2)


# Who may ask.


def test_where_the_policy_names_groups_the_kernel_has_checked_them():
    mount = Mount(identity=Identity(owner_uid=1, owner_gid=1, uids=(1,), gids=(50,)))
    assert isinstance(mount.do(op.Lookup(ROOT, b"f"), attributes(21), caller=STRANGER), op.Entry)


def test_anyone_may_where_the_policy_says_so():
    mount = Mount(identity=Identity(owner_uid=1, owner_gid=1, anyone=True))
    assert isinstance(mount.do(op.Lookup(ROOT, b"f"), attributes(21), caller=STRANGER), op.Entry)


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (op.Lookup(ROOT, b"x"), b"x"),
        (op.Lookup(999, b"x"), None),
        (op.Lookup(b"d", b"x"), b"d/x"),
        (op.Access(ROOT, 4), b""),
        (op.Access(b"d/x", 4), b"d/x"),
        (op.Rename(ROOT, b"x", ROOT, b"y", 0), b"x"),
        (op.Link(ROOT, ROOT, b"y"), b""),
    ],
)
def test_who_is_refused_unseen_is_told_with_what_was_asked_for(request_, path):
    mount = Mount()
    assert failed(mount.do(request_, caller=STRANGER)) == "EACCES"
    assert mount.records[0].path == path


# Interrupts.


def test_interrupting_what_is_not_there_does_nothing():
    mount = Mount()
    mount.interrupt(40)
    number = mount.ask(op.Statfs(ROOT))
    mount.reply(number, op.Filesystem(1, 1, 1, 1, 1, 4096, 255, 4096))
    mount.clear()
    mount.interrupt(number)
    assert mount.log == []


def test_what_waits_for_room_ends_after_the_grace_and_is_never_sent():
    mount = Mount(bounds=Limits(max_in_flight=1))
    first, second, third = (mount.ask(op.Lookup(ROOT, name)) for name in (b"a", b"b", b"c"))
    mount.clear()
    mount.interrupt(second)
    mount.tick(0.49)
    assert mount.story == []
    mount.tick(0.01)
    assert mount.story == ["answer EINTR"]
    mount.reply(first, attributes(21))
    assert [frame.id for frame in mount.sent] == [third]


def test_what_was_held_back_ends_after_the_grace_and_is_never_sent():
    mount = Mount(limits=TenantLimits(operations={"*": 1.0}))
    mount.do(op.Lookup(ROOT, b"a"), attributes(21))
    number = mount.ask(op.Lookup(ROOT, b"b"))
    mount.clear()
    mount.interrupt(number)
    assert mount.t.next_due(mount.now) == mount.now + 0.5
    mount.tick(0.49)
    assert mount.story == []
    mount.tick(0.01)
    assert mount.story == ["answer EINTR"]
    mount.tick(5)
    assert mount.story == ["answer EINTR"]
    assert mount.t.next_due(mount.now) is None


def test_what_is_answered_within_the_grace_is_no_ones_to_end():
    """A timer's signal, or a child's end, makes nothing fail that goes on: held back, waiting for room, or with the client."""
    mount = Mount(limits=TenantLimits(operations={"*": 4.0}), bounds=Limits(max_in_flight=1))
    numbers = [mount.ask(op.Lookup(ROOT, b"n%d" % number)) for number in range(5)]
    for number in numbers:
        mount.interrupt(number)
    for count, number in enumerate(numbers[:4]):
        mount.reply(number, attributes(21 + count))
    mount.tick(0.3)
    mount.reply(numbers[4], attributes(25))
    mount.tick(1)
    assert all(isinstance(mount.answer(number), op.Entry) for number in numbers)
    assert not [word for word in mount.story if word.startswith("cancel")]
    assert mount.t.next_due(mount.now) is None


def test_whoever_serves_it_can_see_what_it_waits_for():
    mount = Mount(limits=TenantLimits(operations={"*": 1.0}))
    assert (mount.t.busy, mount.t.holds) == (False, False)
    first = mount.ask(op.Lookup(ROOT, b"a"))
    assert (mount.t.busy, mount.t.holds) == (True, False)
    second = mount.ask(op.Lookup(ROOT, b"b"))
    assert (mount.t.busy, mount.t.holds) == (True, True)
    mount.reply(first, attributes(21))
    mount.tick(1)
    mount.reply(second, attributes(22))
    assert (mount.t.busy, mount.t.holds) == (False, False)


def test_a_clogged_client_is_not_blamed_for_an_interrupt():
    mount = Mount(bounds=Limits(max_in_flight=1))
    first = mount.ask(op.Lookup(ROOT, b"a"))
    mount.interrupt(first)
    mount.tick(0.5)
    assert failed(mount.answer(first)) == "EINTR"
    second = mount.ask(op.Lookup(ROOT, b"b"))
    mount.interrupt(second)
    mount.tick(0.5)
    assert failed(mount.answer(second)) == "EINTR"


def test_an_interrupt_does_not_lengthen_a_deadline():
    mount = Mount()
    number = mount.ask(op.Lookup(ROOT, b"a"))
    mount.tick(29.8)
    mount.interrupt(number)
    mount.tick(0.3)
    assert failed(mount.answer(number)) == "EINTR"


# Deadlines.


def test_a_request_that_waits_for_room_has_its_deadline_too():
    mount = Mount(bounds=Limits(max_in_flight=1))
    first = mount.ask(op.Lookup(ROOT, b"a"))
    mount.tick(10)
    second = mount.ask(op.Lookup(ROOT, b"b"))
    mount.tick(20)
    assert failed(mount.answer(first)) == "ETIMEDOUT"
    mount.reply(first, attributes(21))
    assert mount.answers(second) == []
    mount.tick(10)
    assert failed(mount.answer(second)) == "ETIMEDOUT"


def test_a_client_that_answers_nothing_for_a_whole_deadline_while_others_wait_is_at_fault():
    mount = Mount(bounds=Limits(max_in_flight=2, deadline=10))
    stuck = [mount.ask(op.Lookup(ROOT, name)) for name in (b"a", b"b")]
    mount.tick(10)
    assert [failed(mount.answer(number)) for number in stuck] == ["ETIMEDOUT"] * 2
    waits = mount.ask(op.Lookup(ROOT, b"c"))
    mount.tick(9.9)
    with pytest.raises(ProtocolError, match="none of 2 requests was answered, and each was given 10 s") as caught:
        mount.tick(0.2)
    assert caught.value.close_code == 1008
    mount.t.lost(mount.now)
    mount.gather()
    assert failed(mount.answer(waits)) == "ENOTCONN"


def test_a_client_that_answers_something_is_only_slow():
    mount = Mount(bounds=Limits(max_in_flight=2, deadline=10))
    stuck = [mount.ask(op.Lookup(ROOT, name)) for name in (b"a", b"b")]
    mount.tick(10)
    waits = [mount.ask(op.Lookup(ROOT, name)) for name in (b"c", b"d")]
    mount.tick(5)
    mount.reply(stuck[0], attributes(21))
    mount.tick(6)
    assert [failed(mount.answer(number)) for number in waits] == ["ETIMEDOUT"] * 2


def test_the_clock_is_needed_while_something_is_waited_for():
    mount = Mount(limits=TenantLimits(operations={"*": 10.0}))
    assert mount.t.next_due(mount.now) is None
    for _ in range(11):
        number = mount.ask(op.Lookup(ROOT, b"a"))
    assert mount.t.next_due(mount.now) == pytest.approx(mount.now + 0.1), "the one that was held back"
    mount.tick(0.1)
    assert mount.t.next_due(mount.now) == mount.now + 0.25
    mount.reply(number, attributes(21))


# The limiter.


def test_data_that_was_held_back_is_no_view_of_the_drivers_buffer_any_more():
    mount = Mount(limits=TenantLimits(bytes={"write": 10.0}))
    node = mount.lookup(b"f", inode=21)
    handle = mount.open(node)
    buffer = bytearray(b"0123456789")
    mount.do(op.Write(node, handle, 0, bytes(buffer)), 10)
    mount.ask(op.Write(node, handle, 10, memoryview(buffer)[:5]))
    buffer[:] = b"xxxxxxxxxx"
    mount.tick(0.6)
    assert mount.arguments.data == b"01234"


def test_bytes_count_by_their_class():
    mount = Mount(limits=TenantLimits(bytes={"read": 100.0, "write": 100.0}))
    node = mount.lookup(b"f", inode=21)
    handle, other = mount.open(node), mount.open(node, remote=78)
    mount.clear()
    mount.ask(op.Read(node, handle, 0, 100))
    mount.ask(op.Write(node, handle, 0, bytes(100)))
    assert len(mount.sent) == 2
    mount.ask(op.Read(node, handle, 0, 50))
    mount.ask(op.CopyFileRange(node, handle, 0, node, other, 0, 50))
    assert len(mount.sent) == 2
    assert mount.t.next_due(mount.now) == pytest.approx(mount.now + 0.25)
    mount.tick(0.51)
    assert [frame.operation for frame in mount.sent[2:]] == ["read", "copy_file_range"]


def test_nobody_is_held_back_for_longer_than_the_deadline():
    mount = Mount(limits=TenantLimits(operations={"*": 1.0}), bounds=Limits(deadline=10))
    numbers = [mount.ask(op.Lookup(ROOT, b"n%d" % number)) for number in range(12)]
    assert [bool(mount.answers(number)) for number in numbers] == [False] * 11 + [True]
    assert failed(mount.answer(numbers[-1])) == "EAGAIN"
    assert mount.records[-1].kind == "limited"


def test_an_interrupted_caller_leaves_its_turn_to_the_others():
    mount = Mount(limits=TenantLimits(operations={"*": 1.0}))
    _, second, third = (mount.ask(op.Lookup(ROOT, name)) for name in (b"a", b"b", b"c"))
    mount.interrupt(second)
    mount.interrupt(third)
    mount.tick(0.5)
    fourth = mount.ask(op.Lookup(ROOT, b"d"))
    mount.clear()
    mount.tick(0.51)
    assert [frame.id for frame in mount.sent] == [fourth]


def test_the_data_that_is_held_back_is_bounded():
    mount = Mount(limits=TenantLimits(bytes={"write": 10.0}), bounds=Limits(max_bytes_in_flight=25))
    node = mount.lookup(b"f", inode=21)
    handle = mount.open(node)
    writes = [mount.ask(op.Write(node, handle, 0, bytes(10))) for _ in range(4)]
    assert failed(mount.answer(writes[3])) == "EAGAIN"
    mount.interrupt(writes[1])
    mount.tick(0.5)
    assert failed(mount.answer(writes[1])) == "EINTR"
    again = mount.ask(op.Write(node, handle, 0, bytes(10)))
    assert mount.answers(again) == [], "there is room again"
    mount.reply(writes[0], 10)
    mount.tick(5)
    assert {frame.id for frame in mount.sent} >= {writes[2], again}


def test_what_was_held_back_is_judged_when_its_turn_comes():
    mount = Mount(limits=TenantLimits(operations={"*": 1.0}))
    mount.do(op.Lookup(ROOT, b"a"), attributes(21))
    number = mount.ask(op.Lookup(ROOT, b"b"))
    mount.apply([])
    mount.tick(2)
    assert failed(mount.answer(number)) == "EACCES"


# Records that cannot be written.


def test_what_nobody_waits_for_is_not_withdrawn_but_sent_later():
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    handle = mount.open(node)
    mount.do(op.Release(node, handle))
    assert not mount.t.withdraw(mount.sent[-1].id)
    assert mount.t.session.in_flight == 1


def test_a_withdrawn_request_leaves_its_place_to_who_waits():
    mount = Mount(bounds=Limits(max_in_flight=1))
    first, second = mount.ask(op.Lookup(ROOT, b"a")), mount.ask(op.Lookup(ROOT, b"b"))
    mount.clear()
    assert mount.t.withdraw(first)
    mount.gather()
    assert mount.story == ["send getattr", "answer EIO"]
    assert mount.sent[0].id == second


def test_what_was_told_and_withdrawn_is_told_to_have_failed():
    mount = Mount()
    number = mount.ask(op.Mkdir(ROOT, b"d", 0o755, 0))
    mount.t.withdraw(number)
    mount.gather()
    assert [(record.kind, record.errno) for record in mount.records] == [("operation", ""), ("failed", "EIO")]


# The client's notices.


def test_a_change_on_the_client_makes_the_kernel_forget():
    mount = Mount()
    node = mount.lookup(b"d/f")
    parent = mount.t.inodes.get(node).parent.id
    mount.clear()
    mount.notice(b"d/f")
    assert mount.story == [f"forget {parent}/f", f"forget {node}"]
    mount.clear()
    mount.notice(b"", b"d/unknown/deeper", b"unknown")
    assert mount.story == [f"forget {ROOT}"]


@pytest.mark.parametrize("path", [b"..", b"d/../f", b"d//f", b"/f", b"f/", b".", b"a\0b", b"n" * 256])
def test_a_notice_of_what_is_no_path_is_refused(path):
    mount = Mount()
    mount.lookup(b"f")
    mount.clear()
    with pytest.raises(ProtocolError, match="a path with the component"):
        mount.notice(path)
    assert mount.log == []


def test_notices_are_bounded():
    mount = Mount()
    mount.notice(*[b"f"] * MAX_NOTICES)
    with pytest.raises(ProtocolError, match=f"{MAX_NOTICES + 1} changed paths in one message"):
        mount.notice(*[b"f"] * (MAX_NOTICES + 1))


# A new policy.


def test_what_may_be_seen_no_more_is_forgotten_by_the_kernel():
    mount = Mount()
    f, g = mount.lookup(b"d/f"), mount.lookup(b"d/g")
    d = mount.t.inodes.get(f).parent.id
    mount.clear()
    mount.apply([Rule("/d/f", hide=True), *EVERYTHING])
    assert set(mount.story) == {f"forget {d}/f", f"forget {f}"}
    assert mount.t.generation == 1
    mount.apply(EVERYTHING)
    mount.clear()
    mount.apply(EVERYTHING)
    assert mount.log == [], "nothing is less than before"
    mount.apply([Rule("/d/g", deny=EXECUTE | DELETE), *EVERYTHING])
    assert set(mount.story) == {f"forget {d}/g", f"forget {g}"}


def test_the_root_and_what_has_no_name_have_no_entry_to_forget():
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    mount.open(node)
    mount.do(op.Unlink(ROOT, b"f"), None)
    mount.clear()
    mount.apply([Rule("/**", deny=ALL)])
    assert set(mount.story) == {f"forget {ROOT}", f"forget {node}"}


def test_limits_and_the_audits_level_change_with_the_policy():
    mount = Mount(audit="denials")
    mount.apply(EVERYTHING, audit="everything", limits=TenantLimits(operations={"*": 1.0}))
    mount.do(op.Lookup(ROOT, b"a"), attributes(21))
    assert [record.kind for record in mount.records] == ["operation"]
    number = mount.ask(op.Lookup(ROOT, b"b"))
    assert mount.answers(number) == []
    mount.apply(EVERYTHING, limits=TenantLimits())
    assert isinstance(mount.do(op.Lookup(ROOT, b"c"), attributes(22)), op.Entry), "no limit holds any more"


# What is answered.


def test_nobody_is_answered_twice():
    mount = Mount()
    mount.ask(op.Lookup(ROOT, b"a"))
    (call,) = mount.t._calls.values()
    mount.t.answer(call, op.Done())
    mount.t.answer(call, op.Done())
    mount.t.fail(call, "EIO")
    mount.gather()
    assert mount.story == ["send getattr", "answer Done"]
    assert mount.t.statistics.failed == 0


def test_a_directory_that_was_forgotten_meanwhile_is_stale():
    mount = Mount()
    directory = mount.lookup(b"d", DIRECTORY)
    for result, errno in ((attributes(21), "ESTALE"), (Errno("ENOENT"), "ENOENT")):
        number = mount.ask(op.Lookup(directory, b"x"))
        mount.ask(op.Forget(((directory, 1),)))
        mount.reply(number, result)
        assert failed(mount.answer(number)) == errno
        directory = mount.lookup(b"d", DIRECTORY)


# The end.


def test_when_the_client_is_gone_nothing_is_sent_and_nobody_called_back():
    mount = Mount(limits=TenantLimits(operations={"*": 1.0}), bounds=Limits(max_in_flight=1))
    numbers = [mount.ask(op.Lookup(ROOT, name)) for name in (b"a", b"b", b"c")]
    mount.clear()
    mount.t.lost(mount.now)
    mount.gather()
    assert mount.story == ["answer ENOTCONN"] * 3
    mount.tick(100)
    assert mount.story == ["answer ENOTCONN"] * 3
    with pytest.raises(ProtocolError):
        mount.reply(numbers[0], attributes(21))


def test_what_was_told_and_is_undecided_is_told_so():
    mount = Mount()
    mount.ask(op.Mkdir(ROOT, b"d", 0o755, 0))
    mount.t.lost(mount.now)
    mount.gather()
    assert (mount.records[-1].errno, mount.records[-1].detail) == ("ENOTCONN", "the client may have carried it out")


# Too many nodes.


def test_beyond_the_limit_the_kernel_is_asked_to_forget_a_few_at_a_time():
    mount = Mount(bounds=Limits(inodes=2000))
    directory = mount.lookup(b"d", DIRECTORY)
    for number in range(2500):
        mount.lookup(b"n%d" % number, REGULAR, 10_000 + number, parent=directory)
    forgotten = [word for word in mount.story if word.startswith("forget")]
    assert len(forgotten) == len(set(forgotten)) == 1999, "all but the root and the directory"
    assert forgotten[0] == f"forget {directory}/n0"


def test_names_that_the_kernel_cannot_forget_do_not_keep_it_from_forgetting_others():
    mount = Mount(bounds=Limits(inodes=5000))
    directory = mount.lookup(b"d", DIRECTORY)
    nodes, most = {}, 0
    for number in range(30_000):
        name = b"n%d" % number
        nodes[name] = mount.lookup(name, REGULAR, 10_000 + number, parent=directory)
        for effect in mount.log:
            if isinstance(effect, InvalidateEntry) and int(effect.name[1:]) >= 3000:
                mount.ask(op.Forget(((nodes[effect.name], 1),)))
        mount.clear()
        most = max(most, len(mount.t.inodes))
    assert most < 10_000


def test_a_name_that_was_only_just_made_is_not_the_callers_concern():
    mount = Mount()
    assert mount.do(op.Create(ROOT, b"f", 2, 0o644, 0), OpenedFile(77, attributes(21)), caller=CALLER).opened.handle == 1
    assert mount.arguments == messages.Create(b"f", 3, 0o644, None)
