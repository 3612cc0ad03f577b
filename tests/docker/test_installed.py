"""Two machines, nothing on either: `apt install` on both, and a client's directory is a mount on the server, over TLS."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml
from harness.certificates import Authority
from harness.waiting import until

Container = Any
Started = Any

SOCKETS: Final = ("fuse-gated.socket", "fuse-gated-mountd.socket")
SERVICES: Final = ("fuse-gated.service", "fuse-gated-mountd.service")
MOUNT: Final = "/run/fuse-gated/mnt/acme/project"
CREDENTIALS: Final = "/run/credentials/fuse-gated.service"
DROP_IN: Final = """[Socket]
ListenStream=
ListenStream=0.0.0.0:7433
ListenStream=/run/fuse-gated/gate.sock
ListenSequentialPacket=/run/fuse-gated/control.sock
"""
CLIENT: Final = ("fuse-gate", "export", "/home/me/project", "--server", "wss://machine:7433", "--token-file", "/home/me/token")
WAITER: Final = "waiter.service"


@pytest.fixture(scope="module")
def states(machine: Container) -> dict[str, str]:
    """The units' states after `apt install fuse-gated` on a machine that has nothing of ours."""
    assert machine.run("dpkg-query", "--show", "*fuse-gated*", check=False).returncode != 0
    machine.install("fuse-gated")
    print(machine.run("systemctl", "status", "--no-pager", *SOCKETS, *SERVICES, check=False).stdout)
    return {unit: machine.state(unit) for unit in (*SOCKETS, *SERVICES)}


@pytest.fixture(scope="module")
def server(machine: Container, states: dict[str, str], authority: Authority) -> Container:
    """The machine, once its administrator has made a tenant and opened the port, as the deployment guide has it."""
    pair = authority.issue("machine", names="DNS:machine")
    for name, file in (("fuse-gated.pem", pair.certificate), ("fuse-gated.key", pair.key)):
        machine.write(f"/etc/credstore/{name}", file.read_text(), "600")
    settings = {"tls": {"certificate": f"{CREDENTIALS}/fuse-gated.pem", "key": f"{CREDENTIALS}/fuse-gated.key"}}
    machine.write("/etc/fuse-gated/fuse-gated.yaml", yaml.safe_dump(settings), "640", "root:fuse-gated")
    machine.write("/etc/systemd/system/fuse-gated.socket.d/port.conf", DROP_IN)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "fuse-gated.socket")
    for user in ("acme-build", "other"):
        machine.run("useradd", "--system", user)
    return machine


@pytest.fixture(scope="module")
def token(server: Container) -> str:
    """Of the tenant acme, by `fuse-gatectl token new`."""
    made = json.loads(server.run("fuse-gatectl", "token", "new", "acme", "--json").stdout)
    rules = [{"path": "/.env", "deny": ["read"]}, {"path": "/**", "allow": ["read", "write", "delete"]}]
    tenant = {"tokens": [{"sha256": made["sha256"]}], "users": ["acme-build"], "rules": rules}
    server.write("/etc/fuse-gated/policy.d/acme.yaml", yaml.safe_dump({"tenants": {"acme": tenant}}), "640", "root:fuse-gated")
    return str(made["token"])


@pytest.fixture(scope="module")
def waiter(server: Container) -> str:
    """A sandboxed service of acme-build's that runs before there is a mount, and says what it then reads in it."""
    script = f"until [ -e {MOUNT}/hello ]; do sleep 0.1; done; cat {MOUNT}/hello"
    sandbox = [f"--property={setting}" for setting in ("User=acme-build", "ProtectSystem=strict", "PrivateTmp=yes")]
    server.run("systemd-run", f"--unit={WAITER}", "--remain-after-exit", *sandbox, "--", "sh", "-c", script)
    return WAITER


@pytest.fixture(scope="module")
def client(laptop: Container, server: Container, token: str, waiter: str, authority: Authority) -> Iterator[Started]:
    """`fuse-gate export`, by an ordinary user of the other machine, whose package was installed there by apt."""
    laptop.install("fuse-gated-client")
    # It needs nothing of the server's.
    assert laptop.run("dpkg-query", "--show", "fuse-gated", check=False).returncode != 0
    laptop.run("useradd", "--create-home", "me")
    laptop.write("/home/me/token", token, "600", "me:me")
    laptop.write("/home/me/ca.pem", authority.certificate.read_text())
    for name, text in (("hello", "from the laptop\n"), (".env", "PASSWORD=x\n")):
        laptop.write(f"/home/me/project/{name}", text, "644", "me:me")
    laptop.run("chown", "me:me", "/home/me/project")
    # So far nobody has connected.
    assert [server.state(unit) for unit in (*SOCKETS, *SERVICES)] == ["active", "active", "inactive", "inactive"]
    program = laptop.start(*CLIENT, "--ca", "/home/me/ca.pem", "--json", user="me")
    try:
        yield program
    finally:
        program.end()
        print(server.run("journalctl", "--no-pager", "--lines=60", "--unit=fuse-gated*").stdout)


def test_after_the_installation_the_sockets_listen_and_nothing_runs(states: dict[str, str], machine: Container) -> None:
    assert [states[unit] for unit in SOCKETS] == ["active", "active"]
    assert [states[unit] for unit in SERVICES] == ["inactive", "inactive"]
    for unit in SOCKETS:
        assert machine.run("systemctl", "is-enabled", unit).stdout.strip() == "enabled"
    assert machine.run("systemctl", "is-system-running").stdout.strip() == "running"


def test_the_first_connection_starts_the_service(client: Started, server: Container) -> None:
    assert client.wait_for("mounted")["path"] == MOUNT
    assert mounts(server) == [MOUNT]
    assert [server.state(unit) for unit in SERVICES] == ["active", "active"]
    sessions = json.loads(server.run("fuse-gatectl", "sessions", "--json").stdout)
    assert len(sessions) == 1
    assert "127.0.0.1" not in json.dumps(sessions)


def test_a_sandboxed_service_of_the_policy_s_user_reads_and_writes(client: Started, server: Container, laptop: Container) -> None:
    assert server.run_as("acme-build", "cat", f"{MOUNT}/hello").stdout == "from the laptop\n"
    # A mount is read-only for who protects the system strictly, unless its unit names it.
    writer = ["systemd-run", "--wait", "--pipe", "--quiet", "--collect", "--property=User=acme-build"]
    paths = ["--property=ProtectSystem=strict", f"--property=ReadWritePaths={MOUNT}"]
    server.run(*writer, *paths, "--", "sh", "-c", f"echo from the server >{MOUNT}/answer")
    assert laptop.run("cat", "/home/me/project/answer").stdout == "from the server\n"
    assert laptop.run("stat", "-c", "%U", "/home/me/project/answer").stdout == "me\n"


def test_a_service_that_ran_before_sees_the_mount(client: Started, server: Container, waiter: str) -> None:
    until(lambda: server.run("systemctl", "show", "--property=SubState", "--value", waiter).stdout == "exited\n", "its end", 30)
    server.run("journalctl", "--sync")
    assert server.run("journalctl", "--output=cat", f"_SYSTEMD_UNIT={waiter}").stdout == "from the laptop\n"


def test_another_user_is_refused(client: Started, server: Container) -> None:
    refused = server.run_as("other", "cat", f"{MOUNT}/hello")
    assert refused.returncode != 0
    assert "Permission denied" in refused.stderr
    assert "Permission denied" in server.run("setpriv", "--reuid=other", "--clear-groups", "ls", MOUNT, check=False).stderr


def test_the_policy_refuses_and_the_journal_tells(client: Started, server: Container) -> None:
    refused = server.run_as("acme-build", "cat", f"{MOUNT}/.env")
    assert "Permission denied" in refused.stderr
    server.run("journalctl", "--sync")
    assert "/.env" in server.run("fuse-gatectl", "audit", "--tenant", "acme", "--decision", "denied").stdout
    assert ": whole: records 1.." in server.run("fuse-gatectl", "audit", "--verify").stdout


def test_no_sandboxing_was_given_up(client: Started, server: Container) -> None:
    """What systemd cannot do in a container it leaves out, and says so. With the rights of our compose file it can."""
    server.run("journalctl", "--sync")
    said = server.run("journalctl", "--output=cat", *(f"--unit={unit}" for unit in SERVICES), "_PID=1").stdout
    assert "Started" in said
    assert [line for line in said.splitlines() if "proceeding without" in line or "ailed to" in line] == []
    pid = server.run("systemctl", "show", "--property=MainPID", "--value", "fuse-gated.service").stdout.strip()
    for kind in ("mnt", "net", "user"):
        own, daemon = (server.run("readlink", f"/proc/{who}/ns/{kind}").stdout for who in (1, pid))
        assert own != daemon, kind


def test_a_restart_of_the_service_is_no_outage(client: Started, server: Container, laptop: Container) -> None:
    """systemd keeps descriptors in a container too: a file that is open stays so."""
    script = f"exec 3<{MOUNT}/hello; touch {MOUNT}/opened; until [ -e {MOUNT}/restarted ]; do sleep 0.1; done; cat <&3"
    server.run("systemd-run", "--unit=reader", "--remain-after-exit", "--property=User=acme-build", "--", "sh", "-c", script)
    until(lambda: laptop.run("test", "-e", "/home/me/project/opened", check=False).returncode == 0, "the file is open", 30)
    before = server.run("systemctl", "show", "--property=MainPID", "--value", "fuse-gated.service").stdout
    server.run("systemctl", "restart", "fuse-gated.service")
    assert server.run("systemctl", "show", "--property=MainPID", "--value", "fuse-gated.service").stdout != before
    laptop.run("touch", "/home/me/project/restarted", user="me")
    until(lambda: server.run("systemctl", "show", "--property=SubState", "--value", "reader").stdout == "exited\n", "its end", 30)
    server.run("journalctl", "--sync")
    assert server.run("journalctl", "--output=cat", "_SYSTEMD_UNIT=reader.service").stdout == "from the laptop\n"


def test_a_server_that_no_authority_vouches_for_gets_no_token(client: Started, laptop: Container) -> None:
    refused = laptop.run(*CLIENT, "--name", "second", user="me", check=False)
    assert refused.returncode == 1
    assert "certificate" in refused.stderr


def test_the_client_leaves_and_the_mount_with_it(client: Started, server: Container) -> None:
    assert client.end() == 0
    until(lambda: server.run("test", "-e", MOUNT, check=False).returncode != 0, "the mount is gone", 30)
    assert mounts(server) == []


def mounts(server: Container) -> list[str]:
    """Where ours are."""
    fields = [line.split() for line in server.run("cat", "/proc/self/mountinfo").stdout.splitlines()]
    return [words[4] for words in fields if words[4].startswith("/run/fuse-gated/mnt/")]
