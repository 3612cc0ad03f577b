"""seats.py: a session's way from one process to the next. The processes are real, and do nothing; their words, the mount keeper's
and the clock's are the test's."""

import hashlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from harness.log import DEADLINE

from fuse_gated import seats as module
from fuse_gated import supervision
from fuse_gated.config.settings import Settings
from fuse_gated.edge import keeping, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Loop
from fuse_gated.gate.tenant import Exports, Identity, Tenant, Token
from fuse_gated.guest import Guest
from fuse_gated.mounter import Found, Mounter
from fuse_gated.seats import Note, Seat, Seats
from fuse_gated.tenants import Tenants

SECRET, OTHER_SECRET = b"s" * 32, b"t" * 32
IDENTITY = Identity(owner_uid=0, owner_gid=0, uids=(0,))


def digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def tenant(name: str, *tokens: bytes, **other: Any) -> Tenant:
    return Tenant(name=name, tokens=tuple(Token(digest(token)) for token in tokens or (name.encode(),)), **other)


def tenants(*found: Tenant) -> Tenants:
    return Tenants({one.name: (one, IDENTITY) for one in found})


class Process:
    """A worker or a standby, as the daemon has it and as itself."""

    def __init__(self, session: str, address: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = process.spawn(lambda: signal.pause() or 0)
        self.channel = Channel(theirs, supervision.FROM_DAEMON, max_fds=3)
        self.guest = Guest(session, address, child, Channel(ours, supervision.FROM_WORKER, max_fds=0))
        self.descriptors: list[int] = []

    def heard(self) -> list[Any]:
        """What the daemon has said since the last call."""
        said = []
        while True:
            try:
                received = self.channel.receive()
            except BlockingIOError:
                return said
            if received is None:
                return said
            message, descriptors = received
            if isinstance(message, supervision.Enclosed):
                message = supervision.disclose(descriptors.pop(0))
            self.descriptors += descriptors
            said.append(message)

    def end(self) -> int | None:
        """It is killed, and the daemon does not know yet."""
        self.guest.child.send_signal(signal.SIGKILL)
        return self.guest.child.wait(DEADLINE)

    @property
    def killed(self) -> bool:
        return self.guest.child.wait(DEADLINE) == -signal.SIGKILL

    def close(self) -> None:
        self.end()
        self.guest.forget_state()
        self.guest.channel.close()
        self.channel.close()
        for descriptor in self.descriptors:
            os.close(descriptor)


class Daemon:
    """What the seats need of it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.settings = Settings()
        self.tenants = tenants(tenant("acme"), tenant("other"))
        self.drivers: tuple[str, ...] = ("kernel",)
        self.draining = False
        self.moving = False
        ours, keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper = Channel(keeper, keeping.REQUESTS)
        self.mounter: Mounter | None = Mounter(self.loop, Channel(ours, keeping.ANSWERS, max_fds=2), lambda: None)
        self.seats = Seats(self)
        self.processes: list[Process] = []
        self.forks_fail = False
        self.changes = 0
        self.asked: list[Any] = []

    def stand_by(self, session: str) -> Guest:
        if self.forks_fail:
            raise OSError(11, "Resource temporarily unavailable")
        self.processes.append(Process(session, ""))
        return self.processes[-1].guest

    def died(self, guest: Guest, how: str = "SIGKILL") -> None:
        if not guest.dead:
            guest.dead = True
            guest.kill()
            self.seats.died(guest, how)

    def started(self, guest: Guest) -> None:
        guest.starting = False

    def changed(self) -> None:
        self.changes += 1

    def moves(self) -> bool:
        return self.moving

    # The test's ways.

    def client(self, name: str = "acme", token: bytes = b"", address: str = "192.0.2.1") -> Process:
        """A worker whose client has logged in."""
        made = Process(f"{len(self.processes):016x}", address)
        self.processes.append(made)
        made.guest.tenant, made.guest.digest = self.tenants[name][0], digest(token or name.encode())
        return made

    def open(self, client: Process, secret: bytes = b"", export: str = "work") -> Seat:
        self.seats.open(client.guest, export, "program/1", secret)
        assert client.guest.seat is not None
        return client.guest.seat

    def requests(self) -> list[Any]:
        """What the keeper was asked since the last call."""
        asked = []
        while True:
            try:
                received = self.keeper.receive()
            except BlockingIOError:
                break
            assert received is not None
            asked.append(received[0])
        return asked

    def answer(self, kind: type, **fields: Any) -> None:
        """The keeper answers what it was asked first of this kind, and everything else with Done."""
        answers = {keeping.Mount: keeping.Mounted, keeping.Unmount: keeping.Done}
        self.asked += self.requests()
        [asked] = [request for request in self.asked if isinstance(request, kind)]
        self.asked = [request for request in self.asked if request is not asked]
        descriptors: list[int] = []
        if kind is keeping.Mount and not fields:
            fields = {"path": f"/run/{asked.tenant}/{asked.export}"}
            descriptors = [os.open("/dev/null", os.O_RDONLY), os.memfd_create("state")]
        answer = keeping.Refused if "reason" in fields else answers[kind]
        self.keeper.send(answer(id=asked.id, **fields), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self.loop.turn()

    def mounted(self, client: Process | None = None, secret: bytes = SECRET, export: str = "work") -> tuple[Seat, Process]:
        """A session in use, and its worker."""
        client = client or self.client()
        seat = self.open(client, export=export)
        self.answer(keeping.Mount)
        self.seats.ready(client.guest, digest(secret))
        client.heard()
        return seat, client

    def until(self, condition: Any) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end
            self.loop.turn()

    def noted(self) -> Note:
        """The note that the keeper got last: it gets one at a time."""
        notes = []
        self.asked += self.requests()
        while found := [request for request in self.asked if isinstance(request, keeping.Note)]:
            notes += found
            self.asked = [request for request in self.asked if not isinstance(request, keeping.Note)]
            for request in found:
                self.keeper.send(keeping.Done(id=request.id))
            self.loop.turn()
            self.asked += self.requests()
        return msgspec.msgpack.decode(notes[-1].data, type=Note)

    def close(self) -> None:
        for seat in self.seats:
            for descriptor in seat.descriptors:
                os.close(descriptor)
        for one in self.processes:
            one.close()
        self.keeper.close()
        self.loop.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.close()


def kinds(messages: Sequence[Any]) -> list[str]:
    return [type(message).__name__ for message in messages]


def refusal(client: Process) -> str:
    [message] = client.heard()
    assert isinstance(message, supervision.OpenRefused)
    return message.reason


# It begins.


def test_a_mount_is_made(daemon: Daemon) -> None:
    client = daemon.client()
    seat = daemon.open(client)
    assert (seat.mounted, seat.reader, len(daemon.seats), daemon.seats.mounted) == (False, client.guest, 1, [])
    daemon.answer(keeping.Mount)
    [opened] = client.heard()
    assert opened == supervision.Opened("/run/acme/work", "kernel")
    assert len(client.descriptors) == 3
    assert (seat.mounted, seat.shown, seat.state, seat.path) == (True, "acme/work", "mounted", "/run/acme/work")
    assert daemon.seats.find("acme/work") == daemon.seats.find(seat.session) == [seat]
    daemon.seats.ready(client.guest, digest(SECRET))
    assert daemon.noted() == seat.note
    assert seat.note.resume == digest(SECRET)


def test_a_mount_that_cannot_be_made(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    client, gone = daemon.client(), daemon.client()
    daemon.open(client)
    daemon.answer(keeping.Mount, reason="no such thing")
    assert refusal(client) == "the server could not mount: no such thing"
    assert len(daemon.seats) == 0
    daemon.open(gone)
    daemon.died(gone.guest)
    daemon.answer(keeping.Mount, reason="no such thing")
    assert len(daemon.seats) == 0
    assert "acme/work could not be mounted: no such thing" in capsys.readouterr().err


def test_a_mount_without_its_descriptors(daemon: Daemon) -> None:
    client = daemon.client()
    daemon.open(client)
    daemon.answer(keeping.Mount, path="/run/x")
    assert "no descriptors came with the mount" in refusal(client)


def test_a_mount_whose_worker_has_ended_meanwhile(daemon: Daemon) -> None:
    client = daemon.client()
    daemon.open(client)
    daemon.died(client.guest)
    daemon.answer(keeping.Mount)
    daemon.answer(keeping.Unmount)
    assert len(daemon.seats) == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_sessions": 0}, "the server has 0 sessions, as many as it may"),
        ({"mounter": None}, "there is no mount keeper"),
        ({"draining": True}, "draining"),
        ({"tenants": tenants(tenant("other"))}, "the tenant is gone"),
        ({"tenants": tenants(tenant("acme", exports=Exports(name="x*")))}, "work"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_opened(daemon: Daemon, change: dict[str, Any], reason: str) -> None:
    client = daemon.client()
    for name, value in change.items():
        if name == "max_sessions":
            daemon.settings = Settings(max_sessions=value)
        else:
            setattr(daemon, name, value)
    daemon.seats.open(client.guest, "work", "program/1", b"")
    assert reason in refusal(client)
    assert len(daemon.seats) == 0


def test_who_has_not_logged_in_is_not_ours(daemon: Daemon) -> None:
    client = daemon.client()
    client.guest.tenant = None
    daemon.seats.open(client.guest, "work", "", b"")
    assert client.killed


@pytest.mark.parametrize("moment", ["while it is mounted", "with a session", "refused", "while another one ends"])
def test_who_asks_twice_is_not_ours(daemon: Daemon, moment: str) -> None:
    if moment == "with a session":
        _, client = daemon.mounted()
    else:
        client = daemon.client()
        if moment == "while another one ends":
            seat, _ = daemon.mounted()
            seat.away = "gone"
        daemon.draining = moment == "refused"
        daemon.seats.open(client.guest, "work", "", b"")
    daemon.seats.open(client.guest, "another", "", b"")
    assert client.killed


def test_a_program_s_name_is_cut_off(daemon: Daemon) -> None:
    """Of 256 KiB in each message, note and answer nothing would be left for others."""
    client = daemon.client()
    daemon.seats.open(client.guest, "work", "x" * 200_000, b"")
    daemon.answer(keeping.Mount)
    daemon.seats.ready(client.guest, digest(SECRET))
    assert daemon.noted().program == "x" * 200


@pytest.mark.parametrize("resume", ["", "short", "ä" * 64, "A" * 64, digest(SECRET) + "\n", "0" * 250_000])
def test_ready_with_what_is_no_digest(daemon: Daemon, resume: str) -> None:
    client = daemon.client()
    seat = daemon.open(client)
    daemon.answer(keeping.Mount)
    daemon.seats.ready(client.guest, resume)
    assert client.killed
    assert seat.resume == ""


def test_ready_twice_or_too_early_or_for_nothing(daemon: Daemon) -> None:
    early, nobody = daemon.client(), daemon.client()
    _, twice = daemon.mounted(daemon.client("other"))
    daemon.open(early)
    for client in (early, nobody, twice):
        daemon.seats.ready(client.guest, digest(OTHER_SECRET))
        assert client.killed
    assert [seat.resume for seat in daemon.seats] == [digest(SECRET), ""]


# The client is away.


@pytest.mark.parametrize(("said", "shown"), [("lost", "lost"), ("\x1b[2J", "its client is away"), ("", "its client is away"),
                                             ("x" * 300, "x" * 200)])  # fmt: skip
def test_a_client_is_away(daemon: Daemon, said: str, shown: str) -> None:
    seat, client = daemon.mounted()
    daemon.seats.suspended(client.guest, said)
    assert (seat.away, seat.state) == (shown, "suspended")


def test_only_the_reader_says_so(daemon: Daemon) -> None:
    seat, _ = daemon.mounted()
    stranger = daemon.client("other")
    daemon.seats.suspended(stranger.guest, "lost")
    heir = daemon.client()
    daemon.open(heir, SECRET)
    daemon.seats.suspended(heir.guest, "lost")
    assert seat.away == ""


def test_silenced(daemon: Daemon) -> None:
    seat, client = daemon.mounted()
    assert client.guest.report is None
    assert seat.state == "mounted"
    client.guest.report = msgspec.convert(
        {"id": 1, "statistics": {}, "inodes": 0, "open_files": 0, "in_flight": 0, "waiting": 0, "records": 0, "protocol": "",
         "silenced": True}, supervision.Report,
    )  # fmt: skip
    assert seat.state == "silenced"
    seat.reader = None
    assert seat.report is None


# It comes back.


def test_it_goes_on_where_it_was(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    daemon.seats.suspended(old.guest, "lost")
    new = daemon.client(address="192.0.2.2")
    assert daemon.open(new, SECRET) is seat
    assert kinds(old.heard()) == ["Yield"]
    assert (new.heard(), new.descriptors) == ([], []), "nothing before the old one has ended"
    daemon.loop.turn()
    assert new.heard() == []
    old.end()
    daemon.until(lambda: old.guest.dead)
    [taken] = new.heard()
    assert isinstance(taken, supervision.TakeOver)
    assert (taken.session, taken.tenant.name) == (seat.session, "acme")
    assert taken.detail == "from 192.0.2.2, program/1"
    assert len(new.descriptors) == 3
    assert (seat.reader, seat.heir, seat.away, seat.address, seat.falls) == (new.guest, None, "", "192.0.2.2", [])
    assert new.guest.deadline is None
    assert new.guest.starting is False
    assert daemon.noted().address == "192.0.2.2"


def test_a_reader_that_does_not_yield_is_ended(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_YIELD_PATIENCE", 0.0)
    _, old = daemon.mounted()
    new = daemon.client()
    daemon.open(new, SECRET)
    assert old.killed
    daemon.until(lambda: new.guest.seat and new.guest.seat.reader is new.guest)
    assert kinds(new.heard()) == ["TakeOver"]


def test_a_reader_that_cannot_be_ended_loses_its_mount(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stuck in the kernel, in a call that only the mount's end ends. However many clients come, it is watched once."""
    monkeypatch.setattr(module, "_YIELD_PATIENCE", 0.0)
    monkeypatch.setattr(module, "_KILL_PATIENCE", 0.05)
    seat, old = daemon.mounted()
    monkeypatch.setattr(old.guest, "has_ended", lambda: False)
    monkeypatch.setattr(old.guest, "kill", lambda: None)
    first, second = daemon.client(), daemon.client()
    daemon.open(first, SECRET)
    daemon.open(second, SECRET)
    daemon.until(lambda: seat.unmounting)
    assert refusal(second)
    assert kinds(old.heard()) == ["Yield"]
    daemon.answer(keeping.Unmount)


def test_whom_the_operator_has_ended_does_not_come_back(daemon: Daemon) -> None:
    """Its client was away, and has not heard of it."""
    seat, old = daemon.mounted()
    daemon.seats.suspended(old.guest, "away")
    daemon.seats.ban(seat)
    daemon.seats.end(seat, 4003, "ended by the operator")
    daemon.seats.unmount(seat)
    daemon.answer(keeping.Unmount)
    again = daemon.client()
    daemon.seats.open(again.guest, "work", "", SECRET)
    assert refusal(again)
    assert again.guest.seat is None
    for number in range(module._MOST_BANNED):
        seat.resume = str(number)
        daemon.seats.ban(seat)
    other = daemon.client()
    daemon.open(other, SECRET)
    daemon.answer(keeping.Mount)


def test_the_daemon_has_a_timer_of_its_own_for_the_grace(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that says that its client is away, and nothing ever after."""
    monkeypatch.setattr(module, "_GRACE_SLACK", -60.0)
    seat, old = daemon.mounted()
    daemon.seats.suspended(old.guest, "silence")
    daemon.until(lambda: seat.unmounting)
    assert old.killed
    daemon.answer(keeping.Unmount)


def test_a_client_that_comes_and_goes_leaves_nothing_behind(daemon: Daemon) -> None:
    """Its processes are not held on to for as long as its grace, which may be days."""
    seat, reader = daemon.mounted()
    for _ in range(10):
        for reason in ("lost", "lost again"):
            daemon.seats.suspended(reader.guest, reason)
        heir = daemon.client()
        daemon.open(heir, SECRET)
        reader.end()
        daemon.until(lambda reader=reader: reader.guest.dead)
        reader = heir
    assert seat.reader is reader.guest
    daemon.seats.suspended(reader.guest, "lost")
    patience = seat.patience
    assert patience is not None
    ends = daemon.loop.now + seat.tenant.outage.grace
    assert [timer for timer in daemon.loop._timers if timer.callback is not None and timer.when > ends] == [patience]
    daemon.seats.unmount(seat)
    daemon.answer(keeping.Unmount)
    assert seat.patience is None
    assert patience.callback is None


@pytest.mark.parametrize("secret", [b"", OTHER_SECRET, digest(SECRET).encode(), SECRET[:-1], "ä".encode() * 32])
def test_a_wrong_secret_gets_nothing(daemon: Daemon, secret: bytes) -> None:
    """Not even the digest of the right one, which every worker that was forked since has in its memory."""
    seat, old = daemon.mounted()
    stranger = daemon.client()
    daemon.seats.open(stranger.guest, "work", "", secret)
    assert refusal(stranger)
    assert (stranger.guest.seat, stranger.descriptors) == (None, [])
    assert (seat.reader, seat.heir, old.heard()) == (old.guest, None, [])


def test_before_it_is_in_use_no_secret_is_right(daemon: Daemon) -> None:
    client, stranger = daemon.client(), daemon.client()
    seat = daemon.open(client)
    daemon.answer(keeping.Mount)
    daemon.seats.open(stranger.guest, "work", "", b"")
    assert refusal(stranger)
    assert seat.reader is client.guest


def test_another_tenant_s_login_gets_nothing(daemon: Daemon) -> None:
    """It has its own export of that name, with or without the secret."""
    seat, old = daemon.mounted()
    stranger = daemon.client("other")
    own = daemon.open(stranger, SECRET)
    daemon.answer(keeping.Mount)
    assert own is not seat
    assert kinds(stranger.heard()) == ["Opened"]
    assert (seat.reader, old.heard()) == (old.guest, [])


def test_one_that_comes_after_another(daemon: Daemon) -> None:
    """The newest one counts."""
    seat, old = daemon.mounted()
    first, second = daemon.client(), daemon.client()
    daemon.open(first, SECRET)
    daemon.open(second, SECRET)
    assert "by another connection since" in refusal(first)
    assert first.guest.seat is None
    old.end()
    daemon.until(lambda: old.guest.dead)
    assert seat.reader is second.guest
    assert first.descriptors == []


def test_an_heir_that_dies_leaves_it_to_a_standby(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    heir = daemon.client()
    daemon.open(heir, SECRET)
    daemon.died(heir.guest)
    assert seat.heir is None
    old.end()
    daemon.until(lambda: old.guest.dead)
    standby = daemon.processes[-1]
    assert seat.reader is standby.guest
    assert kinds(standby.heard()) == ["TakeOver"]
    assert seat.falls == [], "the old one was told to end"


def test_an_heir_that_is_dead_and_not_yet_told_of(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    heir = daemon.client()
    daemon.open(heir, SECRET)
    heir.guest.dead = True
    daemon.died(old.guest)
    assert seat.reader is daemon.processes[-1].guest
    assert (seat.reader is not heir.guest, seat.heir) == (True, None)


def test_where_nobody_reads_it_is_given_at_once(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    daemon.forks_fail = True
    daemon.died(old.guest)
    assert seat.reader is None
    new = daemon.client()
    daemon.open(new, SECRET)
    assert seat.reader is new.guest
    assert kinds(new.heard()) == ["TakeOver"]


def test_resuming_with_a_token_that_was_taken_away(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    new = daemon.client()
    daemon.open(new, SECRET)
    daemon.tenants = tenants(tenant("acme", b"another"))
    daemon.died(old.guest)
    assert refusal(new) == "the token is no longer valid"
    assert (new.guest.seat, new.descriptors, seat.unmounting) == (None, [], True)


def test_it_stands_by_the_token_that_it_came_back_with(daemon: Daemon) -> None:
    daemon.tenants = tenants(tenant("acme", b"acme", b"new"))
    seat, old = daemon.mounted()
    new = daemon.client(token=b"new")
    daemon.open(new, SECRET)
    daemon.tenants = tenants(tenant("acme", b"new"))
    daemon.died(old.guest)
    assert kinds(new.heard()) == ["TakeOver"]
    assert (seat.digest, daemon.noted().digest) == (digest(b"new"), digest(b"new"))


def test_a_policy_that_changes_what_is_settled(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    daemon.tenants = tenants(tenant("acme", ownership="passthrough"))
    daemon.died(old.guest)
    assert seat.unmounting


# A newcomer of the same name.


def test_a_newcomer_without_the_secret_takes_the_place_of_who_is_away(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    daemon.seats.suspended(old.guest, "lost")
    new = daemon.client()
    daemon.seats.open(new.guest, "work", "", b"")
    assert old.heard() == [supervision.End(4003, "its client has begun a new session")]
    assert (new.heard(), new.guest.seat) == ([], None)
    daemon.seats.unmount(seat)
    daemon.answer(keeping.Unmount)
    assert new.guest.seat is not None
    assert new.guest.seat is not seat
    daemon.answer(keeping.Mount)
    assert kinds(new.heard()) == ["Opened"]
    assert kinds(old.heard()) == ["Unmounted"]


def test_a_newcomer_that_comes_while_it_ends(daemon: Daemon) -> None:
    seat, _ = daemon.mounted()
    daemon.seats.unmount(seat)
    new, gone = daemon.client(), daemon.client()
    for client in (gone, new):
        daemon.seats.open(client.guest, "work", "", SECRET)
    daemon.died(gone.guest)
    daemon.answer(keeping.Unmount)
    assert gone.guest.seat is None
    assert new.guest.seat is not None
    daemon.answer(keeping.Mount)
    assert kinds(new.heard()) == ["Opened"]


def test_a_newcomer_does_not_take_the_place_of_who_is_there(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    new = daemon.client()
    daemon.seats.open(new.guest, "work", "", b"")
    assert refusal(new)
    assert (seat.reader, old.heard()) == (old.guest, [])


# It falls.


def test_who_falls_is_followed_by_a_standby(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    daemon.died(old.guest, "SIGSEGV")
    standby = daemon.processes[-1]
    [taken] = standby.heard()
    assert (taken.session, taken.detail) == (seat.session, "the worker ended with SIGSEGV")
    assert len(standby.descriptors) == 3
    assert (seat.reader, standby.guest.tenant, len(seat.falls)) == (standby.guest, seat.tenant, 1)


def test_nothing_is_handed_on_before_the_last_reader_is_known_to_be_dead(daemon: Daemon) -> None:
    """Not for a worker that says that it is suspended or ready, nor for one that no longer speaks."""
    seat, old = daemon.mounted()
    new = daemon.client()
    daemon.open(new, SECRET)
    daemon.seats.suspended(old.guest, "lost")
    os.kill(old.guest.child.pid, signal.SIGSTOP)
    for _ in range(5):
        daemon.loop.turn()
    assert (seat.reader, new.heard(), new.descriptors) == (old.guest, [], [])


def test_who_falls_again_and_again_ends(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    seat, _ = daemon.mounted()
    falls = 0
    while not seat.unmounting:
        assert seat.reader is not None
        daemon.died(seat.reader)
        falls += 1
    assert falls == 11
    assert "11 workers have fallen within a minute" in capsys.readouterr().err
    daemon.answer(keeping.Unmount)
    assert len(daemon.seats) == 0


def test_falls_are_forgiven_in_time(daemon: Daemon) -> None:
    seat, _ = daemon.mounted()
    for _ in range(30):
        assert seat.reader is not None
        daemon.died(seat.reader)
        daemon.loop.now += 10.0
    assert not seat.unmounting
    assert len(seat.falls) <= 7


def test_before_it_is_in_use_it_is_not_followed(daemon: Daemon) -> None:
    client = daemon.client()
    seat = daemon.open(client)
    daemon.answer(keeping.Mount)
    daemon.died(client.guest)
    assert (seat.unmounting, len(daemon.processes)) == (True, 1)


def test_who_ends_it_is_not_followed(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    old.guest.ends = True
    daemon.died(old.guest)
    assert (seat.unmounting, len(daemon.processes)) == (True, 1)


def test_where_no_process_can_be_made_it_is_tried_again(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    seat, old = daemon.mounted()
    daemon.forks_fail = True
    daemon.died(old.guest)
    assert "acme/work has no worker: Resource temporarily unavailable" in capsys.readouterr().err
    daemon.forks_fail = False
    daemon.until(lambda: seat.reader is not None)
    assert kinds(daemon.processes[-1].heard()) == ["TakeOver"]


@pytest.mark.parametrize("why", ["it ends", "the daemon leaves"])
def test_it_is_not_tried_for_ever(daemon: Daemon, why: str) -> None:
    seat, old = daemon.mounted()
    daemon.forks_fail = True
    daemon.died(old.guest)
    if why == "it ends":
        daemon.seats.end(seat, 1000, "over")
    else:
        daemon.seats.leave()
    daemon.forks_fail = False
    over: list[bool] = []
    daemon.loop.after(0.2, lambda: over.append(True))
    daemon.until(lambda: over)
    assert (seat.reader, len(daemon.processes)) == (None, 1)


def test_a_stranger_s_end_is_nobody_s(daemon: Daemon) -> None:
    stranger = daemon.client()
    daemon.died(stranger.guest)
    assert len(daemon.seats) == 0


# It ends.


def test_it_is_ended_in_order(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    heir = daemon.client()
    daemon.open(heir, SECRET)
    old.heard()
    daemon.seats.end(seat, 4003, "enough")
    assert refusal(heir) == "enough"
    assert old.heard() == [supervision.End(4003, "enough")]
    daemon.seats.unmount(seat)
    daemon.seats.unmount(seat)
    descriptors = list(seat.descriptors)
    daemon.answer(keeping.Unmount)
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    assert (len(daemon.seats), old.guest.seat, seat.descriptors) == (0, None, [])
    assert kinds(old.heard()) == ["Unmounted"]


def test_who_does_not_end_it_is_ended(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_PATIENCE", 0.0)
    seat, old = daemon.mounted()
    daemon.seats.end(seat, 4003, "enough")
    daemon.until(lambda: seat.unmounting)
    assert old.killed
    assert len(daemon.processes) == 1, "and nobody follows"


def test_who_ended_is_followed_by_nobody_that_is_ended_for_it(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mount goes all the same."""
    monkeypatch.setattr(module, "_END_PATIENCE", 0.0)
    seat, old = daemon.mounted()
    daemon.seats.end(seat, 4003, "enough")
    daemon.died(old.guest)
    follower = seat.reader
    daemon.loop.turn()
    assert follower is not old.guest
    assert seat.unmounting is (follower is None)


def test_an_unmount_that_is_refused_is_told(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    seat, old = daemon.mounted()
    daemon.died(old.guest)
    daemon.seats.unmount(seat)
    daemon.answer(keeping.Unmount, reason="busy")
    assert "acme/work could not be unmounted: busy" in capsys.readouterr().err
    assert len(daemon.seats) == 0


def test_sessions_are_moved_one_after_the_other(daemon: Daemon) -> None:
    first, one = daemon.mounted()
    second, two = daemon.mounted(daemon.client("other"))
    daemon.seats.move_next()
    assert (one.heard(), two.heard()) == ([], [])
    daemon.moving = True
    daemon.seats.move_next()
    assert (kinds(one.heard()), two.heard()) == (["End"], [])
    daemon.seats.unmount(first)
    daemon.answer(keeping.Unmount)
    assert kinds(two.heard()) == ["End"]
    daemon.seats.unmount(second)
    daemon.answer(keeping.Unmount)
    assert len(daemon.seats) == 0


# The daemon leaves, and another comes.


def test_the_daemon_leaves(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    heir = daemon.client()
    daemon.open(heir, SECRET)
    old.heard()
    nobody, _ = daemon.mounted(daemon.client("other"))
    nobody.reader = None
    daemon.seats.leave()
    assert refusal(heir) == "the server is being restarted"
    assert kinds(old.heard()) == ["Yield"]
    late = daemon.client()
    daemon.seats.open(late.guest, "work", "", SECRET)
    assert refusal(late) == "the server is being restarted"
    before = len(daemon.processes)
    daemon.died(old.guest)
    assert (seat.reader, seat.mounted, len(daemon.processes)) == (None, True, before), "it is left as it is"


def found(export: str, note: bytes, tenant: str = "acme") -> Found:
    held = keeping.Held(id=1, tenant=tenant, export=export, path=f"/run/{export}", note=note, nosymfollow=False)
    return Found(held, os.open("/dev/null", os.O_RDONLY), os.memfd_create("state"))


def note(**other: Any) -> bytes:
    fields = {
        "session": "5" * 16, "digest": digest(b"acme"), "resume": digest(SECRET), "program": "p", "address": "192.0.2.9",
        "since": 12.5, "driver": "kernel", "settled": ("mapped", False),
    }  # fmt: skip
    return msgspec.msgpack.encode({**fields, **other})


def test_what_was_left_behind_goes_on(daemon: Daemon) -> None:
    daemon.seats.adopt([found("work", note())])
    [seat] = daemon.seats
    standby = daemon.processes[-1]
    [taken] = standby.heard()
    assert (taken.session, taken.detail, len(standby.descriptors)) == ("5" * 16, "the service was started anew", 3)
    assert (seat.shown, seat.path, seat.since, seat.address) == ("acme/work", "/run/work", 12.5, "192.0.2.9")
    assert seat.state == "suspended"
    assert seat.reader is standby.guest
    new = daemon.client()
    daemon.open(new, SECRET)
    daemon.died(standby.guest)
    assert kinds(new.heard()) == ["TakeOver"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "nobody knows what it is"),
        (b"\xc1", "nobody knows what it is"),
        (note(since="x"), "nobody knows what it is"),
        (b"\x91" * 5000, "nobody knows what it is"),
        (b"\x81\xa7session\xa1\xff", "nobody knows what it is"),
        (note(digest=digest(b"gone")), "the token is no longer valid"),
        (note(settled=("passthrough", False)), "the policy's ownership or symlinks changed"),
    ],
    ids=["empty", "garbage", "another type", "deep", "not UTF-8", "token gone", "settled"],
)
def test_what_was_left_behind_and_cannot_go_on(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], data: bytes, why: str
) -> None:
    """It is taken away; what else was left goes on."""
    (device, other_device), (state, other_state) = os.pipe(), os.pipe()
    left = found("bad", data)
    for closed in (left.device, left.state):
        os.close(closed)
    daemon.seats.adopt([Found(left.held, other_device, other_state), found("work", note())])
    assert [seat.export for seat in daemon.seats] == ["work"]
    assert [request.export for request in daemon.requests() if isinstance(request, keeping.Unmount)] == ["bad"]
    for descriptor in (device, state):
        os.set_blocking(descriptor, False)
        assert os.read(descriptor, 1) == b"", "its other end is closed"
        os.close(descriptor)
    assert f"acme/bad, which was left behind, is taken away: {why}" in capsys.readouterr().err


# A new policy.


def test_a_new_policy_is_everybody_s(daemon: Daemon) -> None:
    seat, old = daemon.mounted()
    heir = daemon.client()
    daemon.open(heir, SECRET)
    _, other = daemon.mounted(daemon.client("other"))
    ending, _ = daemon.mounted(daemon.client(), export="ending")
    daemon.seats.unmount(ending)
    for client in (old, other):
        client.heard()
    daemon.requests()
    changed = tenant("acme", audit="opens")
    daemon.tenants = tenants(changed)
    daemon.seats.apply()
    assert old.heard() == heir.heard() == [supervision.Apply(changed, IDENTITY)]
    assert kinds(other.heard()) == ["End"]
    assert (seat.tenant, heir.guest.tenant) == (changed, changed)
    asked = daemon.requests()
    assert [(type(one).__name__, getattr(one, "export", "")) for one in asked] == [("Access", ""), ("Remount", "work")]
    daemon.mounter = None
    daemon.seats.apply()
