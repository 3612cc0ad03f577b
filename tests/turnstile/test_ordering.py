"""turnstile/ordering.py: what the client must have done before it begins what it is asked next. (What the order is for is in
test_ahead.py and test_unlocking.py.)"""

from harness.sansio import Mount, attributes

from fuse_gated import operations as op
from fuse_gated.turnstile import ordering
from fuse_gated.wire import messages as wire


def test_nothing_is_named_while_nothing_is_on_its_way() -> None:
    mount = Mount(orders=True)
    ordering.adjust(mount.t)
    assert mount.t.session.after is None


def test_a_write_comes_after_those_of_its_file_and_the_rest_after_all() -> None:
    mount = Mount(orders=True)
    numbers = {}
    for name, inode in ((b"f", 21), (b"g", 22)):
        node = mount.lookup(name, inode=inode)
        handle = mount.do(op.Open(node, 2), wire.OpenedFile(inode, attributes(inode), True)).handle
        numbers[name] = mount.ask(op.Write(node, handle, 0, b"data"))
    assert mount.sent[-1].after == ()
    mount.ask(op.Write(node, handle, 4, b"dirty", from_cache=True))
    assert mount.sent[-1].after == (numbers[b"g"],)
    mount.ask(op.Statfs(1))
    assert set(mount.sent[-1].after) == set(numbers.values())
