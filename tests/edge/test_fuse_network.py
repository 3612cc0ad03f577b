"""edge/fuse_network.py: the worker's end of the sockets of attached programs, with this test in the turnstile's place."""

import os
import select
import socket
from collections.abc import Iterator
from errno import EBADF, EMFILE, ENOTCONN, EPERM, EPROTO
from typing import Any

import msgspec
import pytest

from fuse_gated import operations as op
from fuse_gated.edge import fuse_network, hosting
from fuse_gated.edge.fuse_network import FIRST, MOST_IN_FLIGHT, MOST_OF_ONE_USER, MOST_SOCKETS, NetworkDriver, NoMount
from fuse_gated.edge.loop import Loop
from fuse_gated.operations import Attributes, Caller

USER = Caller(1000, 1001, 4321)
OTHER = Caller(1002, 1003, 999)
NOBODY = Caller(0, 0, 0)
FOUND = Attributes(7, 5, 0o100644, 1, 500, 501, 0, 5, 8, 4096, 1, 2, 3)


class Program:
    """One that is attached."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(10)

    def ask(self, number: int, request: op.Request) -> None:
        # Who it says that it is counts for nothing.
        self.sock.send(hosting.encode_request(number, NOBODY, request))

    def heard(self) -> hosting.Answered:
        return hosting.decode_answer(self.sock.recv(hosting.MAX_PACKET))

    def result(self, kind: type[op.Request]) -> Any:
        answered = self.heard()
        return answered.errno or hosting.decode_result(kind, answered.result)

    def last_words(self) -> tuple[int, str]:
        """What the driver said last, before the socket's end."""
        words = hosting.decode_greeting(self.sock.recv(hosting.MAX_PACKET))
        assert self.sock.recv(1) == b""
        return words


class Worker:
    """A driver, and what it said."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.requests: list[tuple[int, Caller, op.Request]] = []
        self.changes: list[op.Request] = []
        self.faults: list[tuple[Caller, str]] = []
        self.driver = NetworkDriver(
            self.loop,
            lambda number, caller, request: self.requests.append((number, caller, request)),
            self.changes.append,
            lambda caller, reason: self.faults.append((caller, reason)),
        )
        self.programs: list[socket.socket] = []

    def attach(self, caller: Caller = USER, gids: tuple[int, ...] = (), *, greets: bool = True) -> Program:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.programs.append(theirs)
        self.driver.attach(ours.detach(), caller, gids)
        program = Program(theirs)
        if greets:
            assert hosting.decode_greeting(theirs.recv(hosting.MAX_PACKET)) == (0, "")
        return program

    def asked(self) -> tuple[int, Caller, op.Request]:
        """The next request that the turnstile gets."""
        self.driver.ready()
        return self.requests.pop(0)

    def soon(self) -> None:
        self.loop.soon(lambda: None)
        self.loop.turn()

    def close(self) -> None:
        self.driver.close()
        for program in self.programs:
            program.close()
        self.loop.close()


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def opened(worker: Worker, program: Program, handle: int, request: op.Request | None = None) -> None:
    """The program has this handle open from now on."""
    program.ask(2, request or op.Open(b"f", os.O_RDWR))
    number, _, asked = worker.asked()
    if isinstance(asked, op.Create):
        worker.driver.answer(number, op.Created(op.Entry(1, FOUND), op.Opened(handle)))
    else:
        worker.driver.answer(number, op.Opened(handle))
    assert program.result(op.Open) == handle


def test_a_request_and_its_answer(worker: Worker) -> None:
    program = worker.attach()
    program.ask(2, op.Lookup(b"d", b"f"))
    number, caller, request = worker.asked()
    assert (caller, request) == (USER, op.Lookup(b"d", b"f"))
    assert number >= FIRST
    assert number % 2 == 0
    worker.driver.answer(number, op.Entry(1, FOUND))
    assert program.result(op.Lookup) == FOUND
    worker.driver.answer(number, op.Entry(1, FOUND))
    worker.driver.answer(12, op.Done())
    program.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        program.sock.recv(1)


def test_two_programs_may_use_the_same_numbers(worker: Worker) -> None:
    first, second = worker.attach(), worker.attach(OTHER)
    first.ask(2, op.Statfs(b""))
    second.ask(2, op.Readlink(b"l"))
    worker.driver.ready()
    by_caller = {caller: (number, request) for number, caller, request in worker.requests}
    worker.driver.answer(by_caller[OTHER][0], op.Data(b"target"))
    worker.driver.answer(by_caller[USER][0], op.Failed(5))
    assert first.result(op.Statfs) == 5
    assert second.result(op.Readlink) == b"target"


def test_numbers_are_no_other_workers(worker: Worker) -> None:
    another = Worker()
    for each in (worker, another):
        each.attach().ask(2, op.Statfs(b""))
    assert worker.asked()[0] != another.asked()[0]
    another.close()


def test_what_one_may_try_fails_without_the_turnstile(worker: Worker) -> None:
    program = worker.attach()
    program.ask(2, op.Read(b"", 5, 0, 10))
    worker.driver.ready()
    assert worker.requests == []
    assert program.heard().errno == EBADF


def test_handles_are_whose_that_opened_them(worker: Worker) -> None:
    program, other = worker.attach(), worker.attach(OTHER)
    opened(worker, program, 5)
    for each, expected in ((other, None), (program, op.Read(b"", 5, 0, 10))):
        each.ask(4, op.Read(b"", 5, 0, 10))
        worker.driver.ready()
        assert (worker.requests.pop()[2] if worker.requests else None) == expected
    assert other.heard().errno == EBADF


def test_what_is_closed_is_open_no_more(worker: Worker) -> None:
    program = worker.attach()
    opened(worker, program, 5, op.Create(b"", b"f", os.O_RDWR, 0o644, 0))
    opened(worker, program, 6, op.Opendir(b"", 0))
    program.ask(4, op.Release(b"", 5, 9))
    assert worker.asked()[2] == op.Release(b"", 5)
    program.ask(6, op.Releasedir(b"", 6))
    assert worker.asked()[2] == op.Releasedir(b"", 6)
    program.ask(8, op.Release(b"", 5))
    worker.driver.ready()
    assert worker.requests == []
    program.sock.close()
    worker.driver.ready()
    worker.soon()
    assert {type(request) for _, _, request in worker.requests} == {op.Interrupt}


def test_the_end_of_a_socket_closes_what_it_had_open(worker: Worker) -> None:
    program, other = worker.attach(), worker.attach(OTHER)
    opened(worker, program, 5)
    opened(worker, program, 6, op.Opendir(b"", 0))
    opened(worker, other, 7)
    program.sock.close()
    worker.driver.ready()
    assert worker.requests == []
    worker.soon()
    assert [request for _, _, request in worker.requests] == [op.Release(b"", 5), op.Releasedir(b"", 6)]
    assert {caller for _, caller, _ in worker.requests} == {USER}
    assert len(worker.driver) == 1
    # Whose answers are nobody's.
    worker.driver.answer(worker.requests[0][0], op.Done())


def test_what_is_on_its_way_ends_before_what_it_needs(worker: Worker) -> None:
    program = worker.attach()
    opened(worker, program, 5)
    program.ask(2, op.Setlk(b"", 5, 0, 0, 9, 1, 0, True, False))
    lock = worker.asked()[0]
    program.ask(4, op.Open(b"g", os.O_RDONLY))
    opening = worker.asked()[0]
    program.sock.close()
    worker.driver.ready()
    assert {request for _, _, request in worker.requests} == {op.Interrupt(lock), op.Interrupt(opening)}
    worker.requests.clear()
    worker.soon()
    worker.driver.answer(lock, op.Done())
    worker.soon()
    assert worker.requests == []
    worker.driver.answer(opening, op.Opened(6))
    worker.soon()
    assert [request for _, _, request in worker.requests] == [op.Release(b"", 5), op.Release(b"", 6)]


def test_an_interrupt(worker: Worker) -> None:
    program, other = worker.attach(), worker.attach(OTHER)
    program.ask(2, op.Statfs(b""))
    number = worker.asked()[0]
    other.ask(4, op.Interrupt(2))
    program.ask(4, op.Interrupt(6))
    worker.driver.ready()
    assert worker.requests == [], "another's, or none"
    program.ask(8, op.Interrupt(2))
    assert worker.asked() == (0, USER, op.Interrupt(number))


@pytest.mark.parametrize(
    ("request_", "answer", "told"),
    [
        (op.Write(b"", 5, 0, b"data"), op.Count(4), True),
        (op.Write(b"", 5, 0, b"data"), op.Failed(28), False),
        (op.Open(b"f", os.O_WRONLY | os.O_TRUNC), op.Opened(6), True),
        (op.Open(b"f", os.O_WRONLY), op.Opened(6), False),
        (op.Unlink(b"", b"f"), op.Done(), True),
        (op.Setxattr(b"f", b"user.a", b"value", 0), op.Done(), False),
        (op.Statfs(b""), op.Done(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_changes_are_told(worker: Worker, request_: op.Request, answer: op.Answer, told: bool) -> None:
    program = worker.attach()
    opened(worker, program, 5)
    program.ask(4, request_)
    worker.driver.answer(worker.asked()[0], answer)
    assert [type(change) for change in worker.changes] == ([type(request_)] if told else [])


def message(*parts: Any) -> bytes:
    return msgspec.msgpack.encode(parts)


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        b"\x91" * 2000,
        b"x" * 200_000,
        hosting.encode_began(19, 131072),
        message("ask", 3, 0, 0, 0, "statfs", (b"",)),
        message("ask", 2, 0, 0, 0, "dance", ()),
        message("ask", 2, 0, 0, 0, "statfs", (7,)),
        message("ask", 2, 0, 0, 0, "lookup", (b"..", b"f")),
        message("ask", 2, 0, 0, 0, "read", (b"", 5, -1, 7)),
        message("ask", 2, 0, 0, 0, "unlink", (b"", b"f", b"alias")),
    ],
    ids=[
        "nonsense", "nested", "long", "a beginning", "an odd number", "no operation", "wrong type", "dots", "an offset",
        "an alias",
    ],
)  # fmt: skip
def test_what_is_no_request_ends_its_own_socket(worker: Worker, packet: bytes) -> None:
    other, program = worker.attach(OTHER), worker.attach()
    program.sock.send(packet)
    worker.driver.ready()
    assert program.last_words()[0] == EPROTO
    assert [caller for caller, _ in worker.faults] == [USER]
    other.ask(2, op.Statfs(b""))
    assert worker.asked()[1:] == (OTHER, op.Statfs(b""))


def test_a_number_twice(worker: Worker) -> None:
    program = worker.attach()
    program.ask(2, op.Statfs(b""))
    program.ask(2, op.Statfs(b""))
    worker.driver.ready()
    worker.driver.ready()
    assert program.last_words()[0] == EPROTO


def test_an_empty_packet_ends_it(worker: Worker) -> None:
    program = worker.attach()
    program.sock.send(b"")
    worker.driver.ready()
    assert program.sock.recv(1) == b""
    assert len(worker.driver) == 0


def test_descriptors_that_come_along_do_not_stay_open(worker: Worker) -> None:
    program = worker.attach()
    mine, other = socket.socketpair()
    socket.send_fds(program.sock, [hosting.encode_request(2, NOBODY, op.Statfs(b""))], [other.fileno()] * 8)
    other.close()
    worker.asked()
    assert mine.recv(1) == b"", "nobody has the other end any more"
    mine.close()


def test_a_program_that_reads_nothing_waits_for_its_own_answers(worker: Worker) -> None:
    program, other = worker.attach(), worker.attach(OTHER)
    opened(worker, program, 5)
    for number in range(1000):
        program.sock.setblocking(False)
        try:
            program.ask(4 + 2 * number, op.Read(b"", 5, 0, 131072))
        except BlockingIOError:
            break
    for _ in range(100):
        worker.driver.ready()
        for unique, _, _ in worker.requests:
            worker.driver.answer(unique, op.Data(bytes(131072)))
        worker.requests.clear()
    other.ask(2, op.Statfs(b""))
    assert worker.asked()[1] == OTHER
    # It reads at last, and nothing is lost.
    received = 0
    program.sock.settimeout(10)
    for _ in range(number):
        while not select.select([program.sock], [], [], 0)[0]:
            worker.driver.ready()
            for unique, _, _ in worker.requests:
                worker.driver.answer(unique, op.Data(bytes(131072)))
            worker.requests.clear()
        assert len(program.result(op.Read)) == 131072
        received += 1
    assert received == number > MOST_IN_FLIGHT


def test_a_program_that_goes_while_answers_wait(worker: Worker) -> None:
    program = worker.attach()
    opened(worker, program, 5)
    for number in range(MOST_IN_FLIGHT):
        program.ask(4 + 2 * number, op.Read(b"", 5, 0, 131072))
    for _ in range(MOST_IN_FLIGHT):
        worker.driver.answer(worker.asked()[0], op.Data(bytes(131072)))
    program.sock.close()
    worker.driver.ready()
    worker.driver.ready()
    worker.soon()
    assert worker.requests[-1][2] == op.Release(b"", 5)


def test_a_program_is_gone_when_it_is_answered(worker: Worker) -> None:
    program = worker.attach()
    program.ask(2, op.Statfs(b""))
    number = worker.asked()[0]
    program.sock.close()
    worker.driver.answer(number, op.Failed(5))
    worker.driver.ready()
    assert len(worker.driver) == 0


def test_no_user_can_keep_the_others_out(worker: Worker) -> None:
    mine = [worker.attach() for _ in range(MOST_OF_ONE_USER)]
    assert worker.attach(greets=False).last_words()[0] == EMFILE
    for uid in range(2000, 2000 + MOST_SOCKETS - MOST_OF_ONE_USER):
        worker.attach(Caller(uid, uid, 1))
    assert worker.attach(Caller(0, 0, 1), greets=False).last_words()[0] == EMFILE
    mine[0].sock.close()
    while len(worker.driver) == MOST_SOCKETS:
        worker.driver.ready()
    for _ in range(2):
        worker.attach(Caller(0, 0, 1)).sock.close()
        while len(worker.driver) == MOST_SOCKETS:
            worker.driver.ready()


def test_a_new_policy_sends_away(worker: Worker) -> None:
    stays, goes = worker.attach(USER, (5, 6)), worker.attach(OTHER, (7,))
    seen = []
    worker.driver.keep(lambda caller, gids: seen.append((caller, gids)) or caller == USER)
    assert seen == [(USER, (5, 6)), (OTHER, (7,))]
    assert goes.last_words()[0] == EPERM
    stays.ask(2, op.Statfs(b""))
    assert worker.asked()[1] == USER


def test_the_end_of_the_session(worker: Worker) -> None:
    program = worker.attach()
    worker.driver.close("the session is over")
    assert program.last_words() == (ENOTCONN, "the session is over")


def test_there_is_nothing_to_invalidate(worker: Worker) -> None:
    program = worker.attach()
    worker.driver.invalidate_inode(1, pages=True)
    worker.driver.invalidate_entry(1, b"f")
    program.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        program.sock.recv(1)


def test_two_ends_at_once(worker: Worker) -> None:
    """What is told of a socket that another's request has ended is of no more interest."""
    first, second = worker.attach(), worker.attach()
    driver = worker.driver
    first.ask(2, op.Statfs(b""))
    second.ask(2, op.Statfs(b""))
    driver._on_request = lambda _number, _caller, _request: driver.close()
    driver.ready()
    assert len(driver) == 0
    # Of the two whatever was asked first has been read; what is thrown away unread is told as a reset (unix(7)).
    ends = []
    for program in (first, second):
        try:
            ends.append(program.last_words()[0])
        except ConnectionResetError:
            ends.append(-1)
    assert ENOTCONN in ends


def test_no_mount_is_ready_at_once() -> None:
    loop = Loop()
    ready: list[str] = []
    for known in (False, True):
        mount = NoMount(os.eventfd(0), loop, None if known else lambda: ready.append("ready"))
        loop.soon(lambda: None)
        loop.turn()
        mount.ready()
        mount.answer(2, op.Done())
        assert mount.answer_in_order(2, op.Done()) is None
        mount.replay(b"")
        mount.resend()
        mount.invalidate_inode(1, pages=True)
        mount.invalidate_entry(1, b"f")
        assert (mount.negotiated is not None, mount.keeps_requests, mount.idle) == (True, False, True)
        assert not select.select([mount.fd], [], [], 0)[0]
        os.close(mount.fd)
    assert ready == ["ready"]
    loop.close()


def test_the_numbers_leave_room_for_the_kernels() -> None:
    assert 2**62 <= fuse_network.FIRST < fuse_network.FIRST + 2**57 < 2**63


def test_a_socket_that_has_nothing_after_all(worker: Worker) -> None:
    program = worker.attach(greets=False)
    (peer,) = worker.driver._peers.values()
    worker.driver._read(peer)
    assert len(worker.driver) == 1
    # It goes without having read our greeting, which is an error to who reads.
    program.sock.close()
    worker.driver._read(peer)
    assert len(worker.driver) == 0
