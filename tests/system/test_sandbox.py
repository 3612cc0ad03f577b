"""What the units' sandboxes keep from whoever takes the daemon or a worker over, and secrets that reach it all the same."""

import json
from pathlib import Path
from typing import Any

Guest = Any

DAEMON = "fuse-gated.service"
PROBE = Path(__file__).with_name("probe.py")
# Not where another error says as much: nothing is there, or there is no such call.
REFUSALS = {"EPERM", "EACCES", "EROFS", "ENOENT", "ENOSYS", "EAFNOSUPPORT"}


def test_what_code_in_the_daemons_place_cannot_do(service: Guest) -> None:
    service.write("/opt/probe.py", PROBE.read_text())
    service.write("/tmp/of-another", "secret")
    service.path("/home/somebody").mkdir(exist_ok=True)
    client = service.client().mounted()
    command = f"/usr/bin/python3 -I /opt/probe.py {service.main_pid(DAEMON)} {client.mount}"
    service.drop_in(DAEMON, f"[Service]\nExecReload=\nExecReload={command}\n")
    service.run("systemctl", "restart", DAEMON)
    service.client("again").mounted()
    service.run("systemctl", "reload", DAEMON)
    (told,) = [line for entry in service.journal("-u", DAEMON) if (line := str(entry["MESSAGE"])).startswith("PROBE ")]
    outcome = json.loads(told.removeprefix("PROBE "))
    assert outcome.pop("capabilities") == "0" * 16
    # The daemon, the worker, and itself.
    assert outcome.pop("processes") <= 3
    assert {name: said for name, said in outcome.items() if said not in REFUSALS} == {}
    assert len(outcome) > 30


def test_tls_with_a_key_that_only_root_can_read(service: Guest) -> None:
    store = "/etc/credstore"
    service.path(store).mkdir(mode=0o700, exist_ok=True)
    make = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout {store}/fuse-gated.key"
    service.run(*make.split(), "-out", f"{store}/fuse-gated.pem", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1")
    service.run("cp", f"{store}/fuse-gated.pem", "/etc/ca.pem")
    passed = "/run/credentials/fuse-gated.service"
    try:
        service.write_settings({"tls": {"certificate": f"{passed}/fuse-gated.pem", "key": f"{passed}/fuse-gated.key"}})
        look = ["setpriv", "--reuid=fuse-gated", "--clear-groups", "cat", f"{store}/fuse-gated.key"]
        assert service.run(*look, check=False).stdout == ""
        client = service.client("web", "--ca", "/etc/ca.pem", server="wss://127.0.0.1:7433").mounted()
        service.path(f"{client.export}/file").write_text("hello")
        assert service.run_as("reader", "cat", f"{client.mount}/file").stdout == "hello"
        assert service.run_as("reader", "cat", f"{passed}/fuse-gated.key", check=False).returncode == 1
        # Who comes without TLS gets no session.
        assert service.client("plain").wait_for_end() != 0
    finally:
        service.run("rm", "-r", store)


def test_mounts_are_seen_by_services_that_were_there_before(service: Guest) -> None:
    """A service with a file namespace of its own gets mounts made later, and sees them go."""
    service.run("systemd-run", "--unit=early", "--property=User=reader", "--property=ProtectSystem=strict", "sleep", "infinity")
    try:
        client = service.client().mounted()
        service.path(f"{client.export}/file").write_text("hello")
        early = str(service.main_pid("early.service"))
        inside = ["nsenter", "-t", early, "-m", "setpriv", "--reuid=reader", "--clear-groups", "cat", f"{client.mount}/file"]
        assert service.run(*inside).stdout == "hello"
        service.run("systemctl", "stop", DAEMON)
        assert service.run(*inside, check=False).returncode == 1
        assert "/run/fuse-gated/mnt/" not in service.path(f"/proc/{early}/mountinfo").read_text()
    finally:
        service.run("systemctl", "stop", "early.service")
