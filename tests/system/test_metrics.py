"""Figures for a monitoring system, as the service that is installed tells them."""

from typing import Any

import pytest

Guest = Any

FETCH = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9433/metrics", timeout=20).read().decode())
"""


@pytest.fixture
def metrics(service: Guest) -> Any:
    service.run("systemctl", "start", "fuse-gated-metrics.socket")
    yield service
    service.run("systemctl", "stop", "fuse-gated-metrics.socket", "fuse-gated-metrics.service")


def fetch(guest: Guest) -> str:
    text: str = guest.run("python3", "-c", FETCH).stdout
    return text


def test_it_is_off_until_it_is_wanted(service: Guest) -> None:
    assert service.run("systemctl", "is-enabled", "fuse-gated-metrics.socket", check=False).stdout.strip() == "disabled"
    assert service.run("python3", "-c", FETCH, check=False).returncode != 0


def test_the_first_scrape_starts_it(metrics: Guest) -> None:
    metrics.client().mounted()
    assert metrics.show("fuse-gated-metrics.service", "ActiveState") == "inactive"
    assert "fuse_gated_up 1.0" in fetch(metrics)
    assert metrics.show("fuse-gated-metrics.service", "ActiveState") == "active"
    assert 'fuse_gated_sessions{state="mounted",tenant="acme"} 1.0' in fetch(metrics)
    # As the daemon's user, and with nothing but its sockets.
    status = metrics.path(f"/proc/{metrics.main_pid('fuse-gated-metrics.service')}/status").read_text()
    assert "CapEff:\t0000000000000000" in status
    assert metrics.run("id", "-u", "fuse-gated").stdout.strip() in status.split("Uid:")[1].splitlines()[0].split()


def test_the_daemon_may_be_away(metrics: Guest) -> None:
    assert "fuse_gated_up 1.0" in fetch(metrics)
    metrics.run("systemctl", "stop", "fuse-gated.service", "fuse-gated.socket")
    metrics.run("sleep", "1.1")
    assert "fuse_gated_up 0.0" in fetch(metrics)
    metrics.run("systemctl", "start", "fuse-gated.socket")
