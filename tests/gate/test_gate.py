"""What the tables (test_tables.py) do not say of the gate."""

import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_gated.errors import UsageError
from fuse_gated.gate.gate import OPERATIONS, Gate
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.gate.verdict import ALL, ALLOWED, EXECUTE, READ, WRITE, Rule

NOBODY = Identity(owner_uid=1000, owner_gid=1000)
EVERYTHING = Rule("/**", allow=ALL, place="policy.yaml:9")


def gate(*rules: Rule, read_only: bool = False, identity: Identity = NOBODY) -> Gate:
    return Gate(Tenant(name="acme", rules=rules), identity, read_only=read_only)


def test_a_verdict_names_the_rule_and_says_why() -> None:
    judged = gate(Rule("/x", deny=WRITE), Rule("/.env", hide=True, place="a.yaml:3"), Rule("/r", allow=READ), EVERYTHING)
    assert judged.write(b"x").rule == "/x"
    assert judged.write(b"x").reason == "the rule denies write"
    assert judged.write(b"y").rule == "/** (policy.yaml:9)"
    assert judged.see(b".env").rule == "/.env (a.yaml:3)"
    assert judged.see(b".env").reason == "hidden by the rule"
    assert judged.create(b".env").reason == "the rule hides what has this name"
    assert gate(Rule("/r", allow=READ)).write(b"r").reason == "no rule allows write here"
    assert gate(Rule("/r", allow=READ)).see(b"s").reason == "no rule allows anything here or beneath"
    unlisted = gate(Rule("/r", allow=WRITE)).list(b"r").reason
    assert unlisted == "the directory may not be read, and nothing beneath it may be listed"
    assert gate(EVERYTHING, read_only=True).write(b"r").reason == "the export is read-only"
    assert judged.see(b"") is ALLOWED


def test_a_refused_move_says_what_would_be_gained() -> None:
    judged = gate(Rule("/a", deny=READ | EXECUTE), EVERYTHING)
    assert judged.rename(b"a", b"b", directory=False).reason == (
        "the new name would grant read and execute, which the old one denies: copy it"
    )
    assert "copy it" in judged.rename(b"a", b"b", directory=True).reason


def test_refusals_are_made_once() -> None:
    judged = gate(Rule("/a", deny=READ))
    assert judged.read(b"a") is judged.read(b"a")
    assert judged.read(b"b") is judged.read(b"c")


@pytest.mark.parametrize(
    ("rules", "mode", "shown"),
    [
        ([EVERYTHING], 0o100755, 0o100755),
        ([Rule("/**", allow=READ)], 0o100755, 0o100644),
        ([Rule("/**", allow=READ)], 0o106755, 0o106644),
        ([Rule("/**", allow=READ)], 0o100644, 0o100644),
        ([Rule("/**", allow=READ)], 0o040755, 0o040755),
        ([Rule("/**", allow=READ)], 0o120777, 0o120777),
        ([Rule("/f", deny=EXECUTE), EVERYTHING], 0o100111, 0o100000),
    ],
)
def test_shown_mode(rules: list[Rule], mode: int, shown: int) -> None:
    assert stat.filemode(gate(*rules).shown_mode(b"f", mode)) == stat.filemode(shown)


@pytest.mark.parametrize(
    ("identity", "uid", "may"),
    [
        (Identity(owner_uid=1, owner_gid=1, uids=(1000, 1001)), 1001, True),
        (Identity(owner_uid=1, owner_gid=1, uids=(1000, 1001)), 1, False),
        # Who is in the group only the kernel knows.
        (Identity(owner_uid=1, owner_gid=1, gids=(100,)), 4242, True),
        (Identity(owner_uid=1, owner_gid=1, anyone=True), 4242, True),
        (Identity(owner_uid=1, owner_gid=1), 0, True),
        (Identity(owner_uid=1, owner_gid=1), 1, False),
    ],
)
def test_who_may_enter(identity: Identity, uid: int, may: bool) -> None:
    assert gate(EVERYTHING, identity=identity).caller_may_enter(uid) is may


@pytest.mark.parametrize(
    ("rules", "any_execute"),
    [
        ([], False),
        ([Rule("/**", allow=READ | WRITE)], False),
        ([Rule("/**", deny=EXECUTE)], False),
        ([Rule("/bin/*", allow=EXECUTE)], True),
    ],
)
def test_whether_any_rule_allows_execute(rules: list[Rule], any_execute: bool) -> None:
    assert gate(*rules).any_execute is any_execute


def test_attributes_in_a_listing_are_those_that_may_be_looked_up() -> None:
    judged = gate(Rule("/hidden", hide=True), Rule("/", allow=READ), Rule("/a/b", allow=READ))
    assert not judged.attributes_may_be_shown(b"hidden")
    # Listed, because the root may be read, but no more than its name is shown.
    assert judged.entry_is_listed(b"", b"denied")
    assert not judged.attributes_may_be_shown(b"denied")
    assert judged.attributes_may_be_shown(b"a")


def test_narrowed() -> None:
    wide = gate(EVERYTHING)
    assert not wide.narrowed(wide, b"a")
    assert not gate(EVERYTHING).narrowed(gate(Rule("/**", allow=READ)), b"a")
    assert gate(Rule("/**", allow=READ)).narrowed(wide, b"a")
    assert gate(Rule("/a", deny=WRITE), EVERYTHING).narrowed(wide, b"a")
    assert not gate(Rule("/a", deny=WRITE), EVERYTHING).narrowed(wide, b"b")
    assert gate(Rule("/a", hide=True), EVERYTHING).narrowed(wide, b"a")
    assert gate(Rule("/a", hide=True), EVERYTHING).narrowed(wide, b"a/beneath")
    assert gate(EVERYTHING, read_only=True).narrowed(wide, b"a")
    assert not wide.narrowed(gate(EVERYTHING, read_only=True), b"a")
    # Nothing may be done with the directory itself before or after, but the way through it is gone.
    way = gate(Rule("/a/x", allow=READ))
    assert gate(Rule("/a/x", deny=READ)).narrowed(way, b"a")
    # What may be listed changes from the ways to what may be written to the ways to what may be read.
    before, after = gate(Rule("/a/x", allow=WRITE | READ)), gate(Rule("/a/x", allow=WRITE | READ), Rule("/a", allow=WRITE))
    assert after.narrowed(before, b"a")


def test_judging_by_name() -> None:
    judged = gate(EVERYTHING)
    with pytest.raises(UsageError, match=r"no operation is called 'destroy'.*there are lookup, getattr") as unknown:
        judged.judge("destroy", b"a")
    assert unknown.value.exit_status == 2
    with pytest.raises(UsageError, match="'rename' has two paths"):
        judged.judge("rename", b"a")
    for name, operation in OPERATIONS.items():
        assert judged.judge(name, b"a", b"b" if operation.two_paths else None).allowed
        assert operation.help


names = st.sampled_from(["a", "b", "*", "**", "a*"])
rules = st.lists(
    st.builds(
        lambda parts, allow, deny, hide: Rule("/" + "/".join(parts), 0 if hide else allow, deny, hide),
        st.lists(names, min_size=1, max_size=3),
        st.sampled_from([0, ALL, ALL, READ, WRITE]),
        st.sampled_from([0, 0, READ, WRITE, EXECUTE]),
        st.sampled_from([False, False, False, True]),
    ),
    max_size=5,
)
paths = st.lists(st.sampled_from([b"a", b"b", b"ab"]), min_size=1, max_size=3).map(b"/".join)


@given(rules, paths, st.lists(paths, max_size=6))
@settings(max_examples=500, deadline=None)
def test_however_a_file_travels_it_never_gains(chosen: list[Rule], start: bytes, stops: list[bytes]) -> None:
    judged = gate(*chosen)
    before, here = judged.rules.standing(start).rights, start
    for stop in stops:
        for verdict in (
            judged.rename(here, stop, directory=False),
            judged.rename(here, stop, directory=False, exchange=True),
            judged.link(here, stop),
        ):
            if verdict.allowed:
                assert judged.see(stop).allowed
                assert not judged.rules.standing(stop).rights & ~before
        if judged.rename(here, stop, directory=False).allowed:
            here, before = stop, before & judged.rules.standing(stop).rights


@given(rules, paths)
@settings(max_examples=500, deadline=None)
def test_what_is_hidden_answers_as_if_it_were_not_there(chosen: list[Rule], path: bytes) -> None:
    judged = gate(*chosen)
    if judged.see(path).errno != "ENOENT":
        return
    for name, operation in OPERATIONS.items():
        verdict = judged.judge(name, path, b"other" if operation.two_paths else None)
        if name in ("create", "mknod", "mkdir", "symlink"):
            assert verdict.errno in ("EACCES", "ENOENT")
        elif name not in ("flush", "release", "fsync", "releasedir", "fsyncdir"):
            assert verdict.errno == "ENOENT"
