"""edge/listening.py: real sockets."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import need
from harness.persona import Persona

from fuse_gated.edge.listening import bind, bind_control
from fuse_gated.errors import OperatorError, UsageError


@contextlib.contextmanager
def bound(listen: str) -> Iterator[list[socket.socket]]:
    listeners = bind(listen)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_an_address_of_this_machine() -> None:
    with bound("127.0.0.1:0") as (listener,):
        assert not listener.getblocking()
        assert not os.get_inheritable(listener.fileno())
        with socket.create_connection(listener.getsockname()):
            assert listener.accept()


def test_ipv6_stands_in_brackets() -> None:
    if not has_ipv6():
        with pytest.raises(OperatorError, match="cannot listen"):
            bind("[::1]:0")
        return
    with bound("[::1]:0") as (listener,):
        assert listener.getsockname()[0] == "::1"


@pytest.mark.parametrize("listen", [":0", "*:0", "localhost:0"])
def test_a_name_with_several_addresses_has_one_port(listen: str) -> None:
    with bound(listen) as listeners:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        assert len({listener.family for listener in listeners}) == len(listeners)
        assert socket.AF_INET in {listener.family for listener in listeners}


def test_a_port_that_is_taken_tells_how_to_find_who_has_it() -> None:
    with bound("127.0.0.1:0") as (listener,):
        port = listener.getsockname()[1]
        with pytest.raises(OperatorError, match=f"taken.*ss -ltnp 'sport = :{port}'.*--listen") as caught:
            bind(f"127.0.0.1:{port}")
    assert caught.value.exit_status == 1


def test_a_port_that_is_taken_for_one_of_several_addresses_leaves_none_bound() -> None:
    with bound("127.0.0.1:0") as (listener,):
        port = listener.getsockname()[1]
        with pytest.raises(OperatorError, match="taken"):
            bind(f":{port}")
    with bound(f":{port}"):
        pass


def test_an_address_that_is_not_here_is_told_of() -> None:
    with pytest.raises(OperatorError, match="ip address"):
        bind("192.0.2.1:0")


def test_a_name_that_nobody_knows_is_told_of() -> None:
    with pytest.raises(OperatorError, match="no-such-host"):
        bind("no-such-host.invalid:0")


def test_a_port_that_needs_a_right_is_told_of() -> None:
    need("root")
    allowed = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if int(allowed.read_text()) < 8:
        pytest.skip("any user may use any port here")

    def message() -> str:
        with pytest.raises(OperatorError) as caught:
            bind("127.0.0.1:7")
        return str(caught.value)

    assert "CAP_NET_BIND_SERVICE" in Persona(4711, 4711).call(message)


@pytest.mark.parametrize(
    "listen",
    [
        "",
        "localhost",
        "7433",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "::1:7433",
        "[::1]",
        "[::1:1",
        "a:1:2",
        "127.0.0.1:٣",
    ],
)
def test_what_is_no_host_and_port_is_a_usage_error(listen: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT") as caught:
        bind(listen)
    assert caught.value.exit_status == 2


# The control socket.


@pytest.fixture
def here(tmp_path: Path) -> Iterator[int]:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield directory
    os.close(directory)


def control(here: int, path: Path, mode: int = 0o660) -> socket.socket:
    return bind_control(here, str(path), user=os.geteuid(), group=os.getegid(), mode=mode)


def connect(path: Path) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(str(path / "control.sock"))


def test_the_control_socket_listens_with_its_owner_and_mode(here: int, tmp_path: Path) -> None:
    need("root")
    mask = os.umask(0o022)
    with bind_control(here, str(tmp_path), user=4711, group=4712, mode=0o660) as listener:
        status = (tmp_path / "control.sock").stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (4711, 4712, 0o660)
        assert stat.S_ISSOCK(status.st_mode)
        assert connect(tmp_path) == 0
        assert not listener.getblocking()
    assert os.umask(mask) == 0o022


def test_a_stale_control_socket_is_replaced(here: int, tmp_path: Path) -> None:
    control(here, tmp_path).close()
    assert connect(tmp_path) != 0
    with control(here, tmp_path, 0o600):
        assert connect(tmp_path) == 0


def test_a_control_socket_that_somebody_listens_on_is_left_alone(here: int, tmp_path: Path) -> None:
    with control(here, tmp_path):
        with pytest.raises(OperatorError, match="another fuse-gated runs"):
            control(here, tmp_path)
        assert connect(tmp_path) == 0


def test_something_else_of_that_name_is_left_alone(here: int, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("mine")
    with pytest.raises(OperatorError, match="no socket"):
        control(here, tmp_path)
    assert path.read_text() == "mine"
    path.unlink()
    path.symlink_to("/nowhere")
    with pytest.raises(OperatorError, match="no socket"):
        control(here, tmp_path)


def test_a_path_longer_than_a_socket_address_will_do(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 200)
    deep.mkdir()
    directory = os.open(deep, os.O_RDONLY)
    with control(directory, deep):
        assert (deep / "control.sock").is_socket()
    os.close(directory)


def test_a_directory_that_is_gone_is_told_of(here: int, tmp_path: Path) -> None:
    tmp_path.rmdir()
    with pytest.raises(OperatorError, match="cannot listen"):
        control(here, tmp_path)
    tmp_path.mkdir()
