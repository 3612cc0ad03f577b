"""Sessions of the installed service, used without their mounts: the daemon knows from inside its sandbox who asks."""

import json
from typing import Any

Guest = Any


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
