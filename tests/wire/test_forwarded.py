"""wire/forwarded.py: X-Forwarded-For."""

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fuse_gated.errors import ProtocolError
from fuse_gated.wire.forwarded import client_address

PROXIES = {"127.0.0.1", "10.0.0.1", "10.0.0.2"}


@pytest.mark.parametrize(
    ("values", "address"),
    [
        (["192.0.2.1"], "192.0.2.1"),
        ([" 192.0.2.1 "], "192.0.2.1"),
        # What stands first is the client's own word.
        (["198.51.100.66, 192.0.2.1"], "192.0.2.1"),
        (["nonsense, 192.0.2.1"], "192.0.2.1"),
        (["10.0.0.1, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        (["198.51.100.66", "192.0.2.1, 10.0.0.2", "10.0.0.1"], "192.0.2.1"),
        # Proxies alone: the first one is the client itself.
        (["10.0.0.2, 10.0.0.1"], "10.0.0.2"),
        (["192.0.2.1:4711"], "192.0.2.1"),
        (["2001:DB8::1"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["::ffff:192.0.2.1"], "192.0.2.1"),
        (["::ffff:10.0.0.1"], "10.0.0.1"),
    ],
)
def test_whose_request_it_is(values: list[str], address: str) -> None:
    assert client_address(values, PROXIES.__contains__) == address


@pytest.mark.parametrize(
    "value", ["unknown", "unix:", "", "192.0.2.1,", "192.0.2.1, _hidden", "fe80::1%eth0", "[192.0.2.1", "192.0.2.1:port", "\x00"]
)
def test_what_is_no_address(value: str) -> None:
    with pytest.raises(ProtocolError, match="which is no address"):
        client_address([value], PROXIES.__contains__)


def test_what_is_long_is_shown_in_part() -> None:
    with pytest.raises(ProtocolError) as raised:
        client_address(["\n" * 1000], PROXIES.__contains__)
    assert raised.value.message == "in its X-Forwarded-For stands '', which is no address"
    with pytest.raises(ProtocolError) as raised:
        client_address(["a\u00e9" * 1000], PROXIES.__contains__)
    assert len(raised.value.message) < 300
    assert raised.value.message.isascii()


def test_none_at_all() -> None:
    with pytest.raises(ProtocolError, match="it sent no X-Forwarded-For"):
        client_address([], PROXIES.__contains__)


@given(st.lists(st.text(max_size=60), max_size=4), st.lists(st.ip_addresses(), min_size=1, max_size=4))
def test_a_client_cannot_say_who_it_is(claimed: list[str], passed: list[ipaddress.IPv4Address]) -> None:
    """Whatever it sends in front: the proxies wrote the rest, of which the first is the client's."""
    client, *proxies = [str(getattr(address, "ipv4_mapped", None) or address) for address in passed]
    assume(client not in proxies)
    assert client_address([*claimed, ", ".join(map(str, passed))], set(proxies).__contains__) == client
