"""fuse_gated/looking.py: what the daemon copies of its sessions, and keeps of those that ended."""

import os
import struct
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from harness.looks import block

from fuse_gated.edge.state import look
from fuse_gated.gate.tenant import Tenant
from fuse_gated.looking import Past, figured, seen
from fuse_gated.seat import Seat
from fuse_gated.turnstile.figures import Figures
from fuse_gated.turnstile.measures import SIZE

AT = 2**17 - SIZE


@pytest.fixture
def state() -> Iterator[int]:
    descriptor = os.memfd_create("state", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, 2**18)
    yield descriptor
    os.close(descriptor)


def seat(state: int, export: str = "src") -> Seat:
    made = Seat(None, Tenant(name="acme"), export)
    made.session, made.mounted, made.driver, made.address = f"session-{export}", True, "kernel", "192.0.2.7"
    made.descriptors = [-1, state]
    return made


class Daemon(SimpleNamespace):
    """As much of it as is looked at."""

    def __init__(self, *seats: Seat) -> None:
        found = SimpleNamespace(past=Past(), mounted=list(seats), find=lambda name: [one for one in seats if one.shown == name])
        super().__init__(seats=found, tenants={"acme": None}, draining=False, guests={1: None})


def test_a_session_is_copied_and_not_asked(state: int) -> None:
    os.pwrite(state, block(operations={"read": 7}), AT)
    os.pwrite(state, struct.pack("=Q", 3), 48)
    os.pwrite(state, struct.pack("=Q", 5), 64)
    os.pwrite(state, struct.pack("=Q", 4), 128)
    told = figured(seat(state), brief=False)
    assert (told.tenant, told.export, told.state, told.driver, told.address) == ("acme", "src", "mounted", "kernel", "192.0.2.7")
    assert (told.sealed, told.taken) == (5, 3)
    assert Figures.read(told.measures).operations[0].count == 7
    brief = figured(seat(state), brief=True)
    assert len(brief.measures) <= 512
    assert (Figures.read(brief.measures).count, Figures.read(brief.measures).operations) == (7, [])


@pytest.mark.parametrize("noise", [b"\xff" * 2**18, bytes(2**18), b""])
def test_whatever_is_there_it_can_be_told(state: int, noise: bytes) -> None:
    os.ftruncate(state, 0)
    os.pwrite(state, noise, 0)
    told = figured(seat(state), brief=False)
    assert 0 <= told.taken <= 2**63 - 1
    assert 0 <= told.sealed <= 2**63 - 1
    assert len(told.measures) <= SIZE


def test_what_is_asked_for(state: int) -> None:
    daemon: Any = Daemon(seat(state), seat(state, "docs"))
    assert [one.export for one in seen(daemon, {}, 5.0).sessions] == ["src", "docs"]
    told = seen(daemon, {"session": "acme/docs", "brief": True, "ended_after": 0}, 5.0)
    assert [one.export for one in told.sessions] == ["docs"]
    assert (told.uptime, told.tenants, told.connections, told.draining, told.ended, told.last_ended) == (5.0, 1, 1, False, [], 0)
    # Whoever asks is an operator, but may be of another version.
    assert seen(daemon, {"ended_after": "yesterday"}, 5.0).ended == []


def test_who_ended_is_known_for_a_while(state: int, monkeypatch: pytest.MonkeyPatch) -> None:
    os.pwrite(state, block(operations={"read": 7}), AT)
    daemon: Any = Daemon()
    past = daemon.seats.past
    for number in range(1005):
        past.add(seat(state, f"e{number}"))
    told = seen(daemon, {"ended_after": 1003}, 5.0)
    assert [(one.number, one.export) for one in told.ended] == [(1004, "e1003"), (1005, "e1004")]
    assert Figures.read(zlib.decompress(told.ended[0].measures)).count == 7
    assert len(told.ended[0].measures) < 200
    assert told.last_ended == 1005
    assert len(seen(daemon, {"ended_after": 0}, 5.0).ended) == 1000
    assert Past().name != past.name


def test_nothing_is_left_out_of_a_look(state: int) -> None:
    """But for the zeros at its end."""
    os.pwrite(state, b"\1" * SIZE, AT)
    assert look(state).measures == b"\1" * SIZE
