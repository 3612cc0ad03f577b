from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuse_gated.errors import ProtocolError
from fuse_gated.gate import sandbox
from fuse_gated.operations import Attributes, Filesystem
from fuse_gated.wire.messages import Listed, ListedEntry, LockState

GOOD = Attributes(
    device=2049,
    inode=12,
    mode=0o100644,
    nlink=1,
    uid=1000,
    gid=1000,
    rdev=0,
    size=5,
    blocks=8,
    block_size=4096,
    atime=1_700_000_000 * 10**9,
    mtime=-1,
    ctime=0,
)
SPACE = Filesystem(blocks=100, free=50, available=40, files=10, files_free=5, block_size=4096, name_max=255, fragment_size=4096)


def but(**fields: int) -> Attributes:
    return msgspec.structs.replace(GOOD, **fields)


@pytest.mark.parametrize("kind", [0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000, 0o140000])
def test_the_seven_file_types_pass(kind: int) -> None:
    sandbox.check_attributes(but(mode=kind | 0o7777))


@pytest.mark.parametrize(
    "fields",
    [
        {"inode": 2**64 - 1, "device": 2**64 - 1},
        {"size": 2**63 - 1, "blocks": 2**63 - 1},
        {"nlink": 0},
        {"nlink": 2**32 - 1, "uid": 2**32 - 1, "gid": 2**32 - 1, "rdev": 2**32 - 1},
        {"block_size": 0},
        {"block_size": 16 * 2**20},
        {"atime": -(2**63) * 10**9, "mtime": 2**63 * 10**9 - 1},
    ],
)
def test_attributes_at_the_kernels_limits_pass(fields: dict[str, int]) -> None:
    sandbox.check_attributes(but(**fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", -1),
        ("device", 2**64),
        ("inode", -1),
        ("inode", 2**64),
        ("mode", -1),
        ("mode", 0o300644),
        ("nlink", -1),
        ("nlink", 2**32),
        ("uid", -1),
        ("uid", 2**32),
        ("gid", -1),
        ("gid", 2**32),
        ("rdev", -1),
        ("rdev", 2**32),
        ("size", -1),
        ("size", 2**63),
        ("blocks", -1),
        ("blocks", 2**63),
        ("block_size", -1),
        ("block_size", 2**30),
        ("atime", 2**63 * 10**9),
        ("mtime", -(2**63) * 10**9 - 1),
        ("ctime", 2**63 * 10**9),
    ],
)
def test_attributes_that_the_kernel_cannot_hold(field: str, value: int) -> None:
    with pytest.raises(ProtocolError, match=f"attributes with {field} {value}: not within"):
        sandbox.check_attributes(but(**{field: value}))


@pytest.mark.parametrize("mode", [0, 0o644, 0o030000, 0o170000, 0o110644])
def test_a_file_type_that_there_is_not(mode: int) -> None:
    with pytest.raises(ProtocolError, match=f"mode {mode:#o}: no file is of that type"):
        sandbox.check_attributes(but(mode=mode))


numbers = st.one_of(
    st.just(0), st.sampled_from([-1, 2**26, 2**26 + 1, 2**32 - 1, 2**32, 2**63, 2**64]), st.integers(-(2**66), 2**66)
)


@given(st.dictionaries(st.sampled_from(GOOD.__struct_fields__), numbers, max_size=3))
def test_attributes_are_refused_exactly_for_a_field_out_of_range(fields: dict[str, int]) -> None:
    bad = [field for field, least, most in sandbox._ATTRIBUTES if not least <= fields.get(field, 0) <= most]
    if "mode" in fields and "mode" not in bad and fields["mode"] & 0o170000 not in sandbox.FILE_TYPES:
        bad.append("mode")
    refusals = []
    try:
        sandbox.check_attributes(but(**fields))
    except ProtocolError as refused:
        refusals.append(refused.message)
    assert len(refusals) == bool(bad)
    assert all(any(f"attributes with {field} " in message for field in bad) for message in refusals)


def test_names() -> None:
    for name in (b"a", b"a b", b"\xff\n", b"...", b"n" * 255):
        sandbox.check_entry_name(name)
    for name in (b"", b".", b"..", b"a/b", b"/", b"a\0", b"n" * 256):
        with pytest.raises(ProtocolError, match=r"no file can have that name") as refused:
            sandbox.check_entry_name(name)
        assert len(refused.value.message) < 400


def test_paths() -> None:
    for path in (b"", b"a", b"a/b\xff/c"):
        sandbox.check_path(path)
    for path in (b"/", b"/a", b"a/", b"a//b", b"../a", b"a/../b", b"a/.", b"a\0b", b"a/" + b"n" * 256):
        with pytest.raises(ProtocolError, match="a path with the component"):
            sandbox.check_path(path)


def entry(name: bytes = b"a", inode: int = 1, type: int = 0o100000, attributes: Attributes | None = None) -> ListedEntry:
    return ListedEntry(name, inode, type, attributes)


def test_listings_that_pass() -> None:
    sandbox.check_listing(Listed((), True), 10)
    sandbox.check_listing(Listed((entry(), entry(b"b", 0, 0), entry(b"c", 2**64 - 1, 0o040000, GOOD)), False), 3)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (Listed((entry(),) * 4, True), "4 entries, 3 were asked for"),
        (Listed((), False), "would never end"),
        (Listed((entry(), entry(b"..")), True), "'..', 2 bytes"),
        (Listed((entry(b"a/b"),), True), "'a/b'"),
        (Listed((entry(type=0o170000),), True), "type 0o170000"),
        (Listed((entry(type=1),), True), "type 0o1"),
        (Listed((entry(type=-1),), True), "type -0o1"),
        (Listed((entry(inode=-1),), True), "inode -1"),
        (Listed((entry(inode=2**64),), True), "inode 18446744073709551616"),
        (Listed((entry(attributes=but(size=-1)),), True), "size -1"),
    ],
)
def test_listings_that_are_refused(page: Listed, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        sandbox.check_listing(page, 3)


def test_data_and_counts() -> None:
    sandbox.check_data(b"", 0)
    sandbox.check_data(memoryview(b"abc"), 3)
    sandbox.check_count(0, 3)
    sandbox.check_count(3, 3)
    sandbox.check_offset(0)
    sandbox.check_offset(2**63 - 1)
    sandbox.check_offset(5, 5)
    for check, arguments in (
        (sandbox.check_data, (b"abcd", 3)),
        (sandbox.check_count, (4, 3)),
        (sandbox.check_count, (-1, 3)),
        (sandbox.check_offset, (-1,)),
        (sandbox.check_offset, (2**63,)),
        (sandbox.check_offset, (4, 5)),
    ):
        with pytest.raises(ProtocolError):
            check(*arguments)  # type: ignore[operator]


def test_filesystems() -> None:
    sandbox.check_filesystem(SPACE)
    sandbox.check_filesystem(msgspec.structs.replace(SPACE, blocks=2**64 - 1, free=200, available=0))
    wrong = {"blocks": -1, "free": 2**64, "files": -1, "block_size": 0, "name_max": 0, "fragment_size": 2**32}
    for field, value in wrong.items():
        with pytest.raises(ProtocolError, match=f"a filesystem with {field} {value}"):
            sandbox.check_filesystem(msgspec.structs.replace(SPACE, **{field: value}))


def test_extended_attributes() -> None:
    sandbox.check_xattr(b"v" * 65536)
    with pytest.raises(ProtocolError, match="65537 bytes"):
        sandbox.check_xattr(b"v" * 65537)
    sandbox.check_xattr_names(())
    sandbox.check_xattr_names((b"user.a", b"n" * 255))
    sandbox.check_xattr_names((b"n" * 255,) * 256)
    for names in ((b"",), (b"user.a", b"n" * 256), (b"a\0b",)):
        with pytest.raises(ProtocolError, match="none can be"):
            sandbox.check_xattr_names(names)
    with pytest.raises(ProtocolError, match="more than 65536 bytes"):
        sandbox.check_xattr_names((b"n" * 255,) * 257)


def test_locks() -> None:
    for good in (LockState(2), LockState(0, 5, 5), LockState(1, 0, 2**63 - 1)):
        sandbox.check_lock(good)
    for bad in (LockState(3), LockState(-1), LockState(0, 5, 4), LockState(1, -1, 4), LockState(1, 0, 2**63)):
        with pytest.raises(ProtocolError, match="a lock"):
            sandbox.check_lock(bad)


ROOT = b"/home/me/project"


@pytest.mark.parametrize(
    ("target", "link", "shown"),
    [
        (b"file", b"l", b"file"),
        (b"dir/file", b"l", b"dir/file"),
        (b"dir//file/", b"l", b"dir//file/"),
        (b"./file", b"l", b"./file"),
        (b"a/./b", b"l", b"a/./b"),
        (b".", b"l", b"."),
        (b"../file", b"d/l", b"../file"),
        (b"..", b"d/l", b".."),
        (b"../", b"d/l", b"../"),
        (b"..//../x", b"a/b/l", b"..//../x"),
        (b"../../x", b"a/b/l", b"../../x"),
        (b"...", b"l", b"..."),
        (b"..a", b"l", b"..a"),
        # Out of the export.
        (b"..", b"l", None),
        (b"../x", b"l", None),
        (b"../../x", b"d/l", None),
        # '..' after something else: what it leads to depends on what that is.
        (b"a/..", b"d/l", None),
        (b"d/../../x", b"a/b/l", None),
        (b"./../x", b"a/l", None),
        (b".././../x", b"a/b/l", None),
        (b"../a/../x", b"a/b/l", None),
        # Absolute.
        (ROOT + b"/file", b"l", b"file"),
        (ROOT + b"/file", b"a/b/l", b"../../file"),
        (ROOT + b"/a/b/file", b"a/l", b"../a/b/file"),
        (ROOT + b"/dir/", b"l", b"dir/"),
        (b"/home//me/./project/file", b"l", b"file"),
        (ROOT, b"l", b"."),
        (ROOT + b"/", b"l", b"./"),
        (ROOT, b"a/l", b".."),
        (ROOT + b"/", b"a/b/l", b"../../"),
        (ROOT + b"2/file", b"l", None),
        (b"/home/me", b"l", None),
        (b"/", b"l", None),
        (b"/etc/passwd", b"l", None),
        (ROOT + b"/../secret", b"l", None),
        (ROOT + b"/a/../b", b"l", None),
        (b"/home/../home/me/project/x", b"l", None),
        # No target at all, or none that the kernel can take.
        (b"", b"l", None),
        (b"a\0b", b"l", None),
        (b"x" * 4095, b"l", b"x" * 4095),
        (b"x" * 4096, b"l", None),
        (ROOT + b"/" + b"x" * 4000, b"/".join([b"d"] * 40), None),
    ],
)
def test_contained_links(target: bytes, link: bytes, shown: bytes | None) -> None:
    assert sandbox.contained_link(target, link, ROOT, "inside") == shown


@pytest.mark.parametrize(
    ("target", "link", "root", "shown"),
    [
        (b"/etc/passwd", b"l", b"/", b"etc/passwd"),
        (b"/", b"l", b"/", b"./"),
        (b"/", b"a/l", b"/", b"../"),
        (b"/home", b"l", b"/home/", b"."),
        (b"/x", b"l", b"", None),
        (b"/x", b"l", b"relative", None),
        (b"/a/../b/x", b"l", b"/a/../b", None),
    ],
)
def test_contained_links_of_other_roots(target: bytes, link: bytes, root: bytes, shown: bytes | None) -> None:
    assert sandbox.contained_link(target, link, root, "inside") == shown


def test_links_as_they_are_and_no_links() -> None:
    for target in (b"/etc/passwd", b"../../..", b"d/../../x", b"file"):
        assert sandbox.contained_link(target, b"l", ROOT, "as-is") == target
        assert sandbox.contained_link(target, b"l", ROOT, "deny") is None
    for target in (b"", b"a\0", b"x" * 4096):
        assert sandbox.contained_link(target, b"l", ROOT, "as-is") is None


class Escaped(Exception):
    """The walk left the export."""


def resolve(links: dict[bytes, bytes], directory: list[bytes], path: bytes, followed: list[int]) -> list[bytes]:
    """path_resolution(7) of `path` from a directory of the export, following links as the kernel does; every name that is not
    a link is a directory."""
    here = list(directory)
    if path.startswith(b"/"):
        raise Escaped
    for name in path.split(b"/"):
        if name in (b"", b"."):
            continue
        if name == b"..":
            if not here:
                raise Escaped
            here.pop()
            continue
        target = links.get(b"/".join([*here, name]))
        if target is None:
            here.append(name)
            continue
        followed[0] += 1
        if followed[0] > 40:
            raise RecursionError("ELOOP")
        here = resolve(links, here, target, followed)
    return here


components = st.sampled_from([b"a", b"b", b"l", b"..", b"..", b".", b""])
targets = st.builds(
    lambda start, names: start + b"/".join(names),
    st.sampled_from([b"", b"", b"", b"/", ROOT, ROOT + b"/"]),
    st.lists(components, max_size=7),
)
places = st.lists(st.sampled_from([b"a", b"b", b"l"]), min_size=1, max_size=4).map(b"/".join)


@given(st.dictionaries(places, targets, min_size=1, max_size=8))
@settings(max_examples=1000, deadline=None)
@example({b"d": b"../../..", b"l": b"d/../../x"})
@example({b"a/b/l": b"../../b", b"b": b"a", b"l": b"a/b/l/../../../x"})
def test_no_chain_of_contained_links_escapes(targets_by_place: dict[bytes, bytes]) -> None:
    shown: dict[bytes, Any] = {
        place: sandbox.contained_link(target, place, ROOT, "inside") for place, target in targets_by_place.items()
    }
    # What is refused ends a walk: for the resolver it is no link, and so a directory that can be walked on from.
    links = {place: target for place, target in shown.items() if target is not None}
    for place in links:
        directory = place.split(b"/")[:-1]
        if any(b"/".join(directory[:depth]) in links for depth in range(1, len(directory) + 1)):
            continue  # its parent is a link, so there is nothing of this name
        try:
            resolve(links, directory, place.split(b"/")[-1], [0])
        except RecursionError:
            continue


def test_the_resolver_finds_escapes() -> None:
    # The same resolver, on links that are not contained: else the test above could not fail.
    with pytest.raises(Escaped):
        resolve({b"d": b"..", b"l": b"d/x"}, [], b"l", [0])
    with pytest.raises(Escaped):
        resolve({b"a/d": b"..", b"l": b"a/d/../x"}, [], b"l", [0])
    assert resolve({b"a/d": b"../b"}, [], b"a/d/x", [0]) == [b"b", b"x"]
    with pytest.raises(RecursionError):
        resolve({b"l": b"l"}, [], b"l", [0])
