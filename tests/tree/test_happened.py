"""tree/happened.py: what changed after a question is never forgotten, and what did not is not made up for long."""

from fuse_gated.tree import happened
from fuse_gated.tree.happened import Happened


def test_what_changed_after_the_question_is_not_the_same() -> None:
    h = Happened()
    before = h.tick
    h.changed(b"a/b")
    assert not h.is_same(b"a/b", before)
    assert h.is_same(b"a/b", h.tick)
    assert h.is_same(b"a", before)
    assert h.is_in_place(b"a/b/c", before)


def test_what_moved_takes_with_it_what_lies_beneath() -> None:
    h = Happened()
    before = h.tick
    h.moved(b"a")
    for path in (b"a", b"a/b", b"a/b/c"):
        assert not h.is_in_place(path, before)
        assert h.is_in_place(path, h.tick)
    assert h.is_in_place(b"ab", before)
    assert not h.is_same(b"a", before)
    assert h.is_same(b"a/b", before)
    h.moved(b"")
    assert not h.is_in_place(b"ab", before)


def test_after_everything_nothing_that_was_asked_before_holds() -> None:
    h = Happened()
    before = h.tick
    h.everything()
    assert not h.is_same(b"a", before)
    assert not h.is_in_place(b"a", before)
    assert h.is_same(b"a", h.tick)
    assert h.is_in_place(b"a", h.tick)


def test_so_many_changes_are_remembered_and_not_more() -> None:
    h = Happened()
    first = h.tick
    h.moved(b"first")
    after = h.tick
    for i in range(happened._MOST):
        h.moved(b"%d" % i)
    assert not h.is_same(b"first", first)
    assert h.is_same(b"other", after), "the changes before the last so many are still known"
    assert h.is_in_place(b"other", after)
    for i in range(happened._MOST):
        h.moved(b"more %d" % i)
    assert not h.is_same(b"first", first)
    assert not h.is_same(b"other", first), "nobody knows any more"
    assert not h.is_in_place(b"other", first)
    recent = h.tick
    h.moved(b"last")
    assert h.is_same(b"other", recent)
    assert not h.is_in_place(b"last", recent)
    assert len(h._changes._lately) + len(h._changes._before) <= 2 * happened._MOST
