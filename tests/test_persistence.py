import pytest

from fuse_gated.persistence import SOON, Persistence


@pytest.mark.parametrize(
    ("failures", "longest"), [(0, 1.0), (1, 2.0), (2, 4.0), (4, 16.0), (5, 30.0), (6, 30.0), (1000, 30.0), (10**9, 30.0)]
)
def test_pauses_are_anything_up_to_the_bound_that_doubles(failures: int, longest: float) -> None:
    pauses = [Persistence().pause(failures) for _ in range(500)]
    assert all(0.0 <= pause <= longest for pause in pauses)
    # Spread over all of it: neither half stays empty in 500 tries.
    assert min(pauses) < longest / 2 < max(pauses)


def test_pauses_are_as_chosen() -> None:
    chosen = Persistence(delay=0.1, longest_delay=0.3)
    assert max(chosen.pause(0) for _ in range(500)) <= 0.1
    assert 0.2 < max(chosen.pause(50) for _ in range(500)) <= 0.3


def test_a_server_that_left_in_order_is_looked_for_soon() -> None:
    pauses = [Persistence(delay=1000.0).short_pause() for _ in range(500)]
    assert all(0.0 <= pause <= SOON for pause in pauses)
    assert min(pauses) < SOON / 2 < max(pauses)
    assert max(Persistence(longest_delay=0.01).short_pause() for _ in range(100)) <= 0.01
