import fcntl
import os
from collections.abc import Iterator

import pytest

from fuse_gated.allotments import Allotments, view
from fuse_gated.gate.shares import SESSIONS, SIZE


@pytest.fixture
def allotments() -> Iterator[Allotments]:
    made = Allotments()
    yield made
    for page in made._pages.values():
        os.close(page.descriptor)


def test_the_sessions_of_a_tenant_share_and_those_of_another_do_not(allotments: Allotments) -> None:
    names = ["acme", "acme", "eve"]
    numbers = [allotments.give(name) for name in names]
    assert numbers == [0, 1, 0]
    views = [view(os.dup(allotments.descriptor(name)), number) for name, number in zip(names, numbers, strict=True)]
    assert [shares.credit(0, 100.0, 1.0) for shares in views] == [1.0] * 3
    views[0].spend(0, 5.0)
    assert [shares.credit(0, 100.1, 1.0) for shares in views] == [pytest.approx(-3.9), pytest.approx(-3.9), 1.0]


def test_a_number_is_used_again_and_the_page_stays(allotments: Allotments) -> None:
    number = allotments.give("acme")
    gone = view(os.dup(allotments.descriptor("acme")), number)
    gone.credit(0, 100.0, 1.0)
    gone.spend(0, 5.0)
    allotments.take_back("acme", number)
    assert allotments.give("acme") == number
    assert allotments.give("acme") == number + 1
    new = view(os.dup(allotments.descriptor("acme")), number)
    assert new.credit(0, 100.0, 1.0) == pytest.approx(-4.0)


def test_with_more_sessions_than_there_is_room_for_some_share_a_number(allotments: Allotments) -> None:
    numbers = [allotments.give("acme") for _ in range(SESSIONS + 2)]
    assert numbers == [*range(SESSIONS), SESSIONS - 1, SESSIONS - 1]


def test_nobody_can_take_the_page_away_from_under_the_others(allotments: Allotments) -> None:
    allotments.give("acme")
    descriptor = allotments.descriptor("acme")
    assert os.fstat(descriptor).st_size == SIZE
    for size in (0, 2 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_what_is_no_page_is_refused_and_closed() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises((OSError, ValueError)):
        view(reader, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)
