# SPDX-License-Identifier: Apache-2.0
"""/metrics: totals since serving started, in Prometheus text and OpenMetrics format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nettop import __version__
from nettop.serve.http.limits import ServerCounts
from nettop.serve.metrics.families import NAMESPACE, Family, count_families
from nettop.serve.metrics.series import SeriesTotals
from nettop.serve.metrics.totals import Totals
from nettop.serve.problems import RETRY_SOON, Problem
from nettop.serve.served import Served
from nettop.snapshots import schema
from nettop.snapshots.arrays import distinct_rows
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import Rows

METRICS_PATH = "/metrics"
OWN = {
    name: (Family(f"{NAMESPACE}_{name}", text, kind, ()), labels)
    for name, kind, labels, text in (
        ("build_info", Kind.GAUGE, ("version",), "the version of nettop"),
        ("namespace_info", Kind.GAUGE, ("namespace", "netns"),
         "a network namespace: its inode number, as lsns shows it, by its name"),
        ("hook_info", Kind.GAUGE, ("lens", "hook", "mechanism"),
         f"the mechanism that provides a hook of a lens, or {NOT_AVAILABLE}"),
        ("lens_up", Kind.GAUGE, ("lens",), "whether a lens is read on time"),
        ("reading_timestamp_seconds", Kind.GAUGE, ("lens",), "when a lens was last read"),
        ("lost", Kind.COUNTER, ("lens", "what"), "events and rows missing from a lens's numbers, by kind"),
        ("http_connections", Kind.GAUGE, (), "open connections to nettop's own server"),
        ("http_answers", Kind.COUNTER, ("status",), "responses of nettop's own server, by status class"),
        ("http_refused", Kind.COUNTER, ("reason",),
         "connections and requests that nettop's own server refused or closed, by reason"),
    )
}  # fmt: skip
"""Metrics of nettop itself, each with its labels."""
_REFUSED = ("timeouts", "too_large", "evicted", "handshake_failures")


def metrics_routes(served: Served, totals: Totals, counts: ServerCounts) -> list[Route]:
    """Return the route of the metrics: as text if the request accepts it, else as OpenMetrics.

    Prometheus prefers OpenMetrics but accepts both. Here both hold the same data, and text takes a third less time to
    write.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Exposition(served, totals, counts))
    ProcessCollector(registry=registry)

    async def metrics(request: Request) -> Response:
        if not served.is_ready:
            # A scrape that lacks series would mark them as ended.
            raise Problem(503, "not every lens has been read yet", "retry in a moment", headers=RETRY_SOON)
        accepted = request.headers.get("accept", "")
        encode, content_type = choose_encoder("" if "text/plain" in accepted else accepted)
        await served.freshen(*(lens.id for lens in served.lenses))
        if served.is_stuck:
            raise Problem(503, "no lens is read", "/health says why", headers=RETRY_SOON)
        return Response(await run_in_threadpool(encode, registry), headers={"Content-Type": content_type})

    return [Route(METRICS_PATH, metrics, methods=["GET"])]


class _Exposition(Collector):
    """Collector that generates the metrics at each scrape."""

    def __init__(self, served: Served, totals: Totals, counts: ServerCounts) -> None:
        self._served = served
        self._totals = totals
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as of a single moment, without those that this kernel or host does not provide."""
        self._totals.catch_up()
        with self._totals.lock:
            of_lenses = [metric for metric in self._of_lenses() if metric.samples]
            own = list(self._of_nettop())
        yield from (*of_lenses, *own)

    def _of_lenses(self) -> Iterator[Metric]:
        for totals in self._totals.series:
            totals.mark_listed()
            yield from (_of_family(family, totals) for family in totals.declared.all_families)
        for lens in self._served.lenses:
            for field, family in zip(lens.counts, count_families(lens), strict=True):
                metric = Metric(family.name, family.help, family.kind.value)
                if (lens.id, field.name) in self._totals.counts:
                    metric.add_sample(family.sample_name, {}, self._totals.counts[lens.id, field.name])
                yield metric

    def _of_nettop(self) -> Iterator[Metric]:
        for name, samples in self._samples().items():
            family, labels = OWN[name]
            metric = Metric(family.name, family.help, family.kind.value)
            for values, number in samples:
                metric.add_sample(family.sample_name, dict(zip(labels, values, strict=True)), number)
            yield metric

    def _samples(self) -> dict[str, Iterable[tuple[tuple[str, ...], float]]]:
        """Return the values of labels and the numbers of nettop's own metrics."""
        ids = [lens.id for lens in self._served.lenses]
        last = {lens: self._totals.last[lens] for lens in ids if lens in self._totals.last}
        hooks = [(lens, hook) for lens, snapshot in last.items() for hook in snapshot.hooks]
        tables = (rows for snapshot in last.values() for rows in snapshot.tables.values())
        namespaces = sorted({pair for rows in tables for pair in _named(rows)})
        counts, failure = self._counts, self._served.failure
        return {
            "build_info": [((__version__,), 1)],
            "namespace_info": [((name, str(netns)), 1) for name, netns in namespaces],
            "hook_info": [((lens, hook.hook, hook.mechanism or NOT_AVAILABLE), 1) for lens, hook in hooks],
            "lens_up": [((lens,), lens in last and failure(lens) is None) for lens in ids],
            "reading_timestamp_seconds": [
                ((lens,), snapshot.wall_ns / 1e9) for lens, snapshot in last.items()
            ],
            "lost": self._totals.lost.items(),
            "http_connections": [((), counts.open_connections)],
            # A copy, because the event loop keeps counting.
            "http_answers": [((status,), n) for status, n in dict(counts.responses).items()],
            "http_refused": [((reason,), getattr(counts, reason)) for reason in _REFUSED],
        }


def _named(rows: Rows) -> set[tuple[str, int]]:
    """Return the names and inode numbers of network namespaces if a table has both."""
    name, number = schema.NAMESPACE.name, schema.NETNS.name
    if not {name, number} <= set(rows.array.dtype.names or ()):
        return set()
    names, firsts = rows.texts[name], distinct_rows([rows.column(name), rows.column(number)])[0]
    pairs = zip(rows.column(name)[firsts].tolist(), rows.column(number)[firsts].tolist(), strict=True)
    return {(names[code], netns) for code, netns in pairs if code < len(names)}


def _of_family(family: Family, totals: SeriesTotals) -> Metric:
    """Return a metric with the known values of each series."""
    metric = Metric(family.name, family.help, family.kind.value)
    for key, slot in totals.series():
        for label, column in family.columns:
            value = totals.value(column, slot)
            if value is not None:
                labels = dict(zip(totals.declared.metrics.labels, key, strict=True))
                labels |= {family.label: label} if family.label else {}
                if family.buckets is None:
                    metric.add_sample(family.sample_name, labels, float(value) / family.divisor)
                else:
                    _add_histogram(metric, family, labels, value.tolist())
    return metric


def _add_histogram(metric: Metric, family: Family, labels: dict[str, str], value: list[float]) -> None:
    """Add a classic histogram: cumulative buckets, count and sum. If it is empty, it has no bucket but +Inf."""
    *counts, together = value
    below = list(accumulate(counts))
    buckets = list(zip(family.edges, below, strict=True))
    for edge, count in buckets if below[-1] else buckets[-1:]:
        if edge:
            metric.add_sample(f"{family.name}_bucket", labels | {"le": edge}, count)
    metric.add_sample(f"{family.name}_count", labels, below[-1])
    metric.add_sample(f"{family.name}_sum", labels, together / family.divisor)
