"""What is remembered of the client for when it is away (outage.py)."""

from fuse_gated.gate import sandbox
from fuse_gated.operations import Attributes, Filesystem
from fuse_gated.tree.inodes import identity_of
from fuse_gated.turnstile.call import ignored
from fuse_gated.turnstile.desk import Desk
from fuse_gated.wire import messages
from fuse_gated.wire.session import Pending


def remembered(t: Desk, target: messages.Target) -> Attributes | None:
    """A file's attributes as the client told them last."""
    if isinstance(target, int):
        nodes = [handle.node for handle in t.handles if handle.remote == target]
        return nodes[0].attributes if nodes and nodes[0] is not None else None
    known = t.cache.attributes(target, t.now)
    if isinstance(known, Attributes):
        return known
    node = t.inodes.find(target)
    return node.attributes if node is not None else None


def acquaint(t: Desk, now: float) -> None:
    """Ask the client what is shown of the mount while it is away."""
    t.now = now
    deadline = now + t.limits.deadline

    def root(attributes: Attributes) -> None:
        sandbox.check_attributes(attributes)
        if t.inodes.root.identity is None:
            t.inodes.identified(identity_of(attributes))
        t.ledger.saw_root(attributes)

    def filesystem(answer: Filesystem) -> None:
        sandbox.check_filesystem(answer)
        t.ledger.saw_filesystem(answer)

    for arguments, answered in ((messages.Getattr(b""), root), (messages.Statfs(), filesystem)):
        t.session.ask(Pending(t.session.own_id(), arguments, deadline, answered, ignored))
