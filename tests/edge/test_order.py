"""edge/order.py: whoever waits is begun once, after all that it waits for, and nothing is kept of what has ended."""

import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.edge.order import Order
from fuse_gated.edge.request import Request
from fuse_gated.wire import messages as wire


def requests(count: int) -> list[Request]:
    return [Request(2 * number, wire.Statfs()) for number in range(1, count + 1)]


class Begun:
    def __init__(self, *, ends_at_once: bool = False) -> None:
        self.order = Order(self._begin)
        self.requests: list[Request] = []
        self._ends_at_once = ends_at_once

    def _begin(self, request: Request) -> None:
        assert not self.order.holds(request)
        self.requests.append(request)
        if self._ends_at_once:
            self.order.ended(request, failed=False)

    @property
    def is_empty(self) -> bool:
        return not (self.order._waits_for or self.order._awaited_by or self.order._due or len(self.order))


def test_one_waits_for_all_that_it_comes_after() -> None:
    begun = Begun()
    first, second, third = requests(3)
    begun.order.hold(third, [first, second, first])
    assert begun.order.holds(third)
    begun.order.ended(second, failed=False)
    assert begun.requests == []
    begun.order.ended(first, failed=False)
    assert begun.requests == [third]
    assert begun.is_empty


def test_those_that_wait_for_the_same_are_begun_as_they_came() -> None:
    begun = Begun()
    first, *others = requests(20)
    for other in others:
        begun.order.hold(other, [first])
    begun.order.ended(first, failed=False)
    assert begun.requests == others


def test_a_failure_is_told_to_those_that_wait() -> None:
    begun = Begun()
    failing, other, after_both, after_other = requests(4)
    begun.order.hold(after_both, [failing, other])
    begun.order.hold(after_other, [other])
    begun.order.ended(failing, failed=True)
    begun.order.ended(other, failed=False)
    assert begun.requests == [after_both, after_other]
    assert [request.comes_after_failure for request in begun.requests] == [True, False]


def test_one_that_leaves_is_not_begun() -> None:
    begun = Begun()
    first, second, leaving, staying = requests(4)
    begun.order.hold(leaving, [first, second])
    begun.order.hold(staying, [first])
    assert begun.order.leave(leaving) == {first, second}
    begun.order.ended(second, failed=False)
    begun.order.ended(first, failed=False)
    assert begun.requests == [staying]
    assert begun.is_empty


def test_nothing_is_begun_once_it_is_cleared() -> None:
    begun = Begun()
    first, second = requests(2)
    begun.order.hold(second, [first])
    begun.order.clear()
    assert begun.is_empty
    begun.order.ended(first, failed=False)
    assert begun.requests == []


def test_a_long_chain_is_let_go_without_calls_within_calls() -> None:
    begun = Begun(ends_at_once=True)
    chain = requests(2 * sys.getrecursionlimit())
    for earlier, later in itertools.pairwise(chain):
        begun.order.hold(later, [earlier])
    begun.order.ended(chain[0], failed=False)
    assert begun.requests == chain[1:]
    assert begun.is_empty


def test_what_goes_wrong_at_one_does_not_keep_the_next_from_being_begun() -> None:
    faulty = [True]

    def begin(request: Request) -> None:
        if faulty.pop():
            raise KeyError("a fault")

    order = Order(begin)
    first, second, third = requests(3)
    order.hold(second, [first])
    order.hold(third, [second])
    with pytest.raises(KeyError):
        order.ended(first, failed=False)
    faulty.append(False)
    order.ended(second, failed=False)
    assert faulty == []


@given(st.lists(st.tuples(st.sets(st.integers(0, 30)), st.booleans()), min_size=1, max_size=30))
def test_each_is_begun_once_and_after_its_own(asked: list[tuple[set[int], bool]]) -> None:
    """Ids are numbers here; those beyond are not known. Half of them end at once, the others when all have been asked."""
    ended: set[int] = set()
    started: list[int] = []
    known = requests(len(asked))

    def number_of(request: Request) -> int:
        assert request.id is not None
        return request.id // 2 - 1

    def begin(request: Request) -> None:
        number = number_of(request)
        assert {name for name in asked[number][0] if name < number} <= ended
        started.append(number)
        if asked[number][1]:
            end(request)

    def end(request: Request) -> None:
        ended.add(number_of(request))
        order.ended(request, failed=False)

    order = Order(begin)
    for number, (after, _) in enumerate(asked):
        others = [known[name] for name in after if name < number and name not in ended]
        if others:
            order.hold(known[number], others)
        else:
            begin(known[number])
    while going_on := [known[number] for number in started if number not in ended]:
        end(going_on[0])
    assert sorted(started) == list(range(len(asked)))
    assert len(order) == 0
