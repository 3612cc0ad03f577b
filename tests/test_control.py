import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from harness.looks import seen, session

from fuse_gated import control
from fuse_gated.control import Answer, Request
from fuse_gated.errors import OperatorError, PeerError

Serve = Callable[[Callable[[socket.socket, bytes], None]], None]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serves one connection in tmp_path with what it is given: a function of the connection and the request's packet."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    threads: list[threading.Thread] = []

    def start(answer: Callable[[socket.socket, bytes], None]) -> None:
        listener.bind(str(tmp_path / control.SOCKET_NAME))
        listener.listen()

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection, connection.recv(control.MAX_REQUEST))

        threads.append(threading.Thread(target=run))
        threads[0].start()

    yield start
    for thread in threads:
        thread.join()
    listener.close()


def answering(answer: Answer, requests: list[Request]) -> Callable[[socket.socket, bytes], None]:
    def run(connection: socket.socket, packet: bytes) -> None:
        requests.append(control.decode_request(packet))
        for piece in control.encode_answer(answer):
            connection.sendall(piece)
        connection.recv(1)  # the client ends the connection: it needs no end of ours to know that the answer is whole

    return run


def test_a_call_and_its_answer(serve: Serve, tmp_path: Path) -> None:
    requests: list[Request] = []
    serve(answering(Answer(result={"session": "s1", "n": 3}), requests))
    assert control.call(str(tmp_path), "show", session="s1") == {"session": "s1", "n": 3}
    assert requests == [Request("show", {"session": "s1"})]


def test_a_refusal_is_an_error_for_people(serve: Serve, tmp_path: Path) -> None:
    serve(answering(Answer("there is no session s9", "fuse-gatectl sessions lists them"), []))
    with pytest.raises(OperatorError) as raised:
        control.call(str(tmp_path), "kick", session="s9")
    assert (raised.value.message, raised.value.hint) == ("there is no session s9", "fuse-gatectl sessions lists them")


def test_an_answer_may_be_longer_than_a_packet(serve: Serve, tmp_path: Path) -> None:
    result = [{"session": f"{number:032x}", "mount": "/run/fuse-gated/mnt/acme/docs"} for number in range(20_000)]
    assert len(control.encode_answer(Answer(result=result))) > 20
    serve(answering(Answer(result=result), []))
    assert control.call(str(tmp_path), "sessions") == result


def test_the_bytes_of_a_request() -> None:
    packet = msgspec.msgpack.encode({"command": "kick", "arguments": {"session": "s"}})
    assert control.decode_request(packet) == Request("kick", {"session": "s"})
    assert control.decode_request(msgspec.msgpack.encode({"command": "stats"})) == Request("stats")
    for wrong in (b"", b"\xc1", packet[:-1], msgspec.msgpack.encode({"arguments": {}}), msgspec.msgpack.encode({"command": 7})):
        with pytest.raises(msgspec.DecodeError):
            control.decode_request(wrong)
    assert msgspec.msgpack.decode(b"".join(control.encode_answer(Answer(result=1)))) == {
        "error": None,
        "hint": "",
        "result": 1,
        "errno": "",
    }


def test_no_daemon(tmp_path: Path) -> None:
    for runtime in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(OperatorError, match="no daemon runs in") as raised:
            control.call(str(runtime), "status")
        assert "systemctl start fuse-gated" in raised.value.hint
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="no daemon runs in"):
        control.call(str(tmp_path / "file"), "status")


def test_a_daemon_that_is_gone_and_left_its_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / control.SOCKET_NAME))
    with pytest.raises(OperatorError, match="no daemon runs in"):
        control.call(str(tmp_path), "status")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a moment")
def test_no_permission(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / control.SOCKET_NAME))
        listener.listen()
        tmp_path.chmod(0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(OperatorError, match="we may not use") as raised:
                control.call(str(tmp_path), "status")
        finally:
            os.seteuid(0)
        assert "as root" in raised.value.hint


def test_a_daemon_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / control.SOCKET_NAME))
        listener.listen()
        with pytest.raises(PeerError, match=r"did not answer within 0.05 s"):
            control.call(str(tmp_path), "status", timeout=0.05)


def test_a_daemon_that_ends_within_its_answer(serve: Serve, tmp_path: Path) -> None:
    serve(lambda connection, _: connection.sendall(control.encode_answer(Answer(result="whole"))[0][:-2]))
    with pytest.raises(PeerError, match="makes no sense"):
        control.call(str(tmp_path), "status")


def test_a_daemon_that_ends_before_it_read(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / control.SOCKET_NAME))
        listener.listen()

        def run() -> None:
            connection, _ = listener.accept()
            connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        with pytest.raises(PeerError, match="broke off"):
            control.call(str(tmp_path), "status")
        thread.join()


def test_an_answer_without_end_is_given_up(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_ANSWER", 3 * control.MAX_PACKET)

    def flood(connection: socket.socket, _: bytes) -> None:
        for _ in range(4):
            connection.sendall(b"\xdf" + b"\xff" * (control.MAX_PACKET - 1))

    serve(flood)
    with pytest.raises(PeerError, match="makes no sense"):
        control.call(str(tmp_path), "status")


def test_a_runtime_directory_whose_path_is_too_long_for_an_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with pytest.raises(OperatorError, match="no daemon runs in"):
        control.call(str(deep), "status")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        descriptor = os.open(deep, os.O_PATH)
        listener.bind(f"/proc/self/fd/{descriptor}/{control.SOCKET_NAME}")
        os.close(descriptor)
        listener.listen()

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                answering(Answer(result=7), [])(connection, connection.recv(control.MAX_REQUEST))

        thread = threading.Thread(target=run)
        thread.start()
        assert control.call(str(deep), "status") == 7
        thread.join()
    with pytest.raises(OperatorError, match="no daemon runs in"):
        control.call(str(deep / "nowhere"), "status")


def test_what_the_daemon_answers_becomes_structs() -> None:
    session = control.Session(session="s1", tenant="acme", since=12.5)
    assert control.convert_sessions([{"session": "s1", "tenant": "acme", "since": 12.5, "more": 1}]) == [session]
    assert control.convert_status({"version": "1", "drivers": ["kernel"]}) == control.Status(version="1", drivers=("kernel",))
    for wrong in (None, [{"tenant": "acme"}], [{"session": 7}], {"session": "s1"}):
        with pytest.raises(PeerError, match="makes no sense"):
            control.convert_sessions(wrong)
    with pytest.raises(PeerError, match="makes no sense"):
        control.convert_status([])


def described(data: bytes | None, answer: Answer | None = None) -> Callable[[socket.socket, bytes], None]:
    """Answers with a memfd that holds the data."""

    def run(connection: socket.socket, _packet: bytes) -> None:
        descriptors = []
        if data is not None:
            descriptors.append(os.memfd_create("figures"))
            os.write(descriptors[0], data)
        socket.send_fds(connection, control.encode_answer(answer or Answer(result={})), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.recv(1)

    return run


def test_figures_come_in_a_memfd(serve: Serve, tmp_path: Path) -> None:
    told = seen(session(data=b"x" * 100))
    before = len(os.listdir("/proc/self/fd"))
    serve(described(msgspec.msgpack.encode(told)))
    assert control.figures(str(tmp_path), session="s1", brief=True, ended_after=3) == told
    assert len(os.listdir("/proc/self/fd")) <= before + 2, "of the server's, which has not ended"


@pytest.mark.parametrize("data", [None, b"", b"\xc1", msgspec.msgpack.encode({"version": 1})])
def test_figures_that_are_none(serve: Serve, tmp_path: Path, data: bytes | None) -> None:
    serve(described(data))
    with pytest.raises(PeerError, match="makes no sense"):
        control.figures(str(tmp_path))


def test_figures_that_are_refused(serve: Serve, tmp_path: Path) -> None:
    serve(described(None, Answer("there is no session 's9'", "list them")))
    with pytest.raises(OperatorError, match="there is no session 's9'"):
        control.figures(str(tmp_path))
