# SPDX-License-Identifier: Apache-2.0
"""/metrics: totals since serving started, in Prometheus text and OpenMetrics format."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nettop import __version__
from nettop.serve.api.openapi import operation, problem_answers
from nettop.serve.http.limits import ServerCounts
from nettop.serve.metrics.families import NAMESPACE, Family, count_families
from nettop.serve.metrics.places import Key
from nettop.serve.metrics.series import SeriesTotals
from nettop.serve.metrics.totals import Totals
from nettop.serve.problems import RETRY_SOON, Problem
from nettop.serve.served import Served
from nettop.snapshots import schema
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import Rows

ESTIMATED = "; the sum is estimated from bucket midpoints, within the histogram's error"


def metrics_routes(served: Served, totals: Totals, counts: ServerCounts) -> list[Route]:
    """Return the route of the metrics: as text if the request accepts it, else as OpenMetrics.

    Prometheus prefers OpenMetrics but accepts both. Here both hold the same data, and text takes a third less time to
    write.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(served, totals, counts))
    ProcessCollector(registry=registry)

    async def metrics(request: Request) -> Response:
        if not served.is_ready:
            # A scrape that lacks series would mark them as ended.
            raise Problem(503, "not every lens has been read yet", "retry in a moment", headers=RETRY_SOON)
        accepted = request.headers.get("accept", "")
        encode, content_type = choose_encoder("" if "text/plain" in accepted else accepted)
        return Response(await run_in_threadpool(encode, registry), headers={"Content-Type": content_type})

    return [Route("/metrics", metrics, methods=["GET"])]


class _Metrics(Collector):
    """Collector that generates the metrics at each scrape."""

    def __init__(self, served: Served, totals: Totals, counts: ServerCounts) -> None:
        self._served = served
        self._totals = totals
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as of a single moment."""
        with self._totals.lock:
            metrics = [*self._of_lenses(), *self._of_nettop()]
        yield from (*metrics, *self._of_server())

    def describe(self) -> Iterator[Metric]:
        """Yield nothing, so that the registry does not collect the metrics to learn their names."""
        yield from ()

    def _of_lenses(self) -> Iterator[Metric]:
        for totals in self._totals.series:
            totals.mark_listed()
            for family in totals.declared.families:
                yield from _listed(_of_family(family, totals))
            if totals.declared.rows is not None:
                metric = _metric(totals.declared.rows)
                for key, slot in totals.series():
                    metric.add_sample(metric.name, _labels(totals, key), totals.rows(slot))
                yield from _listed(metric)
        for lens in self._served.lenses:
            for field, family in zip(lens.counts, count_families(lens), strict=True):
                numbers = self._totals.gauges if field.kind is Kind.GAUGE else self._totals.counts
                metric = _metric(family)
                if (lens.id, field.name) in numbers:
                    metric.add_sample(family.sample_name, {}, numbers[lens.id, field.name])
                yield from _listed(metric)

    def _of_nettop(self) -> Iterator[Metric]:
        info = _gauge("build_info", "the version of nettop")
        info.add_sample(info.name, {"version": __version__}, 1)
        hooks = _gauge("hook_info", f"the mechanism that provides a hook of a lens, or {NOT_AVAILABLE}")
        up = _gauge("lens_up", "whether a lens is read")
        read = _gauge("reading_timestamp_seconds", "when a lens was last read")
        lost = Metric(
            f"{NAMESPACE}_lost", "events and rows missing from a lens's numbers, by kind", "counter"
        )
        for lens in self._served.lenses:
            last = self._totals.last.get(lens.id)
            is_up = last is not None and self._served.failure(lens.id) is None
            up.add_sample(up.name, {"lens": lens.id}, is_up)
            if last is not None:
                read.add_sample(read.name, {"lens": lens.id}, last.wall_ns / 1e9)
                for hook in last.hooks:
                    labels = {
                        "lens": lens.id,
                        "hook": hook.hook,
                        "mechanism": hook.mechanism or NOT_AVAILABLE,
                    }
                    hooks.add_sample(hooks.name, labels, 1)
        for (lens_id, what), count in self._totals.lost.items():
            lost.add_sample(f"{lost.name}_total", {"lens": lens_id, "what": what}, count)
        yield from (info, self._namespaces(), hooks, up, read, lost)

    def _namespaces(self) -> Metric:
        """Return the inode numbers of network namespaces, whose names label other metrics."""
        metric = _gauge(
            "namespace_info", "a network namespace: its inode number, as lsns shows it, by its name"
        )
        snapshots = self._totals.last.values()
        named = {pair for snapshot in snapshots for rows in snapshot.tables.values() for pair in _named(rows)}
        for namespace, netns in sorted(named):
            metric.add_sample(metric.name, {"namespace": namespace, "netns": str(netns)}, 1)
        return metric

    def _of_server(self) -> Iterator[Metric]:
        connections = _gauge("http_connections", "open connections to nettop's own server")
        connections.add_sample(connections.name, {}, self._counts.open_connections)
        answers = Metric(
            f"{NAMESPACE}_http_answers", "responses of nettop's own server, by status class", "counter"
        )
        # A copy, because the event loop keeps counting.
        for status, count in dict(self._counts.answers).items():
            answers.add_sample(f"{answers.name}_total", {"status": status}, count)
        refused = Metric(
            f"{NAMESPACE}_http_refused",
            "connections and requests that nettop's own server refused or closed, by reason",
            "counter",
        )
        for reason in ("timeouts", "too_large", "evicted", "handshake_failures"):
            count = getattr(self._counts, reason)
            refused.add_sample(f"{refused.name}_total", {"reason": reason}, count)
        yield from (connections, answers, refused)


def _named(rows: Rows) -> set[tuple[str, int]]:
    """Return the names and inode numbers of network namespaces if a table has both."""
    name, number = schema.NAMESPACE.name, schema.NETNS.name
    if not {name, number} <= set(rows.array.dtype.names or ()):
        return set()
    names = rows.texts[name]
    pairs = set(zip(rows.array[name].tolist(), rows.array[number].tolist(), strict=True))
    return {(names[code], netns) for code, netns in pairs if code < len(names)}


def metrics_paths() -> dict[str, Any]:
    """Return the path for the OpenAPI description."""
    text = {"type": "string"}
    path = operation(
        "metrics",
        "prometheus",
        "Totals since serving started, for Prometheus",
        answer="metrics; docs/reference/metrics.md lists them",
        schemas={"text/plain": text, "application/openmetrics-text": text},
        others=problem_answers("503"),
    )
    return {"/metrics": path}


def _metric(family: Family) -> Metric:
    note = ESTIMATED if family.kind is Kind.HISTOGRAM else ""
    return Metric(family.name, family.help + note, family.kind.value)


def _gauge(name: str, text: str) -> Metric:
    return Metric(f"{NAMESPACE}_{name}", text, Kind.GAUGE.value)


def _listed(metric: Metric) -> Iterator[Metric]:
    """Yield the metric if it has a series: it has none if this kernel or host does not provide it."""
    if metric.samples:
        yield metric


def _labels(totals: SeriesTotals, key: Key) -> dict[str, str]:
    return dict(zip(totals.declared.metrics.labels, key, strict=True))


def _of_family(family: Family, totals: SeriesTotals) -> Metric:
    """Return a metric with the known values of each series."""
    metric = _metric(family)
    for key, slot in totals.series():
        for label, column in family.columns:
            value = totals.value(column, slot)
            if value is not None:
                labels = _labels(totals, key) | ({family.label: label} if family.label else {})
                if family.buckets is None:
                    metric.add_sample(family.sample_name, labels, float(value) / family.divisor)
                else:
                    _add_histogram(metric, family, labels, value.tolist())
    return metric


def _add_histogram(metric: Metric, family: Family, labels: dict[str, str], value: list[float]) -> None:
    """Add a classic histogram: cumulative buckets, count and sum."""
    *counts, together = value
    below = list(accumulate(counts))
    for edge, count in zip(family.edges, below, strict=True):
        metric.add_sample(f"{family.name}_bucket", labels | {"le": edge}, count)
    metric.add_sample(f"{family.name}_count", labels, below[-1])
    metric.add_sample(f"{family.name}_sum", labels, together / family.divisor)
