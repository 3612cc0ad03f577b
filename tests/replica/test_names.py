"""Names that a copy makes, and links that may stand in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.paths import NAME_MAX, is_safe_name, join, split
from fuse_gated.replica import names
from fuse_gated.replica.version import DIRECTORY, LINK, OTHER, Version


def test_marks_stand_behind_the_name():
    assert names.conflict(b"d/f.txt", "0123456789abcdef", 1) == b"d/f.txt.conflict-01234567-1"
    assert names.refused(b"f", "0123456789abcdef", 12) == b"f.refused-01234567-12"
    assert names.temporary(b"d/f.txt", "abcd") == b"d/.fuse-gated-abcd-f.txt"


@given(st.binary(min_size=1, max_size=NAME_MAX).filter(is_safe_name), st.integers(1, 10**6))
def test_every_name_is_one_component_in_the_same_directory(name, number):
    for path in (name, join(b"d", name)):
        made = [
            names.conflict(path, "f" * 16, number), names.refused(path, "f" * 16, number), names.temporary(path, "ab" * 8),
        ]  # fmt: skip
        for new in made:
            assert split(new)[0] == split(path)[0]
            assert is_safe_name(split(new)[1])
            assert new != path
        assert [names.is_temporary(new) for new in made] == [split(path)[1].startswith(names.TEMPORARY)] * 2 + [True]


def test_the_file_that_tells_is_not_temporary():
    assert not names.is_temporary(names.TOLD)
    assert names.is_temporary(b"d/" + names.TOLD)


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        (b"l", b"f", True), (b"l", b"./d//f", True), (b"l", b".", True), (b"d/l", b"../f", True), (b"d/l", b"..", True),
        (b"d/e/l", b"../../f", True), (b"d/l", b".././f", True),
        (b"l", b"..", False), (b"l", b"../f", False), (b"d/l", b"../../f", False), (b"l", b"/etc/passwd", False),
        (b"l", b"", False),
        (b"l", b"d/../f", False), (b"d/e/l", b"x/../../../f", False), (b"d/l", b"../x/..", False),
    ],
)  # fmt: skip
def test_a_link_stays_inside_by_its_form(path, target, inside):
    assert names.stays_inside(path, target) is inside


def test_what_is_of_the_copys_keeping():
    assert names.is_ours(names.TOLD)
    assert names.is_ours(names.temporary(b"d/f", "ab"))
    assert not names.is_ours(b"d/f")


def test_what_is_never_on_both_sides():
    assert names.why_not(b"l", Version(LINK, target=b"../x")) == "a link that may lead out of the export"
    assert names.why_not(b"p", Version(OTHER)) == "neither a file, a directory nor a link"
    assert names.why_not(b"l", Version(LINK, target=b"x")) == names.why_not(b"d", Version(DIRECTORY)) == ""
