import errno

import pytest

from fuse_gated.edge.request import Request, handles_of, is_held_by_another, weight_of
from fuse_gated.wire import messages as wire


@pytest.mark.parametrize(
    ("arguments", "weight"),
    [
        (wire.Read(1, 0, 4096), 4096),
        (wire.Read(1, 0, -1), 0),
        (wire.Write(1, 0, memoryview(b"12345")), 5),
        (wire.Gather((b"", b"d"), 4096, 100, 65536, True), 65536),
        (wire.Gather((), 0, 0, -1, True), 0),
        (wire.Getattr(b""), 0),
    ],
)
def test_what_a_request_weighs(arguments: wire.Arguments, weight: int) -> None:
    assert weight_of(arguments) == weight
    assert Request(2, arguments).weight == weight


@pytest.mark.parametrize(
    ("arguments", "handles"),
    [
        (wire.Read(1, 0, 4096), (1,)),
        (wire.CopyFileRange(1, 0, 2, 0, 10), (1, 2)),
        (wire.Getattr(3), (3,)),
        (wire.Getattr(b"path"), ()),
        (wire.Symlink(b"path", b"target"), ()),
        (wire.Statfs(), ()),
    ],
)
def test_the_handles_that_a_request_works_on(arguments: wire.Arguments, handles: tuple[int, ...]) -> None:
    assert handles_of(arguments) == handles


def test_requests_share_handles() -> None:
    write = Request(2, wire.Write(1, 0, memoryview(b"12345")))
    assert write.shares_handle(Request(3, wire.Release(1)))
    assert write.shares_handle(Request(4, wire.CopyFileRange(2, 0, 1, 0, 10)))
    assert not write.shares_handle(Request(3, wire.Release(2)))
    assert not write.shares_handle(Request(6, wire.Mkdir(b"d", 0o755)))
    assert not Request(6, wire.Statfs()).shares_handle(Request(8, wire.Statfs()))


def test_the_servers_own_have_odd_ids_or_none() -> None:
    assert [Request(number, wire.Statfs()).is_own for number in (1, 2, 3, None)] == [True, False, True, True]


def test_a_lock_worth_waiting_for() -> None:
    held = BlockingIOError(errno.EAGAIN, "held")
    assert is_held_by_another(held, wire.Setlk(1, 2, 0, 9, 1, wait=10))
    assert not is_held_by_another(held, wire.Setlk(1, 2, 0, 9, 1))
    assert not is_held_by_another(held, wire.Open(b"f", 1))
    assert not is_held_by_another(OSError(errno.EBADF, "no"), wire.Setlk(1, 2, 0, 9, 1, wait=10))
    assert not is_held_by_another(ValueError(), wire.Setlk(1, 2, 0, 9, 1, wait=10))


def test_who_hears() -> None:
    assert Request(2, wire.Statfs()).heard
    assert not Request(None, wire.Statfs()).heard
    assert Request(2, wire.Release(1)).is_release
    assert Request(2, wire.Releasedir(1)).is_release
    request = Request(2, wire.Statfs())
    assert not request.is_release
    assert not request.withdraw()
    assert not request.stop_waiting()
