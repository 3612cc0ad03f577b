"""What is to be done with one name, by what it was when both sides were the same, and what it is on each side now.

The rule behind all of it: nothing that somebody has closed is ever overwritten or removed unless it is what the other side has
had already. Where both sides have changed, what lies here gets another name, under which it is a new file, and the client keeps
the plain one. So one name is never the place of two things, and each step can be cut off and taken again.
"""

import enum

from fuse_gated.replica.ledger import Begun
from fuse_gated.replica.version import DIRECTORY, LINK, Base, Version, same_but_renamed


class Action(enum.Enum):
    """`SEND` and `REMOVE_REMOTE` hold only while the client's side is what it is in the base (or nothing, without a base),
    `FETCH` and `REMOVE_LOCAL` only while ours is: whoever does them looks again."""

    NOTHING = "nothing"
    ADOPT = "adopt"
    """Both sides are the same: a base from now on."""
    FORGET = "forget"
    """Neither side is there: no base any more."""
    FETCH = "fetch"
    SEND = "send"
    REMOVE_LOCAL = "remove-local"
    REMOVE_REMOTE = "remove-remote"
    CONFLICT = "conflict"
    """Two things of one name. If they are files of one content, they are the same; else ours gets another name."""


def decide(base: Base | None, local: Version | None, remote: Version | None) -> Action:
    """What to do with a name. None: it is not there."""
    if base is None:
        return _unknown(local, remote)
    local_same, remote_same = base.local == local, base.remote == remote
    if local_same and remote_same:
        return Action.NOTHING
    if local is None and remote is None:
        return Action.FORGET
    if local_same:
        return _changed_there(base.local, remote)
    if remote_same:
        return _changed_here(base.remote, local)
    if local is None:
        # Removed here, changed there: it comes back.
        return Action.FETCH
    if remote is None:
        # Changed here, removed there: it comes back.
        return Action.SEND
    return _unknown(local, remote)


def _unknown(local: Version | None, remote: Version | None) -> Action:
    if local is None:
        return Action.NOTHING if remote is None else Action.FETCH
    if remote is None:
        return Action.SEND
    # Files are compared by what is in them, and not here.
    alike = local.kind == remote.kind and local.kind in (DIRECTORY, LINK) and local.target == remote.target
    return Action.ADOPT if alike else Action.CONFLICT


def _changed_there(local: Version, remote: Version | None) -> Action:
    """Ours is as it was. What changes between directory and anything else goes first, and comes anew."""
    if remote is None or (remote.kind != local.kind and DIRECTORY in (remote.kind, local.kind)):
        return Action.REMOVE_LOCAL
    return Action.FETCH


def _changed_here(remote: Version, local: Version | None) -> Action:
    """The client's is as it was."""
    if local is None or (remote.kind != local.kind and DIRECTORY in (remote.kind, local.kind)):
        return Action.REMOVE_REMOTE
    return Action.SEND


def is_somebodys(begun: Begun, found: Version) -> bool:
    """Whether what is at a temporary name on the client is neither what we have written nor what we had already: somebody has
    written to it just before it was put aside."""
    known = [version for version in (begun.ours, begun.theirs) if version is not None]
    return bool(known) and not any(same_but_renamed(found, version) for version in known)
