"""The service's life under systemd: started by the first connection, reloaded, stopped, restarted, killed, hung."""

import json
import time
from typing import Any

import pytest

Guest = Any

PATIENCE = 30.0
DAEMON, KEEPER, SOCKET = "fuse-gated.service", "fuse-gated-mountd.service", "fuse-gated.socket"
HIDE = {"path": "/secret*", "hide": True}


def until(condition: Any, what: str) -> Any:
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.05)
    return value


def works(guest: Guest, client: Any, word: str = "hello") -> None:
    """A service of another user reads what the client has."""
    guest.path(f"{client.export}/{word}").write_text(word)
    assert guest.run_as("reader", "cat", f"{client.mount}/{word}").stdout == word


def is_served(client: Any) -> bool:
    """Whether it gets its mount; if not, it has ended."""

    def outcome() -> str:
        if any(said["event"] == "mounted" for said in client.events()):
            return "mounted"
        return "ended" if client.guest.show(client.unit, "SubState") in ("exited", "failed", "dead") else ""

    return until(outcome, f"a mount, or an end: {client.journal()}") == "mounted"


def test_the_first_connection_starts_it(service: Guest) -> None:
    assert not service.is_active(DAEMON)
    assert not service.is_active(KEEPER)
    assert service.ours() == []
    client = service.client().mounted()
    assert service.is_active(DAEMON)
    assert service.is_active(KEEPER)
    assert service.show(DAEMON, "StatusText") == "1 session, 1 tenant"
    works(service, client)


def test_the_unix_socket_serves_as_the_port_does(service: Guest) -> None:
    """For a proxy: what comes in there gets an answer."""
    ask = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/fuse-gated/gate.sock'); "
        "s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); print(s.recv(4096).decode())"
    )
    assert service.run_as("other", "python3", "-c", ask).stdout.startswith("HTTP/1.1 4")
    assert service.is_active(DAEMON)


def test_who_may_enter_a_mount(service: Guest) -> None:
    client = service.client().mounted()
    works(service, client)
    refused = service.run_as("other", "ls", client.mount, check=False)
    assert refused.returncode == 2
    assert "Permission denied" in refused.stderr


def test_a_good_policy_applies_to_live_sessions(service: Guest) -> None:
    client = service.client().mounted()
    works(service, client, "secret.txt")
    service.write_policy(service.policy(HIDE))
    service.run("systemctl", "reload", DAEMON)
    assert service.run_as("reader", "cat", f"{client.mount}/secret.txt", check=False).stderr.count("No such file") == 1
    assert service.show(DAEMON, "StatusText") == "1 session, 1 tenant"


def test_a_faulty_policy_is_refused_and_the_reload_fails(service: Guest) -> None:
    service.write_policy(service.policy(HIDE))
    client = service.client().mounted()
    service.path(f"{client.export}/secret.txt").write_text("hidden")
    service.write_policy("tenants: {acme: {colour: red}}\n")
    failed = service.run("systemctl", "reload", DAEMON, check=False)
    assert failed.returncode == 1
    until(lambda: "faulty" in service.show(DAEMON, "StatusText"), "the status that tells of it")
    told = "\n".join(str(entry["MESSAGE"]) for entry in service.journal("-u", DAEMON))
    assert "colour" in told
    assert "policy not applied" in told
    # What was in force goes on, for who is here and for who comes.
    other = service.client("other").mounted()
    works(service, client)
    works(service, other)
    assert service.run_as("reader", "cat", f"{client.mount}/secret.txt", check=False).returncode == 1
    service.write_policy(service.policy(HIDE))
    service.run("systemctl", "reload", DAEMON)
    assert service.show(DAEMON, "StatusText") == "2 sessions, 1 tenant"


def test_stopping_ends_sessions_in_order_and_the_next_client_starts_it_again(service: Guest) -> None:
    client = service.client("web", "--no-reconnect").mounted()
    works(service, client)
    service.run("systemctl", "stop", DAEMON)
    assert service.mounts() == []
    assert "the server is stopping" in client.wait_for("closed")["reason"]
    until(lambda: service.ours() == [], "the end of all processes")
    assert service.show(DAEMON, "Result") == "success"
    until(lambda: service.show(KEEPER, "ActiveState") == "inactive", "the mount keeper's end")
    assert service.show(KEEPER, "Result") == "success"
    service.client("again").mounted()


def test_nobody_is_refused_while_it_restarts(service: Guest) -> None:
    service.client().mounted()
    before = service.main_pid(DAEMON)
    restart = "systemctl restart --no-block fuse-gated.service"
    # Connections that come in between wait in the socket, which is systemd's.
    ask = (
        "import socket, subprocess; subprocess.run('" + restart + "'.split(), check=True)\n"
        "for _ in range(50):\n"
        "    s = socket.create_connection(('127.0.0.1', 7433), 20)\n"
        "    s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); s.recv(10)\n"
    )
    service.run("python3", "-c", ask)
    until(lambda: service.main_pid(DAEMON) not in (0, before), "the next daemon")
    service.client("again").mounted()


def session_of(guest: Guest) -> str:
    (session,) = json.loads(guest.run("fuse-gatectl", "sessions", "--json").stdout)
    return str(session["session"])


@pytest.mark.parametrize("who", ["worker", "daemon", "daemon and keeper", "worker and daemon and keeper"])
def test_no_session_ends_whoever_is_killed(service: Guest, who: str) -> None:
    client = service.client().mounted()
    works(service, client)
    session = session_of(service)
    for round in range(2):
        pids = {
            "worker": service.workers(),
            "daemon": [service.main_pid(DAEMON)],
            "keeper": [service.main_pid(KEEPER)],
        }
        service.run("kill", "-KILL", *(str(pid) for name in who.split(" and ") for pid in pids[name]))
        works(service, client, f"after-{round}")
        assert service.mounts() == [client.mount]
    until(lambda: session_of(service) == session, "the same session")
    client.stop()
    until(lambda: service.mounts() == [], "the mount's end")


@pytest.mark.parametrize("units", [(DAEMON,), (KEEPER,), (DAEMON, KEEPER)], ids=" ".join)
def test_no_session_ends_with_a_restart(service: Guest, units: tuple[str, ...]) -> None:
    """An upgrade of the package restarts both."""
    client = service.client().mounted()
    works(service, client)
    session = session_of(service)
    for round in range(2):
        before = [service.main_pid(unit) for unit in units]
        service.run("systemctl", "restart", *units)
        assert not set(before) & {service.main_pid(unit) for unit in units}
        works(service, client, f"after-{round}")
        assert service.mounts() == [client.mount]
    until(lambda: session_of(service) == session, "the same session")
    assert service.show(KEEPER, "NFileDescriptorStore") == "4"


def test_a_client_that_is_killed_leaves_nothing_dead(service: Guest) -> None:
    service.write_policy(service.policy(outage={"mode": "wait", "grace": "1s"}))
    client = service.client().mounted()
    works(service, client)
    service.run("kill", "-KILL", str(service.main_pid(client.unit)))
    until(lambda: service.mounts() == [], "the mount's end")
    works(service, service.client("again").mounted())


@pytest.mark.parametrize("how", ["kill", "restart"])
def test_no_session_notices_when_the_mount_keeper_is_killed_or_restarted(service: Guest, how: str) -> None:
    """An upgrade of the package restarts it. systemd keeps the daemon's connection and what belongs to the mounts meanwhile."""
    client = service.client().mounted()
    works(service, client)
    daemon, keeper, workers = service.main_pid(DAEMON), service.main_pid(KEEPER), service.workers()
    assert service.show(KEEPER, "NFileDescriptorStore") == "4"
    service.path(f"{client.export}/open").write_text("still open")
    reader = f"exec 3<{client.mount}/open; read -r line <&3; touch /tmp/reading; sleep infinity"
    service.run("systemd-run", "--unit=reader.service", "--property=User=reader", "bash", "-c", reader)
    until(lambda: service.path("/tmp/reading").exists(), "a program that has a file open")
    for _ in range(3):
        keeper = service.main_pid(KEEPER)
        service.run(*(["kill", "-KILL", str(keeper)] if how == "kill" else ["systemctl", "restart", KEEPER]))
        until(lambda keeper=keeper: service.main_pid(KEEPER) not in (0, keeper) and service.is_active(KEEPER), "the next keeper")
    works(service, client, "after")
    assert (service.main_pid(DAEMON), service.workers(), service.mounts()) == (daemon, workers, [client.mount])
    assert service.is_active("reader.service")
    service.run("systemctl", "stop", "reader.service")
    service.run("rm", "/tmp/reading")
    # And the next one knows of all mounts: it makes, changes and takes away.
    other = service.client("again").mounted()
    works(service, other)
    service.write_policy(service.policy(users=["other"]))
    service.run("systemctl", "reload", DAEMON)
    until(lambda: service.run_as("reader", "ls", client.mount, check=False).returncode == 2, "the new policy at the door")
    client.stop()
    until(lambda: service.mounts() == [other.mount], "the end of one mount")
    until(lambda: service.show(KEEPER, "NFileDescriptorStore") == "4", "the end of what was kept for it")


def test_a_mount_keeper_that_is_stopped_ends_the_sessions_in_order(service: Guest) -> None:
    """And the next client starts both again."""
    client = service.client("web", "--no-reconnect").mounted()
    service.run("systemctl", "stop", KEEPER)
    assert "the server is stopping" in client.wait_for("closed")["reason"]
    assert service.mounts() == []
    assert not service.is_active(DAEMON)
    assert service.show(KEEPER, "Result") == service.show(DAEMON, "Result") == "success"
    works(service, service.client("again").mounted())


def test_a_daemon_that_hangs_is_replaced(service: Guest) -> None:
    service.drop_in(DAEMON, "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=2s\n")
    client = service.client().mounted()
    hung = service.main_pid(DAEMON)
    service.run("kill", "-STOP", str(hung))
    until(lambda: service.main_pid(DAEMON) not in (0, hung), "the next daemon")
    works(service, client)
    assert any("Watchdog timeout" in str(entry["MESSAGE"]) for entry in service.journal("-u", DAEMON, "_PID=1"))
    works(service, service.client("again").mounted())


def test_a_daemon_that_is_well_outlives_the_watchdog(service: Guest) -> None:
    service.drop_in(DAEMON, "[Service]\nWatchdogSec=1s\n")
    client = service.client().mounted()
    alive = service.main_pid(DAEMON)
    heard = service.show(DAEMON, "WatchdogTimestampMonotonic")
    for _ in range(5):
        until(lambda before=heard: service.show(DAEMON, "WatchdogTimestampMonotonic") != before, "a sign of life")
        heard = service.show(DAEMON, "WatchdogTimestampMonotonic")
    assert service.main_pid(DAEMON) == alive
    works(service, client)


def test_stopping_the_socket_refuses_newcomers_and_keeps_sessions(service: Guest) -> None:
    client = service.client().mounted()
    service.run("systemctl", "stop", SOCKET)
    refused = "import socket; print(socket.socket(socket.{0}).connect_ex({1!r}))"
    for family, place in (("AF_INET", ("127.0.0.1", 7433)), ("AF_UNIX", "/run/fuse-gated/gate.sock")):
        connect = refused.format(family, place)
        until(lambda connect=connect: service.run("python3", "-c", connect).stdout == "111\n", "a refusal")
    works(service, client)
    assert service.show(DAEMON, "StatusText") == "1 session, 1 tenant; accepting nobody new"
    assert '"web"' in service.run("fuse-gatectl", "sessions", "--json").stdout
    # And back: what listens belongs to both, so the daemon has to be started anew.
    service.run("systemctl", "restart", DAEMON)
    service.client("again").mounted()


def test_once_a_configuration_is_mended_the_next_client_is_served(service: Guest) -> None:
    """A port that was shut for good by a fault that was mended long ago would be a second fault."""
    service.write_policy("tenants: {acme: {colour: red}}\n")
    clients = [service.client("early")]
    until(lambda: service.show(DAEMON, "ExecMainStatus") == "4", "the daemon's failure")
    assert service.is_active(SOCKET)
    service.write_policy(service.policy())
    # How soon it is started again the socket's PollLimit says, and a client that has never had a session waits for ten seconds.
    while not is_served(clients[-1]):
        assert len(clients) < 4
        clients.append(service.client(f"web{len(clients)}"))
    works(service, clients[-1])


def test_the_end_of_a_whole_machine(service: Guest) -> None:
    """The order of a shutdown: the daemon, then the mount keeper, which has nothing left to take away."""
    service.client().mounted()
    service.run("systemctl", "stop", DAEMON, KEEPER, SOCKET, "fuse-gated-mountd.socket")
    told = [str(entry["MESSAGE"]) for entry in service.journal("-u", KEEPER)]
    assert not any("was not unmounted in order" in line for line in told)
    assert service.show(KEEPER, "Result") == service.show(DAEMON, "Result") == "success"
