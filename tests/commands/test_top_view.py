import random

import pytest
from harness.looks import block, seen, session

from fuse_gated.commands import top_view
from fuse_gated.commands.top_view import ALL, BUSIEST, COLUMNS, Look, Row, history, in_order, rows, shown_count, summary, totals


def looks(*sessions, seconds: float = 2.0, **more):
    return Look(10.0, seen()), Look(10.0 + seconds, seen(*sessions, **more))


def row(name: str = "acme/src", **more) -> Row:
    values = {
        "session": "s", "state": "mounted", "address": "192.0.2.7", "operations": 0.0, "read": 0.0, "written": 0.0, "p50": None,
        "p99": None, "hits": None, "in_flight": 0, "waiting": 0, "faults": 0.0,
    }  # fmt: skip
    return Row(name=name, **{**values, **more})


def test_what_came_between_two_looks() -> None:
    before = Look(10.0, seen(session(data=block(operations={"read": 10}, BYTES_READ=1000, FAULTS=1))))
    now = block(operations={"read": 30}, begun=2, BYTES_READ=5000, BYTES_WRITTEN=200, FAULTS=3, WAITING=1, CACHE_HITS=1)
    after = Look(12.0, seen(session(data=now), session("s2", "new\x1b", data=block(operations={"read": 4}))))
    first, second = rows(before, after)
    assert (first.name, first.operations, first.read, first.written, first.faults) == ("acme/src", 10, 2000, 100, 1)
    assert (first.in_flight, first.waiting, first.hits) == (2, 1, 1.0)
    assert first.p50 is not None
    assert 0.0005 < first.p50 < 0.0011
    # Before, it was not there; and no name steers the terminal.
    assert (second.name, second.operations, second.hits) == ("acme/new\\x1b", 2, None)


def test_two_looks_at_once_do_not_divide_by_nothing() -> None:
    look = Look(10.0, seen(session(data=block(operations={"read": 10}))))
    assert rows(look, look)[0].operations == 0


@pytest.mark.parametrize("column", range(len(ALL)))
@pytest.mark.parametrize("reverse", [False, True])
def test_every_column_sorts(column: int, reverse: bool) -> None:
    chance = random.Random(column)
    several = [
        row(f"acme/{one}", operations=chance.random(), read=chance.random(), p50=chance.choice([None, 0.5]), in_flight=one % 3)
        for one in range(10)
    ]
    key = ALL[column].key
    keys = [key(one) for one in in_order(several, column, reverse=reverse)]
    assert keys == sorted(keys, reverse=isinstance(keys[0], str) == reverse)
    assert in_order([], column) == []


def test_the_busiest_first() -> None:
    assert ALL[BUSIEST].heading == "OPS/S"
    assert [one.name for one in in_order([row("a"), row("c", operations=2), row("b", operations=2)], BUSIEST)] == ["b", "c", "a"]


def test_all_together_in_two_lines() -> None:
    away = row("acme/b", state="suspended", operations=10_000, faults=2.0, waiting=1)
    two = [row(operations=1.5, read=2048, in_flight=2), away]
    assert totals(two)["states"] == {"mounted": 1, "suspended": 1}
    first, second = summary(seen(draining=True, uptime=7500), two)
    assert first.text == "fuse-gated 1.2, up 2h 05m: 2 sessions (1 suspended), draining"
    assert second == ("bad", "10.0k operations/s, read 2.0 KiB/s, written 0/s, 2 in flight, 1 held back, 2 faults/s")
    first, second = summary(seen(), [row()])
    assert first.text.endswith(": 1 session")
    assert second.style == ""


def test_a_line_says_by_its_style_what_to_look_at() -> None:
    styles = {
        "weak": row(), "": row(operations=1), "warn": row(state="suspended"), "bad": row(state="silenced"),
    }  # fmt: skip
    for style, one in styles.items():
        assert top_view.table([one], None, BUSIEST)[1].style == style
    assert top_view.table([row(faults=1)], None, BUSIEST)[1].style == "bad"
    assert top_view.table([row(in_flight=1)], None, BUSIEST)[1].style == ""


@pytest.mark.parametrize("width", [*range(1, 140, 7), 200])
def test_whatever_the_width_it_fits(width: int) -> None:
    several = [row("acme/" + "x" * length, address="2001:db8::" + "1" * length) for length in (1, 20, 60)]
    lines = top_view.table(several, width, BUSIEST)
    assert len(lines) == 4
    assert all(len(line.text) <= width for line in lines)


def test_what_matters_most_stays_longest() -> None:
    def headings(width: int) -> list[str]:
        return [one.rstrip("v^") for one in top_view.table([row()], width, BUSIEST)[0].text.split()]

    assert headings(200) == ["SESSION", *(one.heading for one in COLUMNS)]
    assert headings(40)[:2] == ["SESSION", "OPS/S"]
    assert "CLIENT" not in headings(110)


def test_the_heading_says_by_what_and_which_way() -> None:
    assert "OPS/Sv" in top_view.table([], None, BUSIEST)[0].text
    assert "OPS/S^" in top_view.table([], None, BUSIEST, reverse=True)[0].text
    assert "SESSIONv" in top_view.table([], None, 0)[0].text


def test_counts() -> None:
    shown = [shown_count(number) for number in (0, 0.25, 3, 9.96, 12.4, 9999, 18_234, 999_960, 5e6)]
    assert shown == ["0", "0.2", "3", "10.0", "12", "9999", "18.2k", "1.0M", "5.0M"]


def test_the_past_as_bars() -> None:
    assert history([], 10) == ""
    assert history([0, 0], 10) == "▁▁"
    assert history([9, 0, 5, 10], 3) == "▁▅█"
