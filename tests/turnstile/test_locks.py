"""turnstile/locks.py: POSIX locks and flock, which wait without blocking anything else."""

import math

import pytest
from harness.sansio import EVERYTHING, ROOT, Errno, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError, errno_name
from fuse_gated.gate.tenant import Cache
from fuse_gated.gate.verdict import EXECUTE, READ, WRITE, Rule
from fuse_gated.tree.cache import Name
from fuse_gated.turnstile.effects import Answer
from fuse_gated.turnstile.limits import Limits
from fuse_gated.wire import messages
from fuse_gated.wire.messages import LockState, OpenedFile

READ_LOCK, WRITE_LOCK, UNLOCK = 0, 1, 2
END = 2**63 - 1
OWNER, OTHER = 9, 10


def failed(answer):
    assert isinstance(answer, op.Failed), answer
    return errno_name(answer.errno)


class File:
    def __init__(self, **options):
        self.mount = Mount(**options)
        self.node = self.mount.lookup(b"f", inode=21)
        self.handle = self.mount.open(self.node, remote=77)
        self.mount.clear()

    def lock(self, kind=WRITE_LOCK, start=0, end=10, owner=OWNER, wait=False, flock=False, pid=4321):
        return op.Setlk(self.node, self.handle, owner, start, end, kind, pid, wait, flock)

    def test(self, kind=WRITE_LOCK, start=0, end=10, owner=OTHER):
        return op.Getlk(self.node, self.handle, owner, start, end, kind, 5)


@pytest.fixture
def file():
    return File()


# Taking.


def test_a_lock_is_taken_on_the_client(file):
    assert file.mount.do(file.lock(READ_LOCK, 5, END), None) == op.Done()
    assert file.mount.arguments == messages.Setlk(77, OWNER, 5, END, READ_LOCK, False, 0)
    assert file.mount.do(file.lock(flock=True), None) == op.Done()
    assert file.mount.arguments.flock is True


def test_who_takes_a_lock_looks_at_the_file_again(file):
    file.mount.do(file.lock(), None)
    assert file.mount.story == ["send setlk", f"forget attributes of {file.node}", "answer Done"]
    file.mount.clear()
    file.mount.do(file.lock(UNLOCK), None)
    assert file.mount.story == ["send setlk", "answer Done"]


def test_who_has_no_lock_need_not_ask_to_give_one_up(file):
    assert file.mount.do(file.lock(UNLOCK)) == op.Done()
    assert file.mount.sent == []
    assert file.mount.do(file.lock(UNLOCK, flock=True), None) == op.Done()


def test_a_lock_that_is_in_the_way_is_told_to_who_does_not_wait(file):
    assert failed(file.mount.do(file.lock(), Errno("EAGAIN"))) == "EAGAIN"
    assert failed(file.mount.do(file.lock(wait=True), Errno("EDEADLK"))) == "EDEADLK"


def test_without_nodes_there_is_nothing_to_look_at_again():
    mount = Mount()
    handle = mount.do(op.Open(b"f", 2), OpenedFile(77, attributes(21))).handle
    mount.clear()
    mount.do(op.Setlk(b"f", handle, OWNER, 0, 10, WRITE_LOCK, 4321, False, False), None)
    assert mount.story == ["send setlk", "answer Done"]
    assert mount.do(op.Getlk(b"f", handle, OTHER, 0, 10, WRITE_LOCK, 5), LockState(WRITE_LOCK, 0, 10)).pid == 4321


# Asking.


def test_a_lock_in_the_way_is_shown_with_its_holder_where_that_is_ours(file):
    file.mount.do(file.lock(WRITE_LOCK, 0, 10, pid=4321), None)
    assert file.mount.do(file.test(), LockState(WRITE_LOCK, 0, 10)) == op.Lock(0, 10, WRITE_LOCK, 4321)
    assert file.mount.arguments == messages.Getlk(77, OTHER, 0, 10, WRITE_LOCK)
    assert file.mount.do(file.test(start=50, end=60), LockState(WRITE_LOCK, 50, END)) == op.Lock(50, END, WRITE_LOCK, 0)


def test_no_lock_in_the_way_is_shown_as_none(file):
    file.mount.do(file.lock(), None)
    assert file.mount.do(file.test(), LockState(UNLOCK)) == op.Lock(0, 0, UNLOCK, 0)


def test_an_flock_is_no_posix_lock(file):
    file.mount.do(file.lock(flock=True), None)
    assert len(file.mount.t.handles.locks) == 0


# Waiting.


def test_a_waiting_lock_is_asked_for_again_and_again_for_as_long_as_its_caller_waits(file):
    mount = file.mount
    number = mount.ask(file.lock(wait=True))
    for _ in range(20):
        assert mount.arguments.wait == 10_000
        mount.tick(9.9)
        mount.reply(number, Errno("EAGAIN"))
        assert mount.answers(number) == []
    mount.reply(number, None)
    assert mount.answer(number) == op.Done()
    assert len(mount.sent) == 21


def test_a_client_may_wait_no_longer_than_half_the_deadline():
    file = File(bounds=Limits(deadline=4.0))
    file.mount.ask(file.lock(wait=True))
    assert file.mount.arguments.wait == 2000


def test_a_client_that_fell_silent_is_noticed_by_who_waits_for_a_lock(file):
    number = file.mount.ask(file.lock(wait=True))
    file.mount.tick(30)
    assert failed(file.mount.answer(number)) == "ETIMEDOUT"


def test_an_interrupted_wait_ends_when_the_client_says_so(file):
    mount = file.mount
    number = mount.ask(file.lock(wait=True))
    mount.interrupt(number)
    mount.reply(number, Errno("EAGAIN"))
    assert failed(mount.answer(number)) == "EINTR"
    assert [word for word in mount.story if word.startswith("send")] == ["send setlk"], "it is not asked for again"


def test_a_lock_that_came_in_time_is_the_interrupted_callers(file):
    mount = file.mount
    number = mount.ask(file.lock(wait=True))
    mount.interrupt(number)
    mount.reply(number, None)
    assert mount.answer(number) == op.Done()


@pytest.mark.parametrize("flock", [False, True])
def test_a_lock_that_came_too_late_is_given_up_again(file, flock):
    mount = file.mount
    number = mount.ask(file.lock(READ_LOCK, 5, 50, wait=True, flock=flock))
    mount.interrupt(number)
    mount.tick(0.6)
    assert failed(mount.answer(number)) == "EINTR"
    mount.clear()
    mount.reply(number, None)
    assert mount.story == ["send setlk"]
    assert mount.arguments == messages.Setlk(77, OWNER, 5, 50, UNLOCK, flock)
    assert mount.sent[-1].id % 2 == 1
    mount.reply(mount.sent[-1].id, None)
    assert mount.story == ["send setlk"]
    assert len(mount.t.handles.locks) == 0


def test_what_was_given_up_too_late_is_given_up(file):
    mount = file.mount
    mount.do(file.lock(), None)
    number = mount.ask(file.lock(UNLOCK))
    mount.tick(31)
    mount.clear()
    mount.reply(number, None)
    assert mount.log == []


def test_waiting_locks_leave_room_for_the_one_that_gives_up():
    file = File(bounds=Limits(max_in_flight=8))
    mount = file.mount
    mount.do(file.lock(owner=5), None)
    mount.clear()
    numbers = [mount.ask(file.lock(wait=True, owner=owner)) for owner in range(20, 26)]
    assert [frame.arguments.wait > 0 for frame in mount.sent] == [True, True, False, False, False, False]
    mount.clear()
    for number in numbers[2:]:
        mount.reply(number, Errno("EAGAIN"))
    assert mount.log == [], "they come again after a while"
    assert mount.t.session.in_flight == 2
    assert mount.t.next_due(mount.now) == pytest.approx(mount.now + 0.1)
    unlock = mount.ask(file.lock(UNLOCK, owner=5))
    mount.reply(unlock, None)
    assert mount.answer(unlock) == op.Done()
    mount.clear()
    mount.tick(0.11)
    assert [frame.id for frame in mount.sent] == numbers[2:]
    assert {frame.arguments.wait for frame in mount.sent} == {0}
    mount.reply(numbers[0], None)
    mount.reply(numbers[1], None)
    mount.reply(numbers[2], Errno("EAGAIN"))
    mount.reply(numbers[3], Errno("EAGAIN"))
    mount.clear()
    mount.reply(numbers[4], None)
    assert mount.answer(numbers[4]) == op.Done()


def test_an_interrupted_wait_between_two_tries_ends_at_once():
    file = File(bounds=Limits(max_in_flight=4))
    mount = file.mount
    mount.ask(file.lock(wait=True, owner=20))
    number = mount.ask(file.lock(wait=True, owner=21))
    mount.reply(number, Errno("EAGAIN"))
    mount.interrupt(number)
    assert failed(mount.answer(number)) == "EINTR"
    mount.clear()
    mount.tick(0.2)
    assert mount.log == []


def test_a_wait_ends_when_the_file_is_closed_meanwhile(file):
    mount = file.mount
    number = mount.ask(file.lock(wait=True))
    mount.do(op.Release(file.node, file.handle))
    mount.reply(number, Errno("EAGAIN"))
    assert failed(mount.answer(number)) == "EBADF"


# A policy that changes.


@pytest.mark.parametrize("right", [READ, WRITE])
def test_who_may_still_read_or_write_may_lock(file, right):
    file.mount.apply([Rule("/**", allow=right)])
    assert file.mount.do(file.lock(), None) == op.Done()
    assert isinstance(file.mount.do(file.test(), LockState(UNLOCK)), op.Lock)


def test_who_may_neither_may_only_give_up(file):
    file.mount.do(file.lock(), None)
    file.mount.apply([Rule("/**", allow=EXECUTE)])
    file.mount.clear()
    assert failed(file.mount.do(file.lock())) == failed(file.mount.do(file.test())) == "EACCES"
    assert [record.kind for record in file.mount.records] == ["refused"] * 2
    assert file.mount.do(file.lock(UNLOCK), None) == op.Done()
    file.mount.apply(EVERYTHING)
    assert file.mount.do(file.lock(), None) == op.Done()


def test_a_lock_is_the_files_wherever_it_was_renamed_to(file):
    file.mount.do(file.lock(), None)
    file.mount.do(op.Rename(ROOT, b"f", ROOT, b"g", 0), None)
    assert file.mount.do(file.test(), LockState(WRITE_LOCK, 0, 10)).pid == 4321


# What the client says with the lock.

FILE = attributes(21, size=2**20)


class Watched(File):
    """A file of a directory that the client watches."""

    def __init__(self, **options):
        super().__init__(watches=True, **options)
        self.t = self.mount.t
        cache = self.t.cache
        names = [Name(b"f", 21, 0o100000, FILE), Name(b"g", 22, 0o100000, attributes(22))]
        cache.listed(b"", None, names, complete=True, since=cache.tick, until=math.inf)

    def taken(self, found, *notices):
        """Take it; the client says what it is like, after it has told of this."""
        number = self.mount.ask(self.lock())
        assert self.mount.arguments.current is True
        for path, attributes_ in notices:
            self.mount.notice(path, attributes=(attributes_,))
        self.mount.clear()
        self.mount.reply(number, found)
        assert self.mount.answer(number) == op.Done()
        return self.mount.story

    def looks(self):
        """The size that fstat(2) shows, which asks nobody."""
        before = len(self.mount.sent)
        answer = self.mount.answer(self.mount.ask(op.Getattr(self.node, self.handle)))
        assert len(self.mount.sent) == before
        return answer.attributes.size


def test_what_it_says_will_do():
    file = Watched()
    assert file.taken(FILE) == [f"forget attributes of {file.node}", "answer Done"], "nothing has become of its pages"
    assert file.looks() == 2**20


def test_what_has_changed_is_read_again():
    file = Watched()
    now = attributes(21, size=6, mtime=9)
    assert file.taken(now) == [f"forget attributes of {file.node}", f"forget {file.node}", "answer Done"]
    assert file.looks() == 6
    assert file.taken(now, (b"f", now))[-2:] == [f"forget attributes of {file.node}", "answer Done"]


def test_what_was_written_here_meanwhile_is_read_again():
    file = Watched()
    file.mount.do(op.Write(file.node, file.handle, 0, b"data", from_cache=False), 4)
    assert f"forget {file.node}" in file.taken(FILE)


def test_who_is_told_has_what_the_kernel_was_to_forget_before():
    file = Watched()
    file.taken(FILE, (b"f", attributes(21, size=6, mtime=9)))
    [answer] = [effect for effect in file.mount.log if isinstance(effect, Answer)]
    assert answer.in_order is True
    file.mount.clear()
    file.mount.do(file.lock(UNLOCK), None)
    [answer] = [effect for effect in file.mount.log if isinstance(effect, Answer)]
    assert answer.in_order is False
    assert file.mount.arguments.current is False


def test_of_a_file_that_has_another_name_by_now_nothing_is_known():
    file = Watched()
    file.taken(FILE, (b"f", attributes(99)))
    number = file.mount.ask(op.Getattr(file.node, file.handle))
    assert file.mount.answers(number) == []


def test_of_another_file_it_says_nothing():
    file = Watched()
    file.taken(attributes(22))
    number = file.mount.ask(op.Getattr(file.node, file.handle))
    assert file.mount.answers(number) == []


def test_what_no_file_is_like_ends_the_session():
    file = Watched()
    number = file.mount.ask(file.lock())
    with pytest.raises(ProtocolError):
        file.mount.reply(number, attributes(21, size=-1))


@pytest.mark.parametrize("cache", [Cache("strict"), Cache("ttl", 5.0)])
def test_nobody_is_asked_who_does_not_tell_of_changes(cache):
    file = File(watches=True, cache=cache)
    assert file.mount.do(file.lock(), None) == op.Done()
    assert file.mount.arguments.current is False


# What the client grants when the caller has gone.


def late(file, number, result=None):
    """The client answers a call that has ended meanwhile; what it is asked then."""
    file.mount.clear()
    file.mount.reply(number, result)
    return [frame.arguments for frame in file.mount.sent]


def given_up(file, request):
    number = file.mount.ask(request)
    file.mount.interrupt(number)
    file.mount.tick(0.6)
    assert failed(file.mount.answer(number)) == "EINTR"
    return number


@pytest.mark.parametrize("flock", [False, True])
@pytest.mark.parametrize("first", [True, False], ids=["answered first", "answered last"])
def test_what_its_caller_has_got_by_trying_again_it_keeps(file, flock, first):
    number = given_up(file, file.lock(WRITE_LOCK, 5, 50, flock=flock))
    again = file.mount.ask(file.lock(WRITE_LOCK, 5, 50, flock=flock))
    for answered in (number, again) if first else (again, number):
        assert late(file, answered) == []
    assert len(file.mount.t.handles.locks) == (0 if flock else 1)
    assert file.mount.do(file.lock(UNLOCK, 5, 50, flock=flock), None) == op.Done()


@pytest.mark.parametrize("flock", [False, True])
def test_where_trying_again_has_failed_it_is_given_back(file, flock):
    number = given_up(file, file.lock(WRITE_LOCK, 5, 50, flock=flock))
    again = file.mount.ask(file.lock(READ_LOCK, 5, 50, flock=flock))
    assert late(file, number) == []
    assert late(file, again, Errno("EAGAIN")) == [messages.Setlk(77, OWNER, 5, 50, UNLOCK, flock)]


@pytest.mark.parametrize("flock", [False, True])
def test_an_upgrade_that_came_too_late_leaves_what_was_held(file, flock):
    file.mount.do(file.lock(READ_LOCK, 5, 50, flock=flock), None)
    number = given_up(file, file.lock(WRITE_LOCK, 5, 50, flock=flock))
    assert late(file, number) == [messages.Setlk(77, OWNER, 5, 50, READ_LOCK, flock)]


def test_each_part_becomes_what_it_was(file):
    file.mount.do(file.lock(READ_LOCK, 10, 19), None)
    file.mount.do(file.lock(WRITE_LOCK, 30, 39), None)
    number = given_up(file, file.lock(WRITE_LOCK, 5, 50))
    assert [(asked.start, asked.end, asked.type) for asked in late(file, number)] == [
        (5, 9, UNLOCK), (10, 19, READ_LOCK), (20, 29, UNLOCK), (40, 50, UNLOCK),
    ]  # fmt: skip


def test_what_a_process_before_this_one_may_have_is_left(file):
    file.mount.t.handle(file.handle).flock = None
    number = given_up(file, file.lock(WRITE_LOCK, flock=True))
    assert late(file, number) == []


@pytest.mark.parametrize("flock", [False, True])
def test_of_what_is_closed_by_then_nothing_is_left(file, flock):
    number = given_up(file, file.lock(WRITE_LOCK, 5, 50, flock=flock))
    file.mount.ask(op.Release(file.node, file.handle))
    assert late(file, number) == [messages.Setlk(77, OWNER, 5, 50, UNLOCK, flock)]


def test_the_next_request_of_the_same_owner_waits_meanwhile(file):
    file.mount.do(file.lock(READ_LOCK, 10, 19), None)
    number = given_up(file, file.lock(READ_LOCK, 5, 50))
    parts = [(asked.start, asked.end) for asked in late(file, number)]
    assert parts == [(5, 9), (20, 50)]
    backs = [frame.id for frame in file.mount.sent]
    file.mount.clear()
    next_one = file.mount.ask(file.lock(WRITE_LOCK, 0, 99))
    other = file.mount.ask(file.lock(READ_LOCK, 60, 99, owner=OWNER + 1))
    assert [frame.id for frame in file.mount.sent] == [other]
    for back in backs:
        file.mount.tick(0.03)
        assert next_one not in [frame.id for frame in file.mount.sent]
        file.mount.reply(back, None)
    file.mount.tick(0.03)
    assert next_one in [frame.id for frame in file.mount.sent]


def test_of_locks_of_who_has_gone_nothing_is_asked_while_the_client_is_away(file):
    number = given_up(file, file.lock(WRITE_LOCK, 5, 50))
    pending = file.mount.t.session.known(number)
    file.mount.t.suspend(file.mount.now)
    file.mount.gather()
    file.mount.clear()
    file.mount.t._late(pending, None)
    file.mount.gather()
    assert file.mount.sent == []
