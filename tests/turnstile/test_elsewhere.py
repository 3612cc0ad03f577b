"""Programs that are attached beside a mount: what they change the kernel forgets, and what they had open is closed."""

import pytest
from harness.sansio import DIRECTORY, O_RDONLY, O_RDWR, O_TRUNC, ROOT, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.tree.inodes import Node
from fuse_gated.turnstile import elsewhere
from fuse_gated.turnstile.effects import InvalidateEntry, InvalidateInode
from fuse_gated.turnstile.outage import Outage
from fuse_gated.wire import messages as wire


def node_of(mount: Mount, name: bytes, inode: int = 5) -> int:
    """What the mount's kernel has looked up."""
    answer = mount.do(op.Lookup(ROOT, name), attributes(inode))
    assert isinstance(answer, op.Entry), answer
    return answer.node


def open_by_path(mount: Mount, path: bytes, flags: int = O_RDWR, inode: int = 5, remote: int = 77) -> int:
    answer = mount.do(op.Open(path, flags), wire.OpenedFile(remote, attributes(inode)))
    assert isinstance(answer, op.Opened), answer
    return answer.handle


def forgotten(mount: Mount, request: op.Request) -> list[int]:
    mount.t.effects.clear()
    elsewhere.changed(mount.t, request)
    found = [effect.node for effect in mount.t.effects if isinstance(effect, InvalidateInode)]
    assert len(found) == len(mount.t.effects)
    mount.t.effects.clear()
    return found


def test_contents_that_change_are_forgotten() -> None:
    mount = Mount()
    node, other = node_of(mount, b"f"), node_of(mount, b"g", 6)
    handle = open_by_path(mount, b"f")
    elsewhere_open = open_by_path(mount, b"not/looked/up", inode=8, remote=78)
    assert forgotten(mount, op.Write(b"", handle, 0, b"x")) == [node]
    assert forgotten(mount, op.Fallocate(b"", handle, 0, 5, 0)) == [node]
    assert forgotten(mount, op.CopyFileRange(b"", 99, 0, b"", handle, 0, 5)) == [node]
    assert forgotten(mount, op.Setattr(b"", handle, size=5)) == [node]
    assert forgotten(mount, op.Setattr(b"g", mode=0o644)) == [other]
    assert forgotten(mount, op.Open(b"g", O_RDWR | O_TRUNC)) == [other]
    assert forgotten(mount, op.Write(b"", elsewhere_open, 0, b"x")) == []
    assert forgotten(mount, op.Write(b"", 99, 0, b"x")) == []
    assert forgotten(mount, op.Setattr(node, mode=0o644)) == [], "the kernel knows its own"
    assert forgotten(mount, op.Unlink(b"", b"g")) == [], "names are asked for each time"


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (op.Unlink(b"", b"g"), [b"g"]),
        (op.Mkdir(b"", b"new", 0o755, 0), [b"new"]),
        (op.Rename(b"", b"g", b"", b"h", 0), [b"g", b"h"]),
        (op.Unlink(b"not/looked/up", b"g"), []),
        (op.Lookup(b"", b"g"), []),
    ],
)
def test_names_that_the_kernel_may_keep_are_forgotten(request_: op.Request, names: list[bytes]) -> None:
    mount = Mount(watches=True)
    mount.t.effects.clear()
    elsewhere.changed(mount.t, request_)
    expected = [[InvalidateEntry(ROOT, name, expire=True), InvalidateInode(ROOT, pages=False)] for name in names]
    assert mount.t.effects == [effect for pair in expected for effect in pair]


def test_other_names_of_a_file_are_forgotten_too() -> None:
    mount = Mount()
    first = mount.do(op.Lookup(ROOT, b"f"), attributes(5, nlink=2))
    second = mount.do(op.Lookup(ROOT, b"g"), attributes(5, nlink=2))
    assert isinstance(first, op.Entry)
    assert isinstance(second, op.Entry)
    assert forgotten(mount, op.Setattr(b"g", size=0)) == [second.node, first.node]


def test_what_nobody_has_any_more_is_closed() -> None:
    mount = Mount(audit="opens")
    node = node_of(mount, b"f")
    kept = mount.do(op.Open(node, O_RDONLY), wire.OpenedFile(76, attributes(5)))
    assert isinstance(kept, op.Opened)
    handle = open_by_path(mount, b"f")
    directory = mount.do(op.Opendir(b"", O_RDONLY), wire.OpenedFile(79, attributes(1, DIRECTORY)))
    assert isinstance(directory, op.Opened)
    mount.do(op.Setlk(b"", handle, 9, 0, 5, 1, 1, False, False), None)
    mount.log.clear()
    elsewhere.release_orphans(mount.t, "kernel")
    mount.gather()
    asked = [frame.arguments for frame in mount.sent]
    assert asked == [wire.Flush(77, 9), wire.Release(77), wire.Releasedir(79)]
    assert [record.operation for record in mount.records] == ["release"]
    assert [each.id for each in mount.t.handles] == [kept.handle]


@pytest.mark.parametrize("why", ["libfuse", "away"])
def test_what_may_still_be_somebodys_stays(why: str) -> None:
    mount = Mount()
    handle = open_by_path(mount, b"f")
    if why == "away":
        mount.t.outage = Outage("wait", mount.t.ledger.known, lambda _target: None, lambda _path: None)
    elsewhere.release_orphans(mount.t, "libfuse" if why == "libfuse" else "kernel")
    assert mount.t.handles.get(handle) is not None


def test_a_node_is_found_by_its_path() -> None:
    mount = Mount()
    assert isinstance(mount.t.inodes.find(b""), Node)
