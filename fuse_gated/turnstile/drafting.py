"""Files that are being written by who has made them (tree/draft.py): what they are like need not be asked.

Only where the client would tell of others' changes. The first notice that says anything but that the file was made ends it, be
it about our own writes: who else has written by then it does not say. Until then some 20 ms have passed, and one round trip.
"""

from typing import TYPE_CHECKING, Final

from fuse_gated.operations import Attributes
from fuse_gated.tree.draft import Draft
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Node
from fuse_gated.turnstile import bounds, holding

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk

MOST: Final = 16
"""Drafts that a session keeps at once, of a MiB each at most."""
_SETID: Final = 0o6000


def begin(t: "Desk", handle: Handle, attributes: Attributes) -> None:
    """A file was opened by creating it. One that was there before counts as well, if it is empty."""
    if attributes.size or attributes.nlink != 1 or attributes.mode & _SETID or handle.flags & bounds.DIRECT:
        return
    if not t.ahead.serves or t.gate.tenant.writes == "through" or handle.node is None or len(handle.node.handles) != 1:
        return
    if len(t.drafts) >= MOST:
        t.drafts = {number for number in t.drafts if (other := t.handles.get(number)) is not None and other.draft is not None}
    if len(t.drafts) < MOST and holding.is_followed(t, handle):
        handle.draft = Draft(attributes)
        t.drafts.add(handle.id)


def like(t: "Desk", node: Node | None) -> Attributes | None:
    """What a file is like that is being drafted; None for any other."""
    if node is None or len(node.handles) != 1 or node.lost:
        return None
    draft = t.handle(node.handles[0]).draft
    return draft.attributes if draft is not None else None
