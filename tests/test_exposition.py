"""fuse_gated/exposition.py: what a monitoring system reads, and that its counters never go back."""

import random
import re
import struct
import zlib
from typing import Any

import pytest

prometheus_client = pytest.importorskip("prometheus_client")

from harness.looks import block, seen, session  # noqa: E402
from prometheus_client.openmetrics.parser import text_string_to_metric_families  # noqa: E402 - where the library is

from fuse_gated import control  # noqa: E402
from fuse_gated.exposition import OTHER, Exposition  # noqa: E402
from fuse_gated.turnstile import measures  # noqa: E402
from fuse_gated.turnstile.measures import AT, MAGIC, SIZE  # noqa: E402

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def ended(number: int, name: str = "s1", export: str = "src", data: bytes = b"", sealed: int = 0) -> control.Ended:
    return control.Ended(
        number=number, session=name, tenant="acme", export=export, measures=zlib.compress(data.rstrip(b"\0")), sealed=sealed
    )


def samples(exposition: Exposition) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, its labels' values in the labels' order) -> value."""
    _, text = exposition.render(OPENMETRICS)
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found[sample.name, tuple(sample.labels[name] for name in sorted(sample.labels))] = sample.value
    return found


def counted(exposition: Exposition, operation: str = "lookup", export: str = "src") -> float:
    return samples(exposition).get(("fuse_gated_operations_total", (export, operation, "acme")), 0.0)


@pytest.fixture
def exposition() -> Exposition:
    made = Exposition(20)
    made.take(seen())
    return made


# Counters.


def test_what_the_first_look_shows_is_not_counted() -> None:
    exposition = Exposition(20)
    exposition.take(seen(session(data=block(operations={"lookup": 100}), sealed=40)))
    assert counted(exposition) == 0
    exposition.take(seen(session(data=block(operations={"lookup": 103}), sealed=45)))
    assert counted(exposition) == 3
    assert samples(exposition)["fuse_gated_audit_records_total", ("acme",)] == 5


def test_unless_all_is_wanted() -> None:
    exposition = Exposition(20, from_now=False)
    exposition.take(seen(session(data=block(operations={"lookup": 100}), sealed=40)))
    assert counted(exposition) == 100
    assert samples(exposition)["fuse_gated_audit_records_total", ("acme",)] == 40


def test_a_session_that_ended_between_two_looks_is_counted_to_its_end(exposition: Exposition) -> None:
    exposition.take(seen(session(data=block(operations={"lookup": 3}))))
    past = [ended(1, data=block(operations={"lookup": 5})), ended(2, "s2", data=block(operations={"lookup": 10}), sealed=7)]
    exposition.take(seen(past=past))
    assert counted(exposition) == 15
    assert samples(exposition)["fuse_gated_sessions_ended_total", ()] == 2
    assert samples(exposition)["fuse_gated_audit_records_total", ("acme",)] == 7
    assert exposition.ended_after == 2


def test_who_is_on_the_way_out_is_not_counted_twice(exposition: Exposition) -> None:
    exposition.take(seen(session(data=block(operations={"lookup": 3}))))
    exposition.take(seen())
    exposition.take(seen(past=[ended(1, data=block(operations={"lookup": 4}))]))
    assert counted(exposition) == 4


def test_no_counter_ever_goes_back(exposition: Exposition) -> None:
    """Whatever the workers write, and however sessions come and go."""
    chance = random.Random(7)
    before: dict[Any, float] = {}
    number = 0
    for _ in range(30):
        present = [
            session(f"s{one}", f"e{one % 3}", data=block(operations={"read": chance.randrange(50)}, SLOW=chance.randrange(2**64)))
            for one in chance.sample(range(6), 3)
        ]
        number += 1
        past = [ended(number, f"s{chance.randrange(6)}", data=block(operations={"read": chance.randrange(50)}))]
        exposition.take(seen(*present, past=past))
        counters = ("_total", "_bucket", "_count", "_sum")
        now = {key: value for key, value in samples(exposition).items() if key[0].endswith(counters)}
        assert not [key for key, value in before.items() if now[key] < value]
        before = now
    assert number == before["fuse_gated_sessions_ended_total", ()]


@pytest.mark.parametrize("data", [b"", b"\xff" * SIZE, struct.pack("=Q", MAGIC) + b"\xff" * (SIZE - 8), b"x" * 100])
def test_nothing_that_a_worker_leaves_stops_the_others(exposition: Exposition, data: bytes) -> None:
    more = {"sealed": 2**63 - 1, "taken": 0, "state": "odd"}
    exposition.take(seen(session(data=data, **more), session("s2", "docs", data=block(operations={"lookup": 2}))))
    exposition.take(seen(past=[ended(1, data=data)]))
    assert counted(exposition, export="docs") == 2
    assert max(samples(exposition).values()) < 2**70


def test_another_run_of_the_daemon_is_noticed(exposition: Exposition) -> None:
    assert Exposition(1).is_another(seen()) is False
    assert exposition.is_another(seen()) is False
    assert exposition.is_another(seen(started="another")) is True


# Labels.


def test_so_many_exports_of_a_tenant_have_figures_of_their_own() -> None:
    exposition = Exposition(2)
    exposition.take(seen())
    exposition.take(seen(*(session(f"s{one}", f"e{one}", data=block(operations={"lookup": one + 1})) for one in range(5))))
    exposition.take(seen(session("t", "e9", data=block(operations={"lookup": 1})), session("u", "e0", "other")))
    labels = {labels[0]: value for (name, labels), value in samples(exposition).items() if name == "fuse_gated_operations_total"}
    assert labels == {"e0": 1, "e1": 2, OTHER: 3 + 4 + 5 + 1}
    assert samples(exposition)["fuse_gated_operation_duration_seconds_count", ("lookup", "acme")] == 16


def test_none_have_where_none_may() -> None:
    exposition = Exposition(0, from_now=False)
    exposition.take(seen(session(data=block(operations={"lookup": 4}))))
    assert counted(exposition, export=OTHER) == 4


# What is told.


def test_everything_about_a_session(exposition: Exposition) -> None:
    words = {
        "BYTES_READ": 1, "BYTES_WRITTEN": 2, "BYTES_COPIED": 3, "REFUSED": 4, "UNTOLD": 5, "CACHE_HITS": 6, "CACHE_MISSES": 7,
        "SLOW": 8, "WAITING": 9,
    }  # fmt: skip
    data = bytearray(block(operations={"lookup": 10}, **words))
    struct.pack_into("=Q", data, 8 * measures.IN_FLIGHT, 2)
    at = AT["lookup"]
    struct.pack_into("=QQ", data, 8 * at, 4, 2)
    struct.pack_into("=Q", data, 8 * (at + measures.OWN_WHOLE + 8), 10)
    exposition.take(seen(session(data=bytes(data), sealed=20, taken=17, state="suspended")))
    told = samples(exposition)
    assert {name[len("fuse_gated_") :]: told[name, ("src", "acme")] for name in (
        "fuse_gated_refusals_total", "fuse_gated_audit_untold_operations_total", "fuse_gated_cache_hits_total",
        "fuse_gated_cache_misses_total", "fuse_gated_slow_operations_total",
    )} == {"refusals_total": 4, "audit_untold_operations_total": 5, "cache_hits_total": 6, "cache_misses_total": 7,
           "slow_operations_total": 8}  # fmt: skip
    assert [told["fuse_gated_bytes_total", (way, "src", "acme")] for way in ("read", "write", "copy")] == [1, 2, 3]
    names = ("operations", "operation_errors", "operation_faults", "client_operations")
    assert [told[f"fuse_gated_{name}_total", ("src", "lookup", "acme")] for name in names] == [10, 4, 2, 10]
    assert told["fuse_gated_operations_in_flight", ("acme",)] == 2
    assert told["fuse_gated_operations_waiting", ("acme",)] == 9
    assert told["fuse_gated_audit_waiting_records", ("acme",)] == 3
    assert told["fuse_gated_sessions", ("suspended", "acme")] == 1
    assert told["fuse_gated_sessions", ("mounted", "acme")] == 0
    assert told["fuse_gated_operation_duration_seconds_sum", ("lookup", "acme")] == pytest.approx(0.0101)
    assert told["fuse_gated_operation_phase_duration_seconds_sum", ("remote", "acme")] == pytest.approx(0.01)
    assert told["fuse_gated_operation_phase_duration_seconds_count", ("held", "acme")] == 0
    assert told["fuse_gated_client_seconds_total", ("acme",)] == pytest.approx(0.002)


def test_histograms_are_cumulated_and_end_with_all(exposition: Exposition) -> None:
    exposition.take(seen(session(data=block(operations={"read": 7}))))
    buckets = {
        float(labels[0]): value
        for (name, labels), value in samples(exposition).items()
        if name == "fuse_gated_operation_duration_seconds_bucket"
    }
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets[float("inf")] == 7
    assert next(bound for bound, value in buckets.items() if value) == pytest.approx(2**20 / 1e9)


def test_about_the_server(exposition: Exposition) -> None:
    exposition.take(seen(draining=True))
    told = samples(exposition)
    assert told["fuse_gated_build_info", ("1.2",)] == 1
    names = ("up", "uptime_seconds", "tenants", "draining", "processes")
    assert [told[f"fuse_gated_{name}", ()] for name in names] == [1, 5, 2, 1, 1]


def test_a_daemon_that_does_not_answer(exposition: Exposition) -> None:
    """Counters stay; what was of the moment is not told as if it still were."""
    exposition.take(seen(session(data=block(operations={"lookup": 3}))))
    exposition.failed()
    told = samples(exposition)
    assert told["fuse_gated_up", ()] == 0
    assert told["fuse_gated_sessions", ("mounted", "acme")] == 0
    assert counted(exposition) == 3
    never = Exposition(1)
    assert never.ended_after == -1
    assert samples(never) == {("fuse_gated_up", ()): 0}


def test_names_are_as_prometheus_wants_them(exposition: Exposition) -> None:
    exposition.take(seen(session(data=block(operations={"lookup": 3}))))
    content_type, text = exposition.render("")
    assert content_type.startswith("text/plain")
    assert exposition.render(OPENMETRICS)[0].startswith("application/openmetrics-text")
    for name in re.findall(r"^# TYPE (\S+) counter$", text.decode(), re.MULTILINE):
        assert name.endswith("_total")
    assert all(name.startswith("fuse_gated_") for name in re.findall(r"^# TYPE (\S+) ", text.decode(), re.MULTILINE))
