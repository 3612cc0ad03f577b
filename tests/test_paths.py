"""paths.py: bytes, one safe component at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.paths import NAME_MAX, components, is_beneath, is_mount_name, is_safe_name, join, shown, split

names = st.binary(min_size=1, max_size=8).filter(is_safe_name)
paths = st.lists(names, max_size=5).map(b"/".join)


@pytest.mark.parametrize("name", [b"a", b"...", b".a", b"a.", b" ", b"\n", b"\xff\xfe", b"-", b"\\", b"n" * NAME_MAX])
def test_a_name_may_be_almost_anything(name):
    assert is_safe_name(name)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"/a", b"a/", b"\0", b"a\0b", b"n" * (NAME_MAX + 1)])
def test_what_could_lead_elsewhere_is_no_name(name):
    assert not is_safe_name(name)


@pytest.mark.parametrize("name", ["a", "0", "src", "a.b_c-d", "a" * 64])
def test_a_mounts_name_is_plain(name):
    assert is_mount_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "_a", "A", "a/b", "a b", "ä", "a\n", "\u0661", "a" * 65])
def test_anything_else_is_no_mounts_name(name):
    assert not is_mount_name(name)


@given(paths, names)
def test_what_was_joined_can_be_split(parent, name):
    path = join(parent, name)
    assert split(path) == (parent, name)
    assert components(path) == [*components(parent), name]
    assert b"/".join(components(path)) == path


def test_the_root_has_no_components():
    assert components(b"") == []
    assert join(b"", b"a") == b"a"


@given(paths, paths)
def test_beneath_is_by_components_and_not_by_bytes(path, directory):
    depth = len(components(directory))
    assert is_beneath(path, directory) == (components(path)[:depth] == components(directory))


def test_a_name_that_only_begins_alike_is_not_beneath():
    assert not is_beneath(b"ab", b"a")
    assert is_beneath(b"a/b", b"a")
    assert is_beneath(b"a", b"a")
    assert not is_beneath(b"", b"a")
    assert is_beneath(b"", b"")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"", "/"),
        (b"src/main.c", "/src/main.c"),
        ("ä/日本".encode(), "/ä/日本"),
        (b"a\xff", "/a\\xff"),
        (b"a\nb", "/a\\x0ab"),
        (b"a\\b", "/a\\\\b"),
        (b"a\x1b[31m", "/a\\x1b[31m"),
        ("a\u202eb".encode(), "/a\\xe2\\x80\\xaeb"),
    ],
)
def test_a_path_for_people_is_one_printable_line(path, text):
    assert shown(path) == text


@given(st.binary(max_size=40))
def test_no_two_paths_look_alike_and_none_spoils_the_line(path):
    text = shown(path)
    assert text.isprintable()
    assert _read_back(text) == path


def _read_back(text: str) -> bytes:
    out, rest = b"", text[1:]
    while rest:
        if rest.startswith("\\x"):
            out, rest = out + bytes([int(rest[2:4], 16)]), rest[4:]
        elif rest.startswith("\\\\"):
            out, rest = out + b"\\", rest[2:]
        else:
            out, rest = out + rest[0].encode(), rest[1:]
    return out
