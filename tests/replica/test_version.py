"""Versions: what counts of a name on one side."""

import stat

import msgspec
import pytest

from fuse_gated.operations import Attributes
from fuse_gated.replica.version import DIRECTORY, FILE, LINK, OTHER, Version, mode_there, of_attributes, same_but_renamed, version


def attributes(mode: int) -> Attributes:
    return Attributes(1, 2, mode, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)


def test_a_file_is_its_times_size_identity_and_permissions():
    found = of_attributes(attributes(stat.S_IFREG | stat.S_ISUID | 0o751))
    assert found == Version(FILE, 7, 11, 12, 1, 2, 0o751)
    assert found.executable
    assert not of_attributes(attributes(stat.S_IFREG | 0o644)).executable


def test_of_a_directory_and_a_link_only_what_they_are_counts():
    assert of_attributes(attributes(stat.S_IFDIR | 0o755)) == Version(DIRECTORY)
    assert of_attributes(attributes(stat.S_IFLNK | 0o777), b"to") == Version(LINK, target=b"to")


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR, 0])
def test_what_is_none_of_these_is_other(kind):
    assert version(kind | 0o644, 1, 2, 3, device=4, inode=5, target=b"x") == Version(OTHER)


def test_a_rename_changes_ctime_alone():
    one = Version(FILE, 1, 2, 3, 4, 5, 0o644)
    assert same_but_renamed(one, msgspec.structs.replace(one, ctime=99))
    for other in ({"size": 9}, {"mtime": 9}, {"device": 9}, {"inode": 9}, {"mode": 9}):
        assert not same_but_renamed(one, msgspec.structs.replace(one, **other))


@pytest.mark.parametrize(
    ("ours", "there", "expected"),
    [
        (0o660, None, 0o644), (0o770, None, 0o755), (0o660, 0o640, 0o640), (0o770, 0o640, 0o750), (0o660, 0o755, 0o644),
        (0o700, 0o600, 0o700),
    ],
)  # fmt: skip
def test_the_clients_file_keeps_its_mode_but_for_the_right_to_execute(ours, there, expected):
    remote = None if there is None else Version(FILE, mode=there)
    assert mode_there(Version(FILE, mode=ours), remote) == expected


def test_in_the_place_of_a_link_a_file_has_the_mode_of_most():
    assert mode_there(Version(FILE, mode=0o600), Version(LINK, target=b"x")) == 0o644


@pytest.mark.parametrize(("seconds", "noted"), [(32503680000, 2**63 - 1), (-(2**40), -(2**63 - 1)), (10**9, 10**18)])
def test_times_fit_where_they_are_noted_and_sent(seconds, noted):
    """touch -d 3000-01-01, on a filesystem that takes it."""
    found = version(stat.S_IFREG | 0o644, 1, seconds * 10**9, seconds * 10**9, device=4, inode=5)
    assert (found.mtime, found.ctime) == (noted, noted)
    msgspec.msgpack.encode(found)
