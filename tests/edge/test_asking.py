"""edge/asking.py: each thread of libfuse's process waits for its own answer."""

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fuse_gated import operations as op
from fuse_gated.edge import asking, hosting
from fuse_gated.edge.asking import Asking
from fuse_gated.operations import Caller

CALLER = Caller(1000, 1000, 4321)


class Scene:
    """An `Asking` whose answers are received by a thread, and the worker's end of its socket."""

    def __init__(self) -> None:
        host, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker.settimeout(10)
        self.interrupted = threading.Event()
        self.asking = Asking(host, self.interrupted.is_set)
        self._receiver = threading.Thread(target=self.asking.receive)
        self._receiver.start()
        self._host = host

    def start(self, request: op.Request) -> Callable[[], Any]:
        """A thread asks; what is returned waits for the thread's end, and returns or raises what that did."""
        outcome: list[Any] = []

        def ask() -> None:
            try:
                outcome.append(self.asking.ask(CALLER, request))
            except OSError as error:
                outcome.append(error)

        thread = threading.Thread(target=ask)
        thread.start()

        def result() -> Any:
            thread.join(10)
            assert outcome, "it never ended"
            if isinstance(outcome[0], OSError):
                raise outcome[0]
            return outcome[0]

        return result

    def asked(self) -> tuple[int, op.Request]:
        """What the worker gets next."""
        message = hosting.decode_request(self.worker.recv(hosting.MAX_PACKET))
        assert isinstance(message, tuple)
        return message[0], message[2]

    def answer(self, unique: int, answer: op.Answer) -> None:
        self.worker.send(hosting.encode_answer(unique, answer))

    def close(self) -> None:
        self.asking.close()
        self._receiver.join(10)
        self.worker.close()
        self._host.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


def test_it_begins(scene: Scene) -> None:
    scene.asking.begin(19, 131072)
    assert hosting.decode_request(scene.worker.recv(100)) == hosting.Began(19, 131072)


def test_each_gets_its_own_answer(scene: Scene) -> None:
    """In any order; numbers are even."""
    one = scene.start(op.Read(b"", 5, 0, 10))
    first, request = scene.asked()
    assert request == op.Read(b"", 5, 0, 10)
    two = scene.start(op.Write(b"", 5, 0, b"data"))
    second, _ = scene.asked()
    assert (first % 2, second % 2, first != second) == (0, 0, True)
    scene.answer(9998, op.Done())  # nobody's
    scene.answer(second, op.Count(4))
    scene.answer(first, op.Data(b"data"))
    assert (one(), two()) == (b"data", 4)


def test_what_is_told_is_not_waited_for(scene: Scene) -> None:
    scene.asking.tell(CALLER, op.Release(b"", 5))
    unique, request = scene.asked()
    assert request == op.Release(b"", 5)
    scene.answer(unique, op.Done())
    scene.worker.close()
    with pytest.raises(OSError, match="not connected"):
        scene.asking.tell(CALLER, op.Release(b"", 5))


def test_an_errno_is_raised(scene: Scene) -> None:
    result = scene.start(op.Lookup(b"", b"f"))
    scene.answer(scene.asked()[0], op.Failed(errno.ESTALE))
    with pytest.raises(OSError, match="Stale") as raised:
        result()
    assert raised.value.errno == errno.ESTALE


def test_a_result_of_another_kind_is_eio(scene: Scene) -> None:
    result = scene.start(op.Lookup(b"", b"f"))
    scene.answer(scene.asked()[0], op.Count(4))
    with pytest.raises(OSError, match="Input/output"):
        result()


@pytest.mark.parametrize("end", ["worker", "nonsense", "us"])
def test_when_the_worker_is_gone_nobody_waits(scene: Scene, end: str) -> None:
    results = [scene.start(op.Lookup(b"", b"f")), scene.start(op.Fsync(b"", 5, False))]
    for _ in results:
        scene.asked()
    if end == "worker":
        scene.worker.close()
    elif end == "nonsense":
        scene.worker.send(b"\xc1")
    else:
        scene.asking.close()
    for result in results:
        with pytest.raises(OSError, match="not connected"):
            result()
    with pytest.raises(OSError, match="not connected"):
        scene.asking.ask(CALLER, op.Statfs(b""))


def test_a_worker_that_is_gone_before_it_is_noticed() -> None:
    host, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with host, worker:
        worker.close()
        with pytest.raises(OSError, match="not connected"):
            Asking(host, lambda: False).ask(CALLER, op.Statfs(b""))


def test_an_interrupted_caller_is_told_of_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "INTERRUPTS_EVERY", 0.001)
    looked = threading.Semaphore(0)

    def is_interrupted() -> bool:
        looked.release()
        return scene.interrupted.is_set()

    scene.asking._is_interrupted = is_interrupted
    result = scene.start(op.Setlk(b"", 5, 9, 0, 10, 1, 1, True, False))
    unique, _ = scene.asked()
    for _ in range(3):
        assert looked.acquire(timeout=10)
    scene.interrupted.set()
    assert scene.asked()[1] == op.Interrupt(unique)
    scene.answer(unique, op.Failed(errno.EINTR))
    with pytest.raises(InterruptedError):
        result()
    scene.worker.setblocking(False)
    with pytest.raises(BlockingIOError):
        scene.worker.recv(1)


def test_who_is_thrown_out_waits_no_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """KeyboardInterrupt in a program's main thread, for one."""
    monkeypatch.setattr(asking, "INTERRUPTS_EVERY", 0.01)

    def stop() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(scene.asking, "_is_interrupted", stop)
    with pytest.raises(KeyboardInterrupt):
        scene.asking.ask(CALLER, op.Statfs(b""))
    unique, _ = scene.asked()
    assert scene.asked()[1] == op.Interrupt(unique)
    scene.answer(unique, op.Failed(errno.EINTR))
    assert not scene.asking._waiting


def test_several_may_be_started_before_one_is_finished(scene: Scene) -> None:
    waiting = [scene.asking.start(CALLER, op.Read(b"", 5, offset, 3)) for offset in (0, 3)]
    numbers = [scene.asked()[0] for _ in waiting]
    scene.answer(numbers[1], op.Data(b"def"))
    scene.answer(numbers[0], op.Data(b"abc"))
    assert [scene.asking.finish(each) for each in waiting] == [b"abc", b"def"]


def test_in_a_process_that_was_forked(scene: Scene) -> None:
    """Nothing is asked there, and nothing is closed for the parent."""
    assert not scene.asking.closed
    scene.asking.abandon()
    assert scene.asking.closed
    with pytest.raises(OSError, match="not connected"):
        scene.asking.ask(CALLER, op.Statfs(b""))
    scene.worker.send(b"the socket is still there")
