import pytest

from fuse_gated.gate.proxies import TrustedProxies

LISTED = TrustedProxies(["127.0.0.1", "10.1.0.0/16", "2001:db8::/32", "fe80::1"])


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "::ffff:10.1.2.3", "2001:db8:5::1", "fe80::1%eth0"])
def test_who_is_one(address: str) -> None:
    assert LISTED.trusts(address)


@pytest.mark.parametrize("address", ["127.0.0.2", "10.2.0.0", "::1", "2001:db9::1", "", "unix", "@abstract"])
def test_who_is_none(address: str) -> None:
    assert not LISTED.trusts(address)
    assert not TrustedProxies(()).trusts(address)


def test_a_unix_socket() -> None:
    assert TrustedProxies(["unix"]).trusts("")
    assert not TrustedProxies(["unix"]).trusts("127.0.0.1")


@pytest.mark.parametrize("address", ["proxy.example.org", "10.1.2.3/16", "127.0.0.1:80", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        TrustedProxies([address])
