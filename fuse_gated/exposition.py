"""What the sessions do, as Prometheus and others read it (OpenMetrics, or Prometheus' own text format).

Counters must never go back, while sessions come and go and what a worker left is anybody's. So what each look shows to have come
since the last one is added up here, per tenant and export; a session that ended in between is told by the daemon (control.Ended).
Counting begins with the first look: what was there by then is not counted, so that all counters begin anew together.

A client chooses the names of its exports. Of each tenant so many have figures of their own, the first to be seen; all others are
summed up under one name, which no export can have. Tenants are as many as the policy has.
"""

import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fuse_gated import control
from fuse_gated.turnstile.figures import Figures, Operation
from fuse_gated.turnstile.measures import BOUNDS, HEADER, MAGIC, OPERATION_WORDS, SIZE

OTHER: Final = "_other"
"""Stands for the exports that have no figures of their own: an export's name begins with a letter or a digit."""
STATES: Final = ("mounted", "suspended", "silenced")
_PHASES: Final = ("gate", "held", "remote")
_MOST: Final = 2**53
_MOST_LEAVING: Final = 1000
_LES: Final = tuple(map(str, BOUNDS))
# The session's own words, then those of each operation: what has not changed is not looked at.
_PARTS: Final = (
    slice(0, 8 * HEADER),
    *(slice(start, start + 8 * OPERATION_WORDS) for start in range(8 * HEADER, SIZE, 8 * OPERATION_WORDS)),
)


class _Known(NamedTuple):
    block: bytes
    sealed: int


class Total:
    """What all sessions of a label have done together."""

    def __init__(self) -> None:
        self._words = array("Q", bytes(SIZE))
        self._words[0] = MAGIC

    def add(self, new: bytes, old: bytes) -> None:
        """What has come between two looks at a block. What went back counts nothing, and nothing counts without bound."""
        for part in _PARTS:
            after, before = new[part], old[part]
            if after == before:
                continue
            begin = part.start // 8
            pairs = zip(memoryview(after).cast("Q"), memoryview(before).cast("Q"), strict=True)
            for index, (now, then) in enumerate(pairs, begin):
                if index and now > then:
                    self._words[index] = min(self._words[index] + now - then, _MOST)

    @property
    def figures(self) -> Figures:
        return Figures(self._words)


class Exposition(Collector):
    """`exports`: how many of each tenant have figures of their own. `from_now`: what the first look shows is not counted."""

    def __init__(self, exports: int, *, from_now: bool = True) -> None:
        self._exports = exports
        self._from_now = from_now
        self._seen: control.Seen | None = None
        self._up = False
        self._known: dict[str, _Known] = {}
        """The sessions, as they were last."""
        self._totals: dict[tuple[str, str], Total] = {}
        self._tenants: dict[str, Total] = {}
        self._sealed: Counter[str] = Counter()
        self._ended = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @property
    def ended_after(self) -> int:
        """For the next look: which sessions' ends have been heard of."""
        return self._seen.last_ended if self._seen is not None else -1

    def is_another(self, seen: control.Seen) -> bool:
        """Whether the daemon was started anew, so that its numbers are others: to be asked once more, from 0 on."""
        return self._seen is not None and self._seen.started != seen.started

    def failed(self) -> None:
        """The daemon did not answer."""
        self._up = False

    def take(self, seen: control.Seen) -> None:
        """A look."""
        first = self._from_now and self._seen is None
        self._seen, self._up = seen, True
        for ended in seen.ended:
            block = _whole(zlib.decompressobj().decompress(ended.measures, SIZE))
            before = self._known.pop(ended.session, _UNKNOWN)
            self._add(ended.tenant, ended.export, _Known(block, ended.sealed), before)
            self._ended += 1
        present: dict[str, _Known] = {}
        for session in seen.sessions:
            known = present[session.session] = _Known(_whole(session.measures), session.sealed)
            self._add(session.tenant, session.export, known, known if first else self._known.pop(session.session, _UNKNOWN))
        # Who is not there, and has not ended, is on the way out: its end will be told.
        leaving = list(self._known.items())[-_MOST_LEAVING:]
        self._known = {**dict(leaving), **present}

    def _add(self, tenant: str, export: str, new: "_Known", old: "_Known") -> None:
        label = (tenant, export)
        if label not in self._totals:
            own = sum(name == tenant and other != OTHER for name, other in self._totals)
            if own >= self._exports:
                label = (tenant, OTHER)
        self._totals.setdefault(label, Total())
        self._tenants.setdefault(tenant, Total())
        self._sealed[tenant] += min(max(0, new.sealed - old.sealed), _MOST)
        if new.block != old.block:
            self._totals[label].add(new.block, old.block)
            self._tenants[tenant].add(new.block, old.block)

    def render(self, accept: str) -> tuple[str, bytes]:
        """The content type and the text, in the format that an Accept header wants."""
        encode, content_type = exposition.choose_encoder(accept)
        return content_type, encode(self._registry)

    # prometheus_client asks.

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("fuse_gated_up", "Whether the daemon answers.", int(self._up))
        if self._seen is None:
            return
        yield InfoMetricFamily("fuse_gated_build", "The daemon's version.", {"version": self._seen.version})
        yield from self._of_the_server(self._seen)
        yield from self._of_exports()
        yield from self._of_tenants()

    def _of_the_server(self, seen: control.Seen) -> Iterator[Metric]:
        yield GaugeMetricFamily("fuse_gated_uptime_seconds", "Since the daemon was started.", seen.uptime)
        yield GaugeMetricFamily("fuse_gated_tenants", "Tenants in the policy.", seen.tenants)
        yield GaugeMetricFamily("fuse_gated_draining", "Whether no new sessions are taken.", int(seen.draining))
        yield GaugeMetricFamily(
            "fuse_gated_processes", "Processes that serve a connection, or stand by for one.", seen.connections
        )
        yield CounterMetricFamily("fuse_gated_sessions_ended", "Sessions that ended.", self._ended)
        sessions = GaugeMetricFamily("fuse_gated_sessions", "Sessions, by their state.", labels=["tenant", "state"])
        flight = GaugeMetricFamily("fuse_gated_operations_in_flight", "Operations that have not ended yet.", labels=["tenant"])
        waiting = GaugeMetricFamily(
            "fuse_gated_operations_waiting", "Operations that a limit, or the lack of room, keeps back.", labels=["tenant"]
        )
        untaken = GaugeMetricFamily(
            "fuse_gated_audit_waiting_records", "Audit records that the journal has not taken yet.", labels=["tenant"]
        )
        counted: Counter[tuple[str, str]] = Counter()
        flights: Counter[str] = Counter(dict.fromkeys(self._tenants, 0))
        waits: Counter[str] = Counter(flights)
        untold: Counter[str] = Counter(flights)
        for session in seen.sessions if self._up else ():
            figures = Figures.read(session.measures)
            counted[session.tenant, session.state] += 1
            flights[session.tenant] += figures.in_flight
            waits[session.tenant] += figures.waiting
            untold[session.tenant] += max(0, session.sealed - session.taken)
        for tenant in self._tenants:
            for state in STATES:
                sessions.add_metric([tenant, state], counted[tenant, state])
            flight.add_metric([tenant], flights[tenant])
            waiting.add_metric([tenant], waits[tenant])
            untaken.add_metric([tenant], untold[tenant])
        yield from (sessions, flight, waiting, untaken)

    def _of_exports(self) -> Iterator[Metric]:
        """Counters, per tenant and export."""
        by_export, by_operation = ["tenant", "export"], ["tenant", "export", "operation"]
        operations = CounterMetricFamily("fuse_gated_operations", "Operations that ended.", labels=by_operation)
        errors = CounterMetricFamily("fuse_gated_operation_errors", "Of these, answered with an errno.", labels=by_operation)
        faults = CounterMetricFamily(
            "fuse_gated_operation_faults", "Of these, with one that no working disk has: EIO, ETIMEDOUT, …", labels=by_operation
        )
        asked = CounterMetricFamily(
            "fuse_gated_client_operations", "Operations for which the client was asked.", labels=by_operation
        )
        moved = CounterMetricFamily("fuse_gated_bytes", "Bytes of file contents.", labels=[*by_export, "direction"])
        hits = CounterMetricFamily("fuse_gated_cache_hits", "Questions that the cache answered.", labels=by_export)
        misses = CounterMetricFamily("fuse_gated_cache_misses", "Questions that it could not answer.", labels=by_export)
        refusals = CounterMetricFamily("fuse_gated_refusals", "Operations that the policy refused.", labels=by_export)
        slow = CounterMetricFamily("fuse_gated_slow_operations", "Took longer than slow_operation.", labels=by_export)
        untold = CounterMetricFamily(
            "fuse_gated_audit_untold_operations", "Failed because no audit record could be written.", labels=by_export
        )
        for label, total in self._totals.items():
            figures = total.figures
            for operation in figures.operations:
                operations.add_metric([*label, operation.name], operation.count)
                errors.add_metric([*label, operation.name], operation.errors)
                faults.add_metric([*label, operation.name], operation.faults)
                asked.add_metric([*label, operation.name], operation.asked)
            for direction, count in (
                ("read", figures.bytes_read), ("write", figures.bytes_written), ("copy", figures.bytes_copied),
            ):  # fmt: skip
                moved.add_metric([*label, direction], count)
            hits.add_metric(label, figures.cache_hits)
            misses.add_metric(label, figures.cache_misses)
            refusals.add_metric(label, figures.refused)
            slow.add_metric(label, figures.slow)
            untold.add_metric(label, figures.untold)
        yield from (operations, errors, faults, asked, moved, hits, misses, refusals, slow, untold)

    def _of_tenants(self) -> Iterator[Metric]:
        """Histograms, per tenant."""
        durations = HistogramMetricFamily(
            "fuse_gated_operation_duration_seconds", "From the request to its answer.", labels=["tenant", "operation"]
        )
        phases = HistogramMetricFamily(
            "fuse_gated_operation_phase_duration_seconds",
            "Of that: held back (held), from the connection to the client's reply (remote), and the rest, which is ours (gate).",
            labels=["tenant", "phase"],
        )
        client = CounterMetricFamily(
            "fuse_gated_client_seconds", "Of the phase remote, what the clients say they needed.", labels=["tenant"]
        )
        records = CounterMetricFamily("fuse_gated_audit_records", "Audit records that were made.", labels=["tenant"])
        for tenant, total in self._tenants.items():
            operations = total.figures.operations
            for operation in operations:
                durations.add_metric([tenant, operation.name], _buckets(operation.whole), operation.seconds)
            for phase in _PHASES:
                phases.add_metric([tenant, phase], _buckets(_summed(operations, phase)), _seconds(operations, phase))
            client.add_metric([tenant], sum(operation.client_seconds for operation in operations))
            records.add_metric([tenant], self._sealed[tenant])
        yield from (durations, phases, client, records)


def _whole(block: bytes) -> bytes:
    """A block in its full length; zeros for what is none."""
    if int.from_bytes(block[:8], sys.byteorder) != MAGIC:
        return _NOTHING
    return block[:SIZE].ljust(SIZE, b"\0")


def _summed(operations: list[Operation], phase: str) -> list[int]:
    histograms: list[tuple[int, ...]] = [getattr(operation, phase) for operation in operations]
    return [sum(counts) for counts in zip(*histograms, strict=True)] or [0] * (len(BOUNDS) + 1)


def _seconds(operations: list[Operation], phase: str) -> float:
    return float(sum(getattr(operation, f"{phase}_seconds") for operation in operations))


def _buckets(histogram: "tuple[int, ...] | list[int]") -> list[tuple[str, float]]:
    """As the exposition has them: cumulated, the bounds as text."""
    passed, made = 0, []
    for bound, count in zip((*_LES, "+Inf"), histogram, strict=True):
        passed += count
        made.append((bound, float(passed)))
    return made


_NOTHING: Final = bytes(SIZE)
_UNKNOWN: Final = _Known(_NOTHING, 0)
