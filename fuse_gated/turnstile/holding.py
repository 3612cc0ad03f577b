"""What is known of open files for as long as they are open: what was in them when they were opened (Handle.pinned), or what was
written since they were made (Handle.draft); and when that ends."""

from typing import TYPE_CHECKING

from fuse_gated.operations import Attributes
from fuse_gated.tree.handles import Handle
from fuse_gated.tree.inodes import Node, identity_of

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk


def written(t: "Desk", handle: Handle) -> None:
    """A file was changed through this handle."""
    path = t.handles.path(handle)
    t.cache.changes(path)
    node = handle.node
    if node is not None:
        # What the client told last it was like before this: nothing to answer from while it is away.
        node.attributes = None
    if node is not None and node.lost and node.identity is not None:
        t.cache.has_links(node.identity[1])
    t.readahead.wrote(t, handle)
    draft, handle.draft = handle.draft, None
    changed_here(t, handle.node, path)
    handle.draft = draft


def changed_here(t: "Desk", node: Node | None, path: bytes) -> None:
    """A file's content was changed through the mount: what was known of it before holds for nobody who has it open."""
    if node is None:
        unpin_path(path, pinned_by_path(t))
        return
    for name in filter(None, map(t.inodes.get, (node.id, *t.siblings(node)))):
        unpin(t, name)


def unpin(t: "Desk", node: Node, attributes: Attributes | None = None) -> None:
    """What was opened by what was known of it, or read ahead, is read from the client from now on; and what is being drafted,
    unless the client has just said `attributes` of it that tell nothing but that it was made."""
    t.readahead.changed(t, node.identity)
    for number in node.handles:
        handle = t.handle(number)
        handle.stands_beside(attributes)
    says(t, node, attributes)


def says(t: "Desk", node: Node | None, attributes: Attributes | None) -> None:
    """The client says what a file is like: a draft of it ends, unless that is how it was made. None: it is not what it was."""
    for number in node.handles if node is not None else ():
        handle = t.handle(number)
        if handle.draft is not None and (attributes is None or not handle.draft.is_as_made(attributes)):
            handle.draft = None


def undraft(t: "Desk", *nodes: Node | None) -> None:
    """What these are like only the client knows: names of theirs have come or gone, and nobody may tell of changes any more."""
    for node in nodes:
        says(t, node, None)


def unpin_path(path: bytes, pinned: dict[bytes, list[Handle]], attributes: Attributes | None = None) -> None:
    """As `unpin` of what has no node, because its driver names it by its path."""
    for handle in pinned.pop(path, ()):
        handle.stands_beside(attributes)


def pinned_by_path(t: "Desk") -> dict[bytes, list[Handle]]:
    """What has no node, and was opened by what was known of it."""
    pinned: dict[bytes, list[Handle]] = {}
    for handle in t.handles if t.cache.room else ():
        if handle.node is None and handle.pinned is not None:
            pinned.setdefault(handle.path, []).append(handle)
    return pinned


def is_followed(t: "Desk", handle: Handle) -> bool:
    """Whether the client would tell of a change: it watches the name, and that is still this file's."""
    if handle.node is None or t.gate.tenant.cache.mode != "watched":
        return False
    known = t.cache.attributes(t.handles.path(handle), t.now)
    return isinstance(known, Attributes) and identity_of(known) == handle.node.identity
