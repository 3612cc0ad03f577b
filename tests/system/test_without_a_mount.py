"""Sessions of the installed service, used without their mounts: the daemon knows from inside its sandbox who asks."""

import json
import time
from collections.abc import Callable
from typing import Any

Guest = Any


def until(condition: Callable[[], Any], what: str, patience: float = 30.0) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"not within {patience:g} s: {what}"
        time.sleep(0.05)


def test_who_may_attach(service: Guest) -> None:
    client = service.client().mounted()
    service.path(f"{client.export}/f").write_text("content")
    place = f"acme/{client.name}:f"
    assert service.run_as("reader", "fuse-gatectl", "files", "cat", place).stdout == "content"
    refused = service.run_as("other", "fuse-gatectl", "files", "cat", place, check=False)
    assert refused.returncode == 1
    assert f"there is no session 'acme/{client.name}' that uid " in refused.stderr
    assert "uid 65534" not in refused.stderr, "the daemon sees no numbers of users"
    operator = service.run_as("reader", "fuse-gatectl", "sessions", check=False)
    assert "'sessions' is for the operator" in operator.stderr


def test_a_service_that_mounts_nothing(service: Guest) -> None:
    settings = service.path("/etc/fuse-gated/fuse-gated.yaml")
    before = settings.read_text()
    settings.write_text("drivers: [network]\n")
    try:
        client = service.client()
        assert client.wait_for("mounted")["path"] == ""
        service.path(f"{client.export}/f").write_text("content")
        shown = json.loads(service.run("fuse-gatectl", "sessions", "--json").stdout)
        assert [(session["driver"], session["mount"]) for session in shown] == [("network", "")]
        assert "f" in service.run_as("reader", "fuse-gatectl", "files", "ls", f"acme/{client.name}:").stdout.splitlines()
        assert "acme" not in service.run("ls", "/run/fuse-gated/mnt").stdout
    finally:
        settings.write_text(before)


def test_a_copy_in_the_mounts_place(service: Guest) -> None:
    """The daemon's unit sees nothing of /run/fuse-gated/mnt, and the keeper's may give nothing away: by access lists alone."""
    service.write_settings({"drivers": ["network"]})
    service.write_policy(service.policy(local={"size": "1MiB"}))
    client = service.client()
    assert client.wait_for("mounted")["path"] == client.mount
    there, here = service.path(client.export), service.path(client.mount)
    # Another content than the tests before have left there: else it may have come already, and what is written is a conflict.
    (there / "f").write_text("of the copy")
    until(lambda: service.run_as("reader", "cat", f"{client.mount}/f", check=False).stdout == "of the copy", "it has come")
    assert service.run_as("other", "ls", client.mount, check=False).returncode != 0
    service.run("runuser", "-u", "reader", "--", "sh", "-c", f"echo changed > {client.mount}/f; echo new > {client.mount}/g")
    until(lambda: (there / "g").exists() and (there / "f").read_text() == "changed\n", "it has gone")
    assert (there / "g").stat().st_mode & 0o777 == 0o644
    # Started anew, the service ends the session and leaves the copy; the client's next session goes on with it.
    service.run("systemctl", "restart", "fuse-gated.service")
    service.run("runuser", "-u", "reader", "--", "sh", "-c", f"echo meanwhile > {client.mount}/f")
    until(lambda: (there / "f").read_text() == "meanwhile\n", "it goes on")
    assert sorted(path.name for path in here.parent.iterdir()) == [client.name, f"{client.name}~copy"]
    client.stop()
    until(lambda: "acme" not in service.run("ls", "/run/fuse-gated/mnt").stdout, "nothing is left")
