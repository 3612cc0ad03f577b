"""A copy in memory: what comes, what goes, what is kept twice; and that nothing is lost whatever people do and whenever it is
killed."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_gated.replica.ledger import Begun, encode
from fuse_gated.replica.names import LONGEST, TOLD
from fuse_gated.replica.version import DIRECTORY, FILE, LINK, Version

CONFLICT, REFUSED = b".conflict-5e551017-1", b".refused-5e551017-1"


# Both ways.


def test_what_the_client_has_comes(world):
    world.far.mkdir(b"d")
    world.far.put(b"d/f", b"content", 0o755)
    world.far.symlink(b"d/l", b"../d/f")
    world.settle()
    assert world.near.content(b"d/f") == b"content"
    assert world.near.nodes[b"d/l"][0] == Version(LINK, target=b"../d/f")
    assert world.copy.again == set()


def test_what_is_written_here_goes(world):
    world.near.mkdir(b"d")
    world.near.put(b"d/f", b"content", 0o770)
    world.near.symlink(b"l", b"d/f")
    world.settle()
    assert (world.far.content(b"d/f"), world.far.nodes[b"d/f"][0].mode) == (b"content", 0o755)
    assert world.far.nodes[b"l"][0].target == b"d/f"
    assert world.temporaries() == []
    assert not world.copy.unsent


@pytest.mark.parametrize("exchanges", [True, False])
def test_edits_go_both_ways(world, exchanges):
    world.far.exchanges = exchanges
    world.far.put(b"f", b"one", 0o640)
    world.settle()
    world.near.put(b"f", b"two", 0o660)
    world.settle()
    assert (world.far.content(b"f"), world.far.nodes[b"f"][0].mode) == (b"two", 0o640)
    world.far.put(b"f", b"three")
    world.settle()
    assert world.near.content(b"f") == b"three"
    world.near.symlink(b"f", b"elsewhere")
    world.settle()
    assert world.far.nodes[b"f"][0].target == b"elsewhere"
    world.far.symlink(b"f", b"other")
    world.settle()
    assert world.near.nodes[b"f"][0].target == b"other"
    assert world.files(world.far) == {}
    assert world.temporaries() == []


def test_removals_go_both_ways(world):
    world.far.mkdir(b"d")
    for name in (b"d/f", b"d/g"):
        world.far.put(name, b"x")
    world.settle()
    world.near.drop(b"d/f")
    world.settle()
    assert b"d/f" not in world.far.nodes
    world.far.drop(b"d/g")
    world.far.drop(b"d")
    world.settle()
    assert world.near.nodes == {}
    assert world.ledger.bases == {}
    world.near.mkdir(b"e")
    world.settle()
    world.near.drop(b"e")
    world.settle()
    assert world.far.nodes == {}


def test_a_file_becomes_a_directory_and_back(world):
    world.far.put(b"f", b"x")
    world.settle()
    world.near.drop(b"f")
    world.near.mkdir(b"f")
    world.near.put(b"f/g", b"y")
    world.settle()
    assert world.files(world.far) == {b"f/g": b"y"}
    world.far.drop(b"f/g")
    world.far.drop(b"f")
    world.far.put(b"f", b"z")
    world.settle()
    assert world.files(world.near) == {b"f": b"z"}


def test_what_has_gone_on_both_sides_is_forgotten_and_what_has_come_is_known(world):
    world.far.put(b"f", b"x")
    world.settle()
    for tree in (world.near, world.far):
        tree.drop(b"f")
        tree.mkdir(b"d")
    world.settle()
    assert list(world.ledger.bases) == [b"d"]


# Conflicts.


def test_both_are_kept_where_both_have_changed(world):
    world.far.put(b"f", b"one")
    world.settle()
    world.near.put(b"f", b"server")
    world.far.put(b"f", b"client")
    world.settle()
    expected = {b"f": b"client", b"f" + CONFLICT: b"server"}
    assert world.files(world.far) == world.files(world.near) == expected
    assert any("/f has changed on both sides" in line for line in world.said)


def test_a_second_conflict_gets_a_number_of_its_own(world):
    world.near.put(b"f" + CONFLICT, b"first")
    world.near.put(b"f", b"server")
    world.far.put(b"f", b"client")
    world.settle()
    assert world.far.content(b"f.conflict-5e551017-2") == b"server"


def test_the_same_on_both_sides_is_no_conflict(world):
    world.near.put(b"f", b"same")
    world.far.put(b"f", b"same")
    world.settle()
    assert world.files(world.near) == {b"f": b"same"}
    assert b"f" in world.ledger.bases
    world.near.put(b"g", b"less", 0o644)
    world.far.put(b"g", b"less", 0o755)
    world.settle()
    assert set(world.files(world.near)) == {b"f", b"g", b"g" + CONFLICT}, "one of the two may be executed"
    world.near.put(b"h", b"this")
    world.far.put(b"h", b"that")
    world.settle()
    assert world.files(world.far)[b"h" + CONFLICT] == b"this"


def test_what_changes_while_it_is_compared_is_compared_again(world):
    world.near.put(b"f", b"same")
    world.far.put(b"f", b"same")
    edits = iter([lambda: world.far.put(b"f", b"diff")])
    world.before = _after(9, lambda: next(edits, lambda: None)())
    world.settle()
    assert world.files(world.far) == {b"f": b"diff", b"f" + CONFLICT: b"same"}


def test_what_may_not_be_read_is_not_compared(world):
    world.near.put(b"f", b"same")
    world.far.put(b"f", b"same")
    world.far.refuses = lambda what, path: "no" if (what, path) == ("read", b"f") else ""
    world.settle()
    assert set(world.files(world.far)) == {b"f", b"f" + CONFLICT}
    assert world.copy.left_out[b"f"][1] == "no"


def test_removed_on_one_side_and_changed_on_the_other_comes_back(world):
    for name in (b"f", b"g"):
        world.far.put(name, b"one")
    world.settle()
    world.near.drop(b"f")
    world.far.put(b"f", b"changed there")
    world.near.put(b"g", b"changed here")
    world.far.drop(b"g")
    world.settle()
    assert world.files(world.near) == world.files(world.far) == {b"f": b"changed there", b"g": b"changed here"}


def test_a_directory_in_which_there_is_something_new_stays(world):
    world.far.mkdir(b"d")
    world.far.mkdir(b"e")
    world.settle()
    world.near.put(b"d/new", b"x")
    world.far.drop(b"d")
    world.near.drop(b"e")
    world.far.put(b"e/new", b"y")
    world.settle()
    assert world.files(world.near) == world.files(world.far) == {b"d/new": b"x", b"e/new": b"y"}


# What is not copied.


def test_the_bound(make_world):
    world = make_world(size=10, files=3)
    world.far.put(b"a", b"x" * 6)
    world.far.put(b"b", b"x" * 6)
    world.far.put(b"c", b"x" * 4)
    world.settle()
    assert set(world.near.nodes) == {b"a", b"c"}
    assert "10 bytes" in world.copy.left_out[b"b"][1]
    world.far.put(b"c", b"x" * 5)
    world.settle()
    assert set(world.near.nodes) == {b"a"}, "what has grown beyond it is not shown as it was"
    world.far.drop(b"b")
    world.far.put(b"c", b"")
    world.settle()
    assert b"b" not in world.copy.left_out
    for name in (b"d", b"e"):
        world.far.mkdir(name)
    world.settle()
    assert set(world.near.nodes) == {b"a", b"c", b"d"}
    assert "3 names" in world.copy.left_out[b"e"][1]
    world.copy.room.files = 4
    world.copy.retry()
    world.settle()
    assert b"e" in world.near.nodes


def test_what_is_neither_file_nor_directory_nor_a_link_inside(world):
    world.far.special(b"pipe")
    world.far.symlink(b"out", b"../x")
    world.near.special(b"socket")
    world.near.put(TOLD, b"ours")
    world.far.put(b".fuse-gated-x", b"theirs")
    world.settle()
    assert set(world.copy.left_out) == {b"pipe", b"out"}
    assert set(world.copy.unsent) == {b"socket"}
    assert set(world.near.nodes) == {b"socket", TOLD}
    world.near.drop(b"socket")
    world.far.drop(b"pipe")
    world.copy.settle(b"socket", None)
    world.settle()
    assert not world.copy.unsent
    assert set(world.copy.left_out) == {b"out"}


def test_what_may_not_be_read_is_left_out_and_asked_for_once(world):
    asked = []

    def refuses(what, path):
        if what == "read":
            asked.append(path)
            return "the policy"
        return ""

    world.far.refuses = refuses
    world.far.put(b"f", b"secret")
    world.settle()
    world.settle()
    assert asked == [b"f"]
    assert world.copy.left_out[b"f"][1] == "the policy"
    world.far.refuses = lambda _what, _path: ""
    world.copy.retry()
    world.settle()
    assert world.near.content(b"f") == b"secret"
    world.far.refuses = refuses
    world.far.put(b"f", b"secret too")
    world.settle()
    assert b"f" not in world.near.nodes, "what cannot be had any more is not shown as it was"


def test_what_may_no_longer_be_read_goes_unless_it_was_changed(world):
    for name in (b"f", b"g"):
        world.far.put(name, b"x")
    world.settle()
    world.near.put(b"g", b"y")
    for name in (b"f", b"g", b"h"):
        world.copy.withdraw(name, "the policy")
    assert set(world.near.nodes) == {b"g"}
    assert set(world.copy.left_out) == {b"f"}
    world.settle()
    assert set(world.near.nodes) == {b"g"}


def test_what_may_no_longer_be_read_and_is_open_goes_later(world):
    world.far.put(b"f", b"x")
    world.settle()
    world.near.open.add(b"f")
    assert not world.copy.withdraw(b"f", "the policy")
    assert set(world.near.nodes) == {b"f"}
    world.near.open.clear()
    assert world.copy.withdraw(b"f", "the policy")
    assert not world.near.nodes


def test_what_may_not_be_looked_at_here_keeps_nothing_else_up(world):
    world.near.put(b"a", b"x")
    world.near.put(b"b", b"x")
    world.near.refuses = lambda _what, path: "not ours" if path == b"a" else ""
    world.settle()
    assert world.files(world.far) == {b"b": b"x"}
    assert world.copy.unsent == {b"a": "not ours"}
    world.copy.settle(b"a", None)
    assert world.copy.unsent == {b"a": "not ours"}


def test_nobody_removes_what_may_not_be_removed_here(world):
    world.far.put(b"f", b"x")
    world.settle()
    world.near.refuses = lambda what, _path: "not ours" if what == "remove" else ""
    world.far.drop(b"f")
    world.settle()
    assert world.files(world.far) == {b"f": b"x"}, "it is a new file, then"


def test_an_open_file_waits(world):
    world.far.put(b"f", b"one")
    world.settle()
    world.near.put(b"f", b"half")
    world.near.open.add(b"f")
    world.settle()
    assert world.far.content(b"f") == b"one"
    assert "open" in world.copy.unsent[b"f"]
    world.near.put(b"f", b"whole")
    world.near.open.clear()
    world.settle()
    assert world.far.content(b"f") == b"whole"
    world.near.open.add(b"f")
    world.far.put(b"f", b"new")
    world.settle()
    assert world.near.content(b"f") == b"whole"
    world.near.open.clear()
    world.settle()
    assert world.near.content(b"f") == b"new"
    assert not world.copy.unsent


def test_what_nobody_knows_is_left_as_it_is(world):
    world.far.put(b"f", b"x")
    world.settle()
    (found,) = world.far.nodes.items()
    world.far.nodes.clear()
    world.unknown.add(b"f")
    world.settle()
    assert world.near.content(b"f") == b"x"
    world.far.nodes.update([found])
    world.unknown.clear()
    world.settle()
    assert world.files(world.near) == {b"f": b"x"}


# What the client refuses.


def test_a_refused_change_is_kept_beside(world):
    world.far.put(b"f", b"one")
    world.settle()
    world.far.refuses = lambda what, _path: "no rule allows write here" if what == "write" else ""
    world.near.put(b"f", b"two")
    world.near.put(b"g", b"new")
    world.settle()
    assert world.files(world.near) == {b"f": b"one", b"f" + REFUSED: b"two", b"g": b"new"}
    assert world.files(world.far) == {b"f": b"one"}
    assert world.copy.unsent[b"g"] == "no rule allows write here"
    assert any(f"stays at /f{REFUSED.decode()}" in line for line in world.said)
    world.settle()
    assert len(world.said) == 2, "it is tried once"
    world.start()
    world.settle()
    assert len(world.said) == 2
    assert world.copy.unsent[b"g"] == "the policy refuses it"
    world.near.put(b"g", b"newer")
    world.settle()
    assert len(world.said) == 3
    world.near.drop(b"g")
    world.settle()
    assert b"g" not in world.ledger.kept
    world.far.refuses = lambda _what, _path: ""
    world.copy.retry()
    world.settle()
    assert world.files(world.far) == {b"f": b"one", b"f" + REFUSED: b"two"}


def test_where_nothing_may_be_removed_nothing_temporary_is_made(world):
    world.far.refuses = lambda what, _path: "no rule allows delete here" if what == "remove" else ""
    world.near.put(b"f", b"x")
    world.settle()
    assert world.far.nodes == {}
    assert world.ledger.begun == {}


def test_a_directory_that_is_refused_is_kept(world):
    world.far.refuses = lambda what, _path: "no" if what == "make" else ""
    world.near.mkdir(b"d")
    world.near.put(b"d/f", b"x")
    world.settle()
    assert world.far.nodes == {}
    assert world.copy.unsent == {b"d": "no", b"d/f": "not sent yet"}


def test_a_refused_removal_comes_back(world):
    world.far.put(b"f", b"x")
    world.far.mkdir(b"d")
    world.settle()
    world.far.refuses = lambda what, _path: "no" if what in ("rename", "remove") else ""
    world.near.drop(b"f")
    world.near.drop(b"d")
    world.settle()
    assert set(world.near.nodes) == {b"f", b"d"}
    assert any("comes back" in line for line in world.said)


def test_what_is_left_on_the_client_is_told(world):
    world.far.put(b"f", b"x")
    world.settle()
    removed = []

    def refuses(what, path):
        # The first is the question whether it could.
        if what == "remove" and path.startswith(b".fuse-gated-"):
            removed.append(path)
            return "no" if len(removed) > 1 else ""
        return ""

    world.far.refuses = refuses
    world.near.put(b"f", b"y")
    world.settle()
    assert world.far.content(b"f") == b"y"
    assert any("is left on the client" in line for line in world.said)


def test_what_is_refused_in_the_end_is_not_left_there(world):
    world.far.put(b"f", b"x")
    world.settle()
    world.far.refuses = lambda what, _path: "no" if what == "exchange" else ""
    world.near.put(b"f", b"y")
    world.settle()
    assert world.files(world.far) == {b"f": b"x"}
    assert world.near.content(b"f" + REFUSED) == b"y"


# In the middle.


def _after(steps, then):
    left = [steps]

    def before():
        left[0] -= 1
        if left[0] == 0:
            then()

    return before


@pytest.mark.parametrize("steps", range(1, 30))
@pytest.mark.parametrize("exchanges", [True, False])
def test_an_edit_of_the_client_at_any_moment_of_a_sending(make_world, steps, exchanges):
    world = make_world()
    world.far.exchanges = exchanges
    world.far.put(b"f", b"one")
    world.settle()
    world.near.put(b"f", b"server")

    def edit():
        superseded.append(world.far.content(b"f"))
        world.far.put(b"f", b"client")

    superseded = []
    world.before = _after(steps, edit)
    world.settle()
    kept = set(world.files(world.far).values())
    # Without an exchange there is a moment between the last look and the rename.
    assert {b"server", b"client"} & kept
    if superseded and exchanges:
        assert {b"server", b"client"} - set(superseded) <= kept
    assert world.temporaries() == []


@pytest.mark.parametrize("steps", range(1, 16))
def test_an_edit_of_the_client_at_any_moment_of_a_fetching(world, steps):
    world.far.put(b"f", b"one")
    world.before = _after(steps, lambda: world.far.put(b"f", b"more"))
    world.settle()
    assert world.files(world.near) == world.files(world.far)
    assert set(world.files(world.far)) == {b"f"}


@pytest.mark.parametrize("steps", range(1, 24))
def test_an_edit_here_at_any_moment_of_a_sending(world, steps):
    world.near.put(b"f", b"one")
    world.before = _after(steps, lambda: world.near.put(b"f", b"more"))
    world.settle()
    assert world.files(world.near) == world.files(world.far)
    assert set(world.files(world.far)) == {b"f"}
    assert world.temporaries() == []


def test_what_came_out_and_cannot_go_back_gets_a_name(world):
    """The process was killed between the exchange and the look, and somebody has made another file since."""
    world.far.put(b"f", b"new")
    world.far.put(b"f.conflict-5e551017-1", b"taken")
    world.far.put(b".fuse-gated-t-f", b"work")
    begun = Begun(b"f", b".fuse-gated-t-f", Version(FILE, 1), Version(FILE, 2))
    world.log += encode(begun)
    world.start()
    world.settle()
    assert world.far.content(b"f.conflict-5e551017-2") == b"work"
    assert world.temporaries() == []
    assert world.ledger.begun == {}


def test_what_came_out_goes_back_where_nothing_is(world):
    world.far.put(b".fuse-gated-t-f", b"work")
    world.log += encode(Begun(b"f", b".fuse-gated-t-f", None, Version(FILE, 2)))
    world.start()
    world.settle()
    assert world.files(world.far) == {b"f": b"work"}


@pytest.mark.parametrize("refused", [True, False])
def test_what_can_go_nowhere_is_told(world, refused):
    world.far.put(b".fuse-gated-t-f", b"work")
    world.log += encode(Begun(b"d/f", b".fuse-gated-t-f", None, Version(FILE, 2)))
    world.far.refuses = lambda what, _path: "no" if refused and what == "rename" else ""
    world.start()
    world.settle()
    assert world.temporaries() == [b".fuse-gated-t-f"]
    assert any("cannot be renamed" in line for line in world.said)


def test_what_goes_by_itself_while_it_is_cleaned_up(world):
    for name in (b"t1", b"t2"):
        world.far.put(b".fuse-gated-" + name, b"work")
    version = world.far.nodes[b".fuse-gated-t1"][0]
    world.log += encode(Begun(b"f", b".fuse-gated-t1", version, None))
    world.log += encode(Begun(b"f", b".fuse-gated-t2", None, Version(FILE, 2)))
    world.start()

    def vanish():
        for name in (b".fuse-gated-t1", b".fuse-gated-t2"):
            if name in seen:
                world.far.nodes.pop(name, None)

    seen = set()

    def refuses(what, path):
        if what == "look":
            seen.add(path)
        elif what in ("remove", "rename"):
            vanish()
        return ""

    world.far.refuses = refuses
    world.settle()
    assert world.far.nodes == {}
    assert world.ledger.begun == {}


# What no time tells, and what the last process knew.


@pytest.mark.parametrize("killed", [False, True])
def test_a_store_that_changes_no_time_is_sent(world, killed):
    world.far.put(b"f", b"one")
    world.settle()
    world.near.store(b"f", b"two")
    world.settle()
    assert world.far.content(b"f") == b"one", "nobody has said so"
    world.copy.doubt(b"f")
    if killed:
        world.start()
    assert world.ledger.bases[b"f"].local != world.near.nodes[b"f"][0], "the session's end would not take it for sent"
    world.settle()
    assert world.files(world.far) == world.files(world.near) == {b"f": b"two"}


def test_what_was_opened_and_not_changed_is_not_sent_again(world):
    world.far.put(b"f", b"one")
    world.far.mkdir(b"d")
    world.settle()
    before = world.far.nodes[b"f"]
    for path in (b"f", b"d", b"nothing"):
        world.copy.doubt(path)
    world.settle()
    assert world.far.nodes[b"f"] == before
    assert world.ledger.bases[b"f"].local == world.near.nodes[b"f"][0]
    assert not world.copy.unsent


def test_a_store_against_a_change_of_the_client_is_kept(world):
    world.far.put(b"f", b"one")
    world.settle()
    world.near.store(b"f", b"two")
    world.copy.doubt(b"f")
    world.far.put(b"f", b"three")
    world.settle()
    assert world.files(world.far) == world.files(world.near) == {b"f": b"three", b"f" + CONFLICT: b"two"}


def test_where_nothing_can_be_exchanged_the_last_look_is_at_the_client(world):
    """And not at what the worker remembers of it."""
    world.far.exchanges = False
    world.far.put(b"f", b"one")
    world.settle()
    (old, _), version = world.far.nodes[b"f"], world.far.nodes[b"f"][0]
    world.far.remembered[b"f"] = old
    world.near.put(b"f", b"server")
    world.far.put(b"f", b"client")
    # What a listing says is remembered too.
    world.copy.settle(b"f", version)
    assert world.far.content(b"f") == b"client"
    world.far.remembered.clear()
    world.settle()
    assert world.files(world.far) == {b"f": b"client", b"f" + CONFLICT: b"server"}


def test_what_is_here_when_a_process_begins_is_counted(make_world):
    world = make_world(size=10, files=3)
    world.far.put(b"z", b"x" * 8)
    world.settle()
    world.start()
    world.far.put(b"a", b"x" * 8)
    world.near.put(TOLD, b"not counted")
    world.settle()
    assert set(world.near.nodes) == {b"z", TOLD}
    assert world.copy.room.used == 8


def test_what_had_no_room_comes_when_there_is_some(make_world):
    world = make_world(size=10, files=3)
    for name in (b"a", b"b"):
        world.far.put(name, b"x" * 8)
    world.settle()
    assert set(world.near.nodes) == {b"a"}
    world.near.drop(b"a")
    world.settle()
    assert set(world.near.nodes) == set(world.far.nodes) == {b"b"}
    assert not world.copy.left_out


def test_what_cannot_come_for_now_comes_later(world):
    world.far.put(b"f", b"one")
    world.near.refuses = lambda what, _path: "no space for now" if what == "receive" else ""
    world.settle()
    assert world.copy.left_out[b"f"][1] == "no space for now"
    world.near.refuses = lambda _what, _path: ""
    world.settle()
    assert b"f" not in world.near.nodes, "not each second anew"
    world.copy.retry_later()
    world.settle()
    assert world.files(world.near) == {b"f": b"one"}
    assert not world.copy.left_out


def test_what_cannot_go_for_now_goes_later(world):
    world.far.put(b"f", b"one")
    world.settle()
    world.far.refuses = lambda what, _path: "no space for now" if what == "write" else ""
    world.near.put(b"f", b"two")
    world.near.put(b"g", b"new")
    world.settle()
    assert world.files(world.near) == {b"f": b"two", b"g": b"new"}
    assert world.copy.unsent == {b"f": "no space for now", b"g": "no space for now"}
    world.far.refuses = lambda _what, _path: ""
    world.copy.retry_later()
    world.settle()
    assert world.files(world.far) == {b"f": b"two", b"g": b"new"}
    assert not world.copy.unsent


def test_a_link_that_leads_out_stays_where_it_was_made(world):
    """As bin/python of a venv."""
    world.near.symlink(b"python", b"/usr/bin/python3")
    world.settle()
    assert world.far.nodes == {}
    assert world.near.nodes[b"python"][0].target == b"/usr/bin/python3"
    assert world.copy.unsent == {b"python": "a link that may lead out of the export"}


def test_a_path_that_is_too_long_keeps_nothing_else_up(world):
    path = b"x" * (LONGEST + 1)
    world.near.put(path, b"x")
    world.near.put(b"f", b"x")
    world.settle()
    assert world.files(world.far) == {b"f": b"x"}
    assert world.copy.unsent == {path: "its path is too long"}
    world.near.drop(path)
    world.settle()
    assert not world.copy.unsent


def test_what_may_not_be_looked_at_is_told_once_and_put_right_when_it_may(world):
    world.far.put(b".fuse-gated-t-f", b"half")
    world.log += encode(Begun(b"f", b".fuse-gated-t-f", None, None))
    world.start()
    world.far.refuses = lambda what, path: "hidden" if what == "look" and path.startswith(b".") else ""
    world.copy.recover()
    world.copy.recover()
    assert world.said == ["/.fuse-gated-t-f may be left on the client: hidden"]
    world.far.refuses = lambda _what, _path: ""
    world.settle()
    assert world.far.nodes == {}
    assert world.ledger.begun == {}


# All of it at once.


class Killed(Exception):
    """The process ends here, whatever it was about to do."""


PATHS = [b"f", b"g", b"d/f", b"d"]
DEEDS = st.sampled_from(["put", "put", "put", "drop", "mkdir"])
EDITS = st.tuples(st.sampled_from(["near", "far"]), DEEDS, st.sampled_from(PATHS))
STORY = st.lists(st.tuples(st.integers(1, 25), st.one_of(EDITS, EDITS, st.just("kill"))), max_size=30)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(STORY)
def test_nothing_that_was_closed_is_lost(make_world, story):
    """People on both sides write and remove, at any moment, and the process is killed at any. In the end what each has written is
    on the client under some name, unless somebody who had it before their eyes replaced or removed it; and both sides are the
    same."""
    world = make_world()
    written, excused = set(), set()
    contents = iter(range(10**6))
    script = list(story)
    left = [script[0][0] if script else 0]

    def act(event):
        if event == "kill":
            raise Killed
        side, what, path = event
        tree = getattr(world, side)
        before = tree.nodes[path][1] if tree.kind(path) == FILE else None
        if what == "put":
            content = b"%d" % next(contents)
            if not tree.put(path, content):
                return
            written.add(content)
        elif not (tree.drop(path) if what == "drop" else tree.mkdir(path)):
            return
        if before is not None:
            excused.add(before)

    def before_each():
        while script:
            left[0] -= 1
            if left[0] > 0:
                return
            event = script.pop(0)[1]
            left[0] = script[0][0] if script else 0
            act(event)

    world.before = before_each
    for _ in range(200):
        try:
            world.copy.recover()
            world.round()
            if not script:
                break
        except Killed:
            world.start()
    world.settle()
    kept = set(world.files(world.far).values())
    assert written - excused <= kept
    assert world.files(world.near) == world.files(world.far)
    assert {p for p, (v, _) in world.near.nodes.items() if v.kind == DIRECTORY} == {
        p for p, (v, _) in world.far.nodes.items() if v.kind == DIRECTORY
    }
    assert world.temporaries() == []
    assert world.ledger.begun == {}
    assert not world.near.received
