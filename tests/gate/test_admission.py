import datetime
import hashlib
import hmac

import pytest

from fuse_gated.gate.admission import Logins, Startups, may_attach, may_open
from fuse_gated.gate.tenant import Exports, Identity, Tenant, Token

TODAY = datetime.date(2026, 6, 1)


def test_startups_are_counted_overall() -> None:
    startups = Startups(most=3, per_address=10)
    assert [startups.admit(f"192.0.2.{number}") for number in range(3)] == [None] * 3
    refusal = startups.admit("192.0.2.9")
    assert refusal is not None
    assert (refusal.status, "3 connections have not logged in yet" in refusal.reason) == (503, True)
    startups.done("192.0.2.1")
    assert startups.count == 2
    assert startups.admit("192.0.2.9") is None


def test_startups_are_counted_by_address() -> None:
    startups = Startups(most=100, per_address=2)
    assert [startups.admit("192.0.2.1") for _ in range(2)] == [None, None]
    refusal = startups.admit("192.0.2.1")
    assert refusal is not None
    assert (refusal.status, "2 connections from 192.0.2.1" in refusal.reason) == (429, True)
    assert startups.admit("192.0.2.2") is None
    startups.done("192.0.2.1")
    assert startups.admit("192.0.2.1") is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "", True),
        ("@abstract", "@other", False),
    ],
)
def test_what_counts_as_one_address(first: str, second: str, same: bool) -> None:
    startups = Startups(most=100, per_address=1)
    assert startups.admit(first) is None
    assert (startups.admit(second) is not None) is same


def test_a_refused_connection_is_not_counted_and_nothing_is_kept() -> None:
    startups = Startups(most=100, per_address=1)
    startups.admit("")
    refusal = startups.admit("")
    assert refusal is not None
    assert "from here" in refusal.reason
    assert startups.count == 1
    startups.done("")
    startups.done("")
    assert startups.count == 0
    assert not startups._addresses


def test_startups_change() -> None:
    startups = Startups(most=1, per_address=1)
    startups.admit("192.0.2.1")
    startups.change(3, 2)
    assert startups.admit("192.0.2.1") is None
    startups.change(1, 1)
    assert startups.admit("192.0.2.2") is not None


def test_a_proxys_connections_are_counted_where_they_come_from() -> None:
    startups = Startups(most=6, per_address=2)
    assert [startups.admit("127.0.0.1", proxy=True) for _ in range(4)] == [None] * 4
    assert [startups.move("127.0.0.1", "192.0.2.1") for _ in range(2)] == [None, None]
    refusal = startups.move("127.0.0.1", "192.0.2.1")
    assert refusal is not None
    assert (refusal.status, "2 connections from 192.0.2.1" in refusal.reason) == (429, True)
    # What is refused stays the proxy's until it is gone; and who comes by no proxy is counted with the others.
    assert startups.count == 4
    assert startups.admit("192.0.2.1") is not None
    assert startups.move("127.0.0.1", "192.0.2.2") is None
    startups.done("192.0.2.1")
    assert startups.admit("192.0.2.1") is None
    startups.done("127.0.0.1")
    assert dict(startups._addresses) == {"192.0.2.1": 2, "192.0.2.2": 1}


def test_proxies_have_no_more_than_there_is() -> None:
    startups = Startups(most=2, per_address=1)
    assert [startups.admit("127.0.0.1", proxy=True) for _ in range(2)] == [None, None]
    refusal = startups.admit("127.0.0.1", proxy=True)
    assert refusal is not None
    assert refusal.status == 503


def digest(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


ACME = Tenant(
    name="acme",
    tokens=(Token(digest(b"one")), Token(digest(b"last day"), TODAY), Token(digest(b"old"), TODAY - datetime.timedelta(1))),
)
OTHER = Tenant(name="other", tokens=(Token(digest(b"two").upper(), note="ci"),))


def test_whose_token() -> None:
    logins = Logins([ACME, OTHER])
    assert logins.find(digest(b"one"), TODAY).tenant is ACME
    assert logins.find(digest(b"one").upper(), TODAY).outcome == "tenant"
    found = logins.find(digest(b"two"), TODAY)
    assert found.tenant is OTHER
    assert found.token is not None
    assert found.token.note == "ci"
    assert logins.find(digest(b"last day"), TODAY).outcome == "tenant"
    expired = logins.find(digest(b"old"), TODAY)
    assert (expired.outcome, expired.tenant) == ("expired", ACME)


def test_an_unknown_token() -> None:
    # The last ones are no digests at all: a worker that was taken over may send anything.
    for wrong in ("", "0" * 64, digest(b"one")[:-1], digest(b"one") + "0", "é" * 64, "\udcff", "\ud800"):
        login = Logins([ACME, OTHER]).find(wrong, TODAY)
        assert (login.outcome, login.tenant, login.token) == ("unknown", None, None)


def test_a_token_that_two_tenants_have_lets_into_the_first_where_it_is_valid() -> None:
    old = Tenant(name="old", tokens=(Token(digest(b"t"), TODAY - datetime.timedelta(1)),))
    new = Tenant(name="new", tokens=(Token(digest(b"t")),))
    assert Logins([old, new, OTHER]).find(digest(b"t"), TODAY).tenant is new
    assert Logins([new, old]).find(digest(b"t"), TODAY).tenant is new


def test_every_token_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return genuine(one, other)

    genuine = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    Logins([ACME, OTHER]).find(digest(b"one"), TODAY)
    assert len(compared) == 4


def test_which_exports_a_tenant_may_open() -> None:
    tenant = Tenant(name="acme", exports=Exports("ci-*", 2))
    assert may_open(tenant, "ci-1", []) is None
    assert may_open(tenant, "ci-2", ["ci-1"]) is None


@pytest.mark.parametrize(
    ("export", "open_exports", "status", "message"),
    [
        ("", [], 403, "'' is no export's name"),
        ("ci-/", [], 403, "'ci-/' is no export's name"),
        ("../x", [], 403, "is no export's name"),
        ("CI-1", [], 403, "is no export's name"),
        ("ci-\n", [], 403, r"'ci-\n' is no export's name"),
        ("ci-" + "x" * 1000, [], 403, "xxx...' is no export's name"),
        ("laptop", [], 403, "may not use the export name 'laptop', only 'ci-*'"),
        ("ci-1", ["ci-1"], 409, "'ci-1' is already open"),
        ("ci-1", ["ci-2", "ci-1"], 409, "'ci-1' is already open"),
        ("ci-3", ["ci-2", "ci-1"], 429, "has 2 exports open"),
    ],
)
def test_which_exports_it_may_not_open(export: str, open_exports: list[str], status: int, message: str) -> None:
    refusal = may_open(Tenant(name="acme", exports=Exports("ci-*", 2)), export, open_exports)
    assert refusal is not None
    assert refusal.status == status
    assert message in refusal.reason
    assert len(refusal.reason) < 300


@pytest.mark.parametrize(
    ("identity", "ownership", "uid", "gids", "may"),
    [
        (Identity(owner_uid=0, owner_gid=0), "mapped", 0, (), True),
        (Identity(owner_uid=0, owner_gid=0), "mapped", 7, (0,), False),
        (Identity(owner_uid=0, owner_gid=0, uids=(7, 8)), "mapped", 8, (), True),
        (Identity(owner_uid=0, owner_gid=0, uids=(7, 8), gids=(5,)), "mapped", 9, (4, 6), False),
        (Identity(owner_uid=0, owner_gid=0, uids=(7, 8), gids=(5,)), "mapped", 9, (4, 5), True),
        (Identity(owner_uid=0, owner_gid=0, anyone=True), "mapped", 9, (), True),
        (Identity(owner_uid=0, owner_gid=0, anyone=True), "passthrough", 9, (), False),
        (Identity(owner_uid=0, owner_gid=0), "passthrough", 0, (), True),
    ],
)
def test_who_may_attach(identity: Identity, ownership: str, uid: int, gids: tuple[int, ...], may: bool) -> None:
    why = may_attach(Tenant(name="acme", ownership=ownership), identity, uid, gids)
    assert (why is None) == may
    if identity.anyone and not may:
        assert why is not None
        assert why.startswith("tenant acme passes ownership through")
