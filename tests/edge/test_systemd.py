"""edge/systemd.py: sockets as systemd passes them, from descriptor 3 on, and a notification socket that listens."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuse_gated.edge import process
from fuse_gated.edge.systemd import Manager, Passed, sort_sockets, take_sockets
from fuse_gated.errors import OperatorError

PATIENCE = 30.0


def listening(kind: int, family: int = socket.AF_UNIX) -> socket.socket:
    made = socket.socket(family, kind)
    made.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")
    made.listen()
    return made


def in_a_service(descriptors: dict[str, int], main: Callable[[], str], **environment: str) -> str:
    """What `main` returns in a process that was started as systemd starts a service, with these names and descriptors."""
    reader, writer = os.pipe()

    def child() -> int:
        # Out of the way first: one of them may have the number that another one is to get.
        high = [os.dup2(fd, 900 + index) for index, fd in enumerate([writer, *descriptors.values()])]
        for number, fd in enumerate(high[1:], 3):
            os.dup2(fd, number)
        passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(descriptors)), "LISTEN_FDNAMES": ":".join(descriptors)}
        os.environ.update({**passed, **environment})
        os.write(high[0], main().encode())
        return 0

    started = process.spawn(child)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read().decode()
    assert started.wait(PATIENCE) == 0
    return answer


def test_sockets_are_taken_once_with_their_names() -> None:
    def main() -> str:
        taken = take_sockets()
        names = [(name, sock.fileno(), sock.type.name, os.get_inheritable(sock.fileno())) for name, sock in taken]
        return repr((names, take_sockets(), "LISTEN_FDS" in os.environ))

    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with first, second, listening(socket.SOCK_STREAM, socket.AF_INET) as listener:
        told = in_a_service({"gate": listener.fileno(), "mountd": first.fileno()}, main)
    assert told == repr(([("gate", 3, "SOCK_STREAM", False), ("mountd", 4, "SOCK_SEQPACKET", False)], [], False))


def test_what_was_passed_to_another_process_is_not_taken() -> None:
    with listening(socket.SOCK_STREAM) as listener:
        assert in_a_service({"gate": listener.fileno()}, lambda: repr(take_sockets()), LISTEN_PID="1") == "[]"
    assert take_sockets() == []


def refusal() -> str:
    try:
        return repr(take_sockets())
    except OperatorError as error:
        return str(error)


def test_what_is_no_socket_is_told() -> None:
    told = in_a_service({"disk": os.open("/dev/null", os.O_RDONLY)}, refusal)
    assert told.startswith("systemd passed a descriptor 'disk' that is no socket: ")


def test_without_the_binding_the_package_to_install_is_named() -> None:
    def main() -> str:
        sys.modules["systemd.daemon"] = None
        return refusal()

    with listening(socket.SOCK_STREAM) as listener:
        assert "install python3-systemd" in in_a_service({"gate": listener.fileno()}, main)


@pytest.fixture
def sockets() -> Iterator[dict[str, socket.socket]]:
    keeper, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made = {
        "tcp": listening(socket.SOCK_STREAM, socket.AF_INET),
        "unix": listening(socket.SOCK_STREAM),
        "control": listening(socket.SOCK_SEQPACKET),
        "keeper": keeper,
        "other": other,
        "datagrams": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        "stream": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    }
    yield made
    for sock in made.values():
        sock.close()


def test_sockets_are_known_by_what_they_are(sockets: dict[str, socket.socket]) -> None:
    passed = sort_sockets(
        [("x", sockets["tcp"]), ("mountd", sockets["keeper"]), ("x", sockets["control"]), ("y", sockets["unix"])]
    )
    assert passed == Passed((sockets["tcp"], sockets["unix"]), sockets["control"], sockets["keeper"])
    assert not any(sockets[name].getblocking() for name in ("tcp", "unix", "control"))
    assert sort_sockets([]) == Passed((), None, None)


@pytest.mark.parametrize(
    ("name", "which"),
    [("x", "keeper"), ("mountd", "datagrams"), ("mountd", "stream"), ("x", "datagrams"), ("control", "stream")],
)
def test_a_socket_of_no_use_is_refused(sockets: dict[str, socket.socket], name: str, which: str) -> None:
    with pytest.raises(OperatorError, match=f"a socket '{name}' that fuse-gated has no use for"):
        sort_sockets([(name, sockets[which])])


@pytest.mark.parametrize(("name", "first", "second"), [("x", "control", "control"), ("mountd", "keeper", "other")])
def test_two_for_one_purpose_are_refused(sockets: dict[str, socket.socket], name: str, first: str, second: str) -> None:
    with pytest.raises(OperatorError, match="no use for"):
        sort_sockets([(name, sockets[first]), (name, sockets[second])])


class ServiceManager:
    """A notification socket, as systemd has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        heard = []
        while True:
            try:
                heard.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return heard


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceManager]:
    made = ServiceManager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(made.path))
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.socket.close()


def test_what_the_service_manager_hears(manager: ServiceManager) -> None:
    told = Manager()
    told.ready()
    told.status("1 sessions")
    told.status("1 sessions")
    told.status("2 sessions")
    told.beat()
    told.stopping()
    assert manager.heard() == ["READY=1", "STATUS=1 sessions", "STATUS=2 sessions", "WATCHDOG=1", "STOPPING=1"]


def test_a_reload_carries_the_time_at_which_it_began(manager: ServiceManager) -> None:
    before = time.monotonic_ns() // 1000
    Manager().reloading()
    (heard,) = manager.heard()
    first, second = heard.split("\n")
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_without_a_service_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    told = Manager()
    told.ready()
    told.status("1 sessions")
    told.stopping()


def test_a_service_manager_that_is_gone_is_no_fault(manager: ServiceManager) -> None:
    told = Manager()
    manager.socket.close()
    told.ready()


@pytest.mark.parametrize(
    ("microseconds", "pid", "every"),
    [("3000000", None, 1.0), ("3000000", "own", 1.0), ("3000000", "1", None), *((text, None, None) for text in (None, "0", "x"))],
)
def test_how_often_a_sign_of_life_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, manager: ServiceManager, microseconds: str | None, pid: str | None, every: float | None
) -> None:
    if microseconds is not None:
        monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert Manager().beat_every == every


def test_descriptors_are_given_to_be_kept_and_let_go(manager: ServiceManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDSTORE", "8")
    told = Manager()
    with socket.socket(socket.AF_UNIX) as sock:
        told.keep("acme/web", sock.fileno())
        told.keep("daemon", sock.fileno(), watched=True)
        for name, watched in (("acme/web", 0), ("daemon", 1)):
            message, (kept,), _, _ = socket.recv_fds(manager.socket, 4096, 8)
            assert message.decode() == f"FDSTORE=1\nFDNAME={name}\nFDPOLL={watched}"
            assert os.path.sameopenfile(kept, sock.fileno())
            os.close(kept)
    told.drop("daemon")
    assert manager.heard() == ["FDSTOREREMOVE=1\nFDNAME=daemon"]


@pytest.mark.parametrize("most", [None, "0"])
def test_where_nothing_is_kept_nothing_is_given(
    manager: ServiceManager, monkeypatch: pytest.MonkeyPatch, most: str | None
) -> None:
    if most is None:
        monkeypatch.delenv("FDSTORE", raising=False)
    else:
        monkeypatch.setenv("FDSTORE", most)
    told = Manager()
    told.keep("daemon", 0)
    told.drop("daemon")
    assert not told.stores
    assert manager.heard() == []
