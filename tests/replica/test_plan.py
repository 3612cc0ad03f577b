"""The comparison of three: what was, what is here, what is there."""

import itertools

import msgspec
import pytest

from fuse_gated.replica.ledger import Begun
from fuse_gated.replica.plan import Action, decide, is_somebodys
from fuse_gated.replica.version import DIRECTORY, FILE, LINK, OTHER, Base, Version

HERE = Version(FILE, 1, 2, 3, 4, 5, 0o644)
THERE = Version(FILE, 1, 2, 3, 9, 9, 0o644)
HERE_NEW, THERE_NEW = msgspec.structs.replace(HERE, mtime=7), msgspec.structs.replace(THERE, mtime=8)
FOLDER, PIPE = Version(DIRECTORY), Version(OTHER)
TO_X, TO_Y = Version(LINK, target=b"x"), Version(LINK, target=b"y")
BASE = Base(HERE, THERE)


@pytest.mark.parametrize(
    ("base", "local", "remote", "action"),
    [
        # Nothing is known of it.
        (None, None, None, Action.NOTHING),
        (None, None, THERE, Action.FETCH),
        (None, HERE, None, Action.SEND),
        (None, HERE, THERE, Action.CONFLICT),
        (None, FOLDER, FOLDER, Action.ADOPT),
        (None, FOLDER, THERE, Action.CONFLICT),
        (None, TO_X, TO_X, Action.ADOPT),
        (None, TO_X, TO_Y, Action.CONFLICT),
        (None, PIPE, PIPE, Action.CONFLICT),
        # It was the same.
        (BASE, HERE, THERE, Action.NOTHING),
        (BASE, None, None, Action.FORGET),
        # One side has changed.
        (BASE, HERE, THERE_NEW, Action.FETCH),
        (BASE, HERE, TO_X, Action.FETCH),
        (BASE, HERE, PIPE, Action.FETCH),
        (BASE, HERE, None, Action.REMOVE_LOCAL),
        (BASE, HERE, FOLDER, Action.REMOVE_LOCAL),
        (BASE, HERE_NEW, THERE, Action.SEND),
        (BASE, TO_X, THERE, Action.SEND),
        (BASE, None, THERE, Action.REMOVE_REMOTE),
        (BASE, FOLDER, THERE, Action.REMOVE_REMOTE),
        (Base(FOLDER, FOLDER), FOLDER, THERE, Action.REMOVE_LOCAL),
        (Base(FOLDER, FOLDER), HERE, FOLDER, Action.REMOVE_REMOTE),
        # Both have.
        (BASE, None, THERE_NEW, Action.FETCH),
        (BASE, HERE_NEW, None, Action.SEND),
        (BASE, HERE_NEW, THERE_NEW, Action.CONFLICT),
        (BASE, FOLDER, FOLDER, Action.ADOPT),
        (BASE, TO_X, TO_X, Action.ADOPT),
        (BASE, TO_X, THERE_NEW, Action.CONFLICT),
    ],
)
def test_what_is_done(base, local, remote, action):
    assert decide(base, local, remote) is action


EVERYTHING = [None, HERE, HERE_NEW, THERE, THERE_NEW, FOLDER, PIPE, TO_X, TO_Y]
BASES = [None, *(Base(one, other) for one in EVERYTHING if one for other in EVERYTHING if other)]


def test_nothing_goes_that_the_other_side_has_not_had():
    """Whatever would be replaced or removed is what it was when both sides were the same."""
    for base, local, remote in itertools.product(BASES, EVERYTHING, EVERYTHING):
        action = decide(base, local, remote)
        if action in (Action.FETCH, Action.REMOVE_LOCAL) and local is not None:
            assert base is not None
            assert local == base.local
        if action in (Action.SEND, Action.REMOVE_REMOTE) and remote is not None:
            assert base is not None
            assert remote == base.remote


OURS, THEIRS = Version(FILE, 1, 1, 1, 1, 1), Version(FILE, 2, 2, 2, 2, 2)


@pytest.mark.parametrize(
    ("ours", "theirs", "found", "expected"),
    [
        (None, None, OURS, False), (OURS, THEIRS, OURS, False), (OURS, THEIRS, THEIRS, False), (None, THEIRS, THEIRS, False),
        (OURS, None, OURS, False), (OURS, THEIRS, HERE, True), (None, THEIRS, HERE, True), (OURS, None, HERE, True),
        (OURS, THEIRS, msgspec.structs.replace(THEIRS, ctime=77), False),
        (OURS, THEIRS, msgspec.structs.replace(THEIRS, mtime=77), True),
    ],
)  # fmt: skip
def test_what_is_found_at_a_temporary_name_is_ours_theirs_or_somebodys(ours, theirs, found, expected):
    assert is_somebodys(Begun(b"f", b"t", ours, theirs), found) is expected
