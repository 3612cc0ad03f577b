"""What journald has of it: fields that nobody else can send, the catalog, and not one record lost."""

import os
from typing import Any

import pytest

Guest = Any

DAEMON = "fuse-gated.service"
DENY = {"path": "/secret*", "deny": ["read"]}
BURST = 50_000


def test_records_carry_what_journald_vouches_for(service: Guest) -> None:
    client = service.client().mounted()
    uid = int(service.run("id", "-u", "fuse-gated").stdout)
    (record,) = service.journal("FUSE_GATED_KIND=session-opened", f"_SYSTEMD_UNIT={DAEMON}", "--since=-5min")[-1:]
    assert record["FUSE_GATED_TENANT"] == "acme"
    assert record["FUSE_GATED_EXPORT"] == client.name
    assert int(record["_UID"]) == uid
    assert int(record["_PID"]) in service.workers()
    shown = service.run("journalctl", "-x", "--no-pager", f"MESSAGE_ID={record['MESSAGE_ID']}", "-n", "1").stdout
    assert "Subject: The export acme/web was mounted" in shown


def test_names_that_are_no_text_survive(service: Guest) -> None:
    service.write_policy(service.policy(DENY))
    client = service.client().mounted()
    name = b"secret\n\xff\"'"
    with open(os.fsencode(service.path(client.export)) + b"/" + name, "wb"):
        pass
    script = f"import os; os.open({os.fsencode(client.mount) + b'/' + name!r}, os.O_RDONLY)"
    assert "Permission denied" in service.run_as("reader", "python3", "-c", script, check=False).stderr
    refused = service.journal(f"_SYSTEMD_UNIT={DAEMON}", "FUSE_GATED_DECISION=denied", "FUSE_GATED_EXPORT=web", "--since=-5min")
    paths = [bytes(path) if isinstance(path := record["FUSE_GATED_PATH"], list) else path.encode() for record in refused]
    assert b"/" + name in paths


@pytest.mark.timeout(900)
def test_not_one_record_of_a_burst_is_lost(service: Guest) -> None:
    """journald's own limit is 10,000 in 30 s (RateLimitBurst= of journald.conf(5))."""
    service.write_policy(service.policy({"path": "/kept", "deny": ["write"]}))
    # Not the 200/s at which refusals are answered: as fast as they come.
    service.write_settings({"audit": {"refusals": "100000/s"}})
    client = service.client().mounted()
    service.path(f"{client.export}/kept").write_text("")
    # Each refusal is a record. As root, whom the tenant's directory does not keep out.
    script = (
        f"import os; kept = os.open({client.mount + '/kept'!r}, os.O_RDONLY)\n"
        f"for _ in range({BURST}):\n"
        "    try: os.fchmod(kept, 0o600)\n"
        "    except PermissionError: pass\n"
    )
    session = client.wait_for("mounted")["session"]
    service.run("python3", "-c", script, timeout=600)
    client.stop()
    match = [f"_SYSTEMD_UNIT={DAEMON}", f"FUSE_GATED_SESSION={session}"]
    service.run("journalctl", "--sync")
    shown = ["-o", "cat", "--output-fields=FUSE_GATED_SEQUENCE"]
    told = service.run("journalctl", *shown, *match, "FUSE_GATED_DECISION=denied").stdout
    sequences = [int(line) for line in told.split()]
    assert len(sequences) == len(set(sequences)) == BURST
    assert service.run("fuse-gatectl", "audit", "--verify", "--session", session, timeout=600).returncode == 0


def test_journald_can_be_restarted_under_a_session(service: Guest) -> None:
    """Its socket is systemd's, so nothing is refused, and nothing is missing after it."""
    service.write_policy(service.policy(audit="everything"))
    client = service.client().mounted()
    session = client.wait_for("mounted")["session"]
    for round_ in range(3):
        service.run("systemctl", "restart", "systemd-journald.service")
        service.path(f"{client.export}/file").write_text(f"round {round_}")
        assert service.run_as("reader", "cat", f"{client.mount}/file").stdout == f"round {round_}"
    client.stop()
    service.run("journalctl", "--sync")
    verified = service.run("fuse-gatectl", "audit", "--verify", "--session", session)
    assert "whole" in verified.stdout
    assert "still open" not in verified.stdout
