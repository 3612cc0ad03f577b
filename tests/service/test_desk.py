"""The control socket of a daemon that runs: who is listened to, and what it says of sessions that do not answer."""

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import pytest
from harness import Mounted, Persona, Server, Stage
from harness.log import DEADLINE
from harness.waiting import until

from fuse_gated import control
from fuse_gated.errors import OperatorError, PeerError

MOST: Final = 64
"""Callers at once."""


@pytest.fixture(scope="module")
def mounted(stage: Stage) -> Mounted:
    return stage.mount()


@pytest.fixture
def server(mounted: Mounted) -> Server:
    return mounted.server


def ask(server: Server, command: str, **arguments: Any) -> Any:
    return control.call(str(server.runtime), command, **arguments)


def call(server: Server) -> socket.socket:
    """A caller who has said nothing yet."""
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    caller.settimeout(DEADLINE)
    caller.connect(str(server.runtime / control.SOCKET_NAME))
    return caller


def test_a_command_that_is_none(server: Server) -> None:
    with pytest.raises(OperatorError, match=r"the daemon knows no command 'dance' \(is it of an older version"):
        ask(server, "dance")


@pytest.mark.parametrize("command", ["show", "kick"])
def test_a_session_that_is_not_there(server: Server, command: str) -> None:
    with pytest.raises(OperatorError, match="there is no session 'acme/other'"):
        ask(server, command, session="acme/other")


@pytest.mark.parametrize("packet", [b"\xc1", msgspec.msgpack.encode([1, 2]), b""], ids=["nonsense", "another form", "nothing"])
def test_what_is_no_request_ends_the_call(server: Server, packet: bytes) -> None:
    with call(server) as caller:
        if packet:
            caller.send(packet)
        else:
            caller.shutdown(socket.SHUT_WR)
        assert caller.recv(100) == b""
    assert ask(server, "status")["sessions"] == 1


def test_a_caller_who_does_not_wait_for_the_answer(server: Server) -> None:
    for _ in range(10):
        with call(server) as caller:
            caller.send(msgspec.msgpack.encode(control.Request("sessions", {})))
    assert ask(server, "status")["sessions"] == 1


OTHER: Final = Persona(61001, 65534)


def test_only_root_and_the_daemons_user_are_answered(server: Server) -> None:
    """The others may open the socket, and ask for what they may use without a mount."""
    nobody = Persona(65534, 65534)
    assert nobody.call(control.call, str(server.runtime), "status")["sessions"] == 1
    with pytest.raises(OperatorError, match="'status' is for the operator"):
        OTHER.call(control.call, str(server.runtime), "status")
    assert OTHER.call(control.exports, str(server.runtime)) == []


def test_others_keep_nobody_out(server: Server) -> None:
    """Neither the operator nor each other: one user has four places, and all of them together have half."""

    def hold(most: int) -> int:
        callers = [call(server) for _ in range(most)]
        for held, caller in enumerate(callers):
            try:
                caller.send(msgspec.msgpack.encode(control.Request("attach", {"session": "nothing/here"})))
                if not caller.recv(control.MAX_PACKET):
                    return held
            except OSError:
                return held
        return most

    assert OTHER.call(hold, 10) == 4
    until(lambda: OTHER.call(control.exports, str(server.runtime)) == [], "they have gone")
    assert ask(server, "status")["sessions"] == 1


def test_more_callers_than_it_listens_to(server: Server) -> None:
    callers = [call(server) for _ in range(MOST)]
    try:
        with pytest.raises(PeerError, match="broke off"):
            ask(server, "status")
    finally:
        for caller in callers:
            caller.close()
    until(lambda: answers(server), "they have gone, so there is room again")


def answers(server: Server) -> bool:
    try:
        return bool(ask(server, "status"))
    except PeerError:
        return False


# A worker that does not answer.


@pytest.fixture
def stopped(stage: Stage, server: Server) -> Iterator[dict[str, Any]]:
    """A session whose worker does nothing any more, as it was shown before."""
    client = stage.export(server, name="stopped")
    client.mount_path()
    shown: dict[str, Any] = next(session for session in ask(server, "sessions") if session["export"] == "stopped")
    os.kill(shown["pid"], signal.SIGSTOP)
    yield shown
    os.kill(shown["pid"], signal.SIGCONT)
    client.stop()


def test_a_worker_that_does_not_answer_is_shown_all_the_same(server: Server, stopped: dict[str, Any]) -> None:
    found = {session["export"]: session for session in ask(server, "sessions")}
    assert set(found) == {"work", "stopped"}
    assert found["stopped"]["session"] == stopped["session"]
    assert ask(server, "show", session="acme/stopped")["pid"] == stopped["pid"]
    assert ask(server, "stats")["sessions"] == 2
