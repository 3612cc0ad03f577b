"""Whether two files have the same in them."""

from fuse_gated.replica.comparing import equal


def test_two_contents_are_equal_however_they_are_cut():
    assert equal(iter([b"ab", b"c"]), iter([b"a", b"bc"]))
    assert equal(iter([]), iter([]))
    assert not equal(iter([b"ab"]), iter([b"a"]))
    assert not equal(iter([b"ab"]), iter([b"ac"]))
    assert not equal(iter([]), iter([b"a"]))
