"""edge/peers.py: who is at the other end of a socket."""

import os
import socket

import pytest
from harness import Persona
from harness.needs import need

from fuse_gated.edge.peers import peer_of


def test_ourselves() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert peer_of(ours) == (os.getpid(), os.geteuid(), os.getegid(), (os.getegid(), *os.getgroups()))


@pytest.mark.parametrize("count", [0, 3, 1000])
def test_somebody_with_groups(count: int) -> None:
    need("root")
    groups = tuple(range(70_000, 70_000 + count))

    def met() -> tuple[int, ...]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            return tuple(peer_of(ours))[1:]

    assert Persona(61001, 61002, groups).call(met) == (61001, 61002, (61002, *groups))


def test_what_has_no_peer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert peer_of(sock).groups[1:] == ()
