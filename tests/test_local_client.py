"""The client of a copy: one that lists for ever, one that is asked too much, and one whose rules are by names."""

import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from fuse_gated import local_client
from fuse_gated import operations as op
from fuse_gated.attached import Attached
from fuse_gated.edge.asking import Waiting
from fuse_gated.local_client import LocalClient, PatientAttached
from fuse_gated.operations import Request
from fuse_gated.replica.sides import Away, Refused

FOLDER, FILE = 0o040755, 0o100644


def attributes(mode: int) -> op.Attributes:
    return op.Attributes(1, 2, mode, 1, 0, 0, 0, 3, 0, 4, 5, 6, 7)


class Answering(PatientAttached):
    """A session that answers so, whatever is on the way."""

    def __init__(self, answer: Callable[[Request], Any]) -> None:
        self.shown = "acme/work"
        self._answer = answer
        self.asked: list[Request] = []

    def start(self, request: Request, _path: bytes) -> Waiting:
        self.asked.append(request)
        return Waiting(0, request)

    def tell(self, request: Request) -> None:
        self.asked.append(request)


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the socket would bring: everything but the socket itself is the product's."""

    def finish(attached: Answering, waiting: Waiting, path: bytes) -> Any:
        answer = attached._answer(waiting.request)
        if isinstance(answer, int) and not isinstance(waiting.request, op.Opendir):
            raise OSError(answer, os.strerror(answer), path)
        return answer

    monkeypatch.setattr(Attached, "finish", finish)
    monkeypatch.setattr(local_client, "_LONGEST_PAUSE", 0.0)


def listing(page: Callable[[bytes], Any]) -> Callable[[Request], Any]:
    def answer(request: Request) -> Any:
        match request:
            case op.Readdir(node=node):
                return page(bytes(node))
            case op.Opendir():
                return 1
            case _:
                return attributes(FOLDER)

    return answer


@pytest.mark.parametrize(
    "entry",
    [
        (b"d", 2, 3, 0o040000, attributes(FOLDER)),
        (b"f", 2, 3, 0o100000, None),
        (b".fuse-gated-x", 2, 3, 0o100000, attributes(FILE)),
    ],
)
def test_a_listing_without_an_end(entry):
    """The same directory again and again; names of which nothing is said; names that are ours."""
    client = LocalClient(Answering(listing(lambda _node: (entry,) * 10)))
    there, unknown = client.scan(1000)
    assert unknown == {b""}
    assert len(there) <= 1000


def test_a_listing_that_goes_on_and_says_nothing():
    client = LocalClient(Answering(listing(lambda _node: ((b".", 2, 3, 0o040000, None),))))
    assert client.scan(1000) == ({}, {b""})


def test_a_directory_is_looked_into_once():
    pages = deque([((b"d", 2, 3, 0o040000, attributes(FOLDER)),) * 3, (), ()])
    attached = Answering(listing(lambda _node: pages.popleft()))
    there, unknown = LocalClient(attached).scan(1000)
    assert (set(there), unknown) == ({b"d"}, set())
    assert sum(isinstance(request, op.Opendir) for request in attached.asked) == 2


def test_what_is_too_much_for_now_is_asked_again():
    """on_excess: refuse. Nothing begins all over again."""
    excess = deque([errno.EAGAIN, errno.EAGAIN])
    attached = Answering(lambda _request: excess.popleft() if excess else attributes(FILE))
    assert LocalClient(attached).look(b"f") is not None
    assert len(attached.asked) == 3


def test_what_is_too_much_for_long_is_given_up(monkeypatch):
    monkeypatch.setattr(local_client, "_PATIENCE", 0.0)
    with pytest.raises(Away):
        LocalClient(Answering(lambda _request: errno.EAGAIN)).look(b"f")


@pytest.mark.parametrize(("number", "passing"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)])
def test_what_may_be_otherwise_later(number, passing):
    with pytest.raises(Refused) as raised:
        LocalClient(Answering(lambda _request: number)).look(b"f")
    assert raised.value.passing is passing


@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY, errno.EMFILE])
def test_a_file_that_can_never_be_had_does_not_keep_the_others(number):
    client = LocalClient(Answering(lambda _request: number))
    for _ in range(3):
        with pytest.raises(Away):
            client.look(b"f")
    with pytest.raises(Refused) as raised:
        client.look(b"f")
    assert raised.value.passing
    with pytest.raises(Away):
        client.look(b"g")


def test_what_may_be_read_is_looked_up_before():
    """A worker that has not looked a name up judges it as a directory."""
    attached = Answering(lambda request: errno.EACCES if isinstance(request, op.Access) else attributes(FILE))
    assert not LocalClient(attached).may_read(b"d/f")
    assert [type(request) for request in attached.asked] == [op.Lookup, op.Access]


def test_what_may_be_removed_is_asked_for_each_name():
    def rules(request: Request) -> int:
        assert isinstance(request, op.Unlink)
        return errno.EACCES if request.name.endswith(b".lock") else errno.ENOENT

    client = LocalClient(Answering(rules))
    client.may_remove(b"d/.fuse-gated-a1-a.txt")
    with pytest.raises(Refused):
        client.may_remove(b"d/.fuse-gated-a2-foo.lock")
    asked = client.attached.asked
    client.may_remove(b"d/.fuse-gated-a3-a.txt")
    assert len(asked) == 2, "it is known"
    client.forget_rules()
    client.may_remove(b"d/.fuse-gated-a4-a.txt")
    assert len(asked) == 3
