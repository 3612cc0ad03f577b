"""What tell-stop (packaging/libexec) makes of systemd's jobs: who is stopped for good is told by SIGUSR2 before SIGTERM."""

import contextlib
import os
import select
import time
from collections.abc import Iterator
from typing import Any

import pytest

Guest = Any

PATIENCE = 30.0
PROBE, NEEDED, OTHER = "probe.service", "needed.service", "other.target"
PROGRAM = """
import os, signal, time
told = os.open("/srv/told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
signal.signal(signal.SIGUSR2, lambda *_: os.write(told, b"for good, "))
signal.signal(signal.SIGTERM, lambda *_: os._exit(os.write(told, b"end\\n") and 0))
os.write(told, b"begin\\n")
while True:
    time.sleep(1)
"""
UNITS = {
    PROBE: f"""
        [Unit]
        Requires={NEEDED}
        After={NEEDED}
        [Service]
        Type=exec
        ExecStart=python3 /srv/probe.py
        ExecStop=+/usr/libexec/fuse-gated/tell-stop %n
        Restart=on-failure
        RestartSec=10ms
        User=fuse-gated
        PrivateUsers=yes
        ProtectSystem=strict
        ReadWritePaths=/srv
        PrivateNetwork=yes
        NoNewPrivileges=yes
    """,
    NEEDED: "[Service]\nExecStart=sleep infinity\n",
    OTHER: "[Unit]\nAllowIsolate=yes\nRequires=dbus.service systemd-journald.service\n",
}


class Probe:
    """A service that writes down what it is told."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        guest.write("/srv/probe.py", PROGRAM)
        guest.write("/srv/told", "", 0o666)
        for name, text in UNITS.items():
            guest.write(f"/run/systemd/system/{name}", "\n".join(line.strip() for line in text.splitlines()))
        guest.run("systemctl", "daemon-reload")
        guest.run("systemctl", "start", PROBE)
        self.wait_for("begin\n")

    def told(self) -> str:
        return str((self.guest.upper / "srv/told").read_text())

    def wait_for(self, ending: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.told().endswith(ending):
            assert time.monotonic() < end, f"{self.told()!r}, not {ending!r}"
            time.sleep(0.02)


@pytest.fixture
def probe(guest: Guest) -> Iterator[Probe]:
    made = Probe(guest)
    yield made
    guest.run("systemctl", "stop", PROBE, NEEDED)


@pytest.mark.parametrize(
    "command",
    [
        ("restart", PROBE),
        ("try-restart", PROBE),
        ("reload-or-restart", PROBE),
        ("restart", NEEDED),
        ("restart", NEEDED, PROBE),
        ("restart", "--no-block", PROBE),
        ("kill", "--signal=KILL", "--kill-whom=main", PROBE),
    ],
    ids=" ".join,
)
def test_who_comes_back_is_told_nothing(probe: Probe, command: tuple[str, ...]) -> None:
    probe.guest.run("systemctl", *command)
    probe.wait_for("begin\n" if "kill" in command else "end\nbegin\n")
    probe.wait_for("begin\nbegin\n" if "kill" in command else "begin\nend\nbegin\n")


@pytest.mark.parametrize("command", [("stop", PROBE), ("stop", NEEDED), ("isolate", OTHER)], ids=" ".join)
def test_who_does_not_is_told_so_first(probe: Probe, command: tuple[str, ...]) -> None:
    probe.guest.run("systemctl", *command)
    probe.wait_for("begin\nfor good, end\n")
    if "isolate" in command:
        probe.guest.run("systemctl", "isolate", "default.target")


def test_a_stop_after_a_restart_is_one(probe: Probe) -> None:
    probe.guest.run("systemctl", "restart", PROBE)
    probe.wait_for("begin\nend\nbegin\n")
    probe.guest.run("systemctl", "stop", PROBE)
    probe.wait_for("begin\nend\nbegin\nfor good, end\n")


def test_one_that_ended_by_itself_is_nobody_to_tell(probe: Probe) -> None:
    probe.guest.run("systemctl", "kill", "--signal=TERM", "--kill-whom=main", PROBE)
    probe.wait_for("begin\nend\n")
    assert probe.guest.show(PROBE, "Result") == "success"


@pytest.mark.parametrize("how", ["poweroff", "reboot"])
def test_at_the_end_of_the_machine_it_is_told(mortal: Guest, how: str) -> None:
    probe = Probe(mortal)
    ended = os.pidfd_open(mortal.leader)
    with contextlib.suppress(AssertionError):
        # It may be gone before it has answered.
        mortal.run("systemctl", "--no-block", how)
    assert select.select([ended], [], [], PATIENCE)[0], "it does not end"
    os.close(ended)
    assert probe.told() == "begin\nfor good, end\n"
