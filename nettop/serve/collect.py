# SPDX-License-Identifier: Apache-2.0
"""`nettop collect`: open what needs privileges, then receive, store and answer queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
from starlette.types import ASGIApp

from nettop.collector.backlog import Backlog
from nettop.collector.collector import Collector, collecting
from nettop.collector.decode.user_rates import parse_rates
from nettop.collector.enrichment.lookups import LookupFiles
from nettop.collector.enrichment.networks import Intervals, parsed_networks
from nettop.collector.inputs import Exports, Input, mirrored_packets, open_mirror
from nettop.collector.kafka import topic_of
from nettop.collector.pipeline import WorkerOutput
from nettop.collector.receive import OpenSocket, UdpPort, Wait, endpoint_of, open_socket
from nettop.collector.store import Store
from nettop.collector.store.schema import Retention, retention_of
from nettop.collector.wanted import flow_filter
from nettop.diagnostics import Diagnostics
from nettop.errors import ExitCode
from nettop.process.interrupts import Requests
from nettop.process.wake_event import WakeEvent
from nettop.serve.flows.queries import query_routes
from nettop.serve.flows.state import ingest_routes, state_routes
from nettop.serve.http.credentials import read_credentials
from nettop.serve.http.guard import Guard, own_names
from nettop.serve.http.limits import Limits, Server
from nettop.serve.http.listeners import OpeningAs, checked_listen, open_sockets, url_of
from nettop.serve.http.server import serve
from nettop.serve.problems import application
from nettop.settings.collect import CollectSettings

_FIRST_OF_OTHERS, _OWN = 100, 200
"""First number of workers that do not receive from exporters, and the collector's own number. Block names contain them.
"""
_LIMITS = Limits(connections=64, body_bytes=8 << 20, takes_bodies=True)


@contextmanager
def open_collector(
    settings: CollectSettings,
    requests: Requests,
    stderr: TextIO | None,
    opening_files: OpeningAs = nullcontext,
) -> Iterator[Callable[[], ExitCode]]:
    """Open the sockets and read the files; yield a function that collects until shutdown and needs no privileges.

    Open files inside `opening_files`, while there is only one thread.

    Raise NettopError if something cannot be opened, read or used.
    """
    endpoints = checked_listen(settings.queries, "--query-listen")
    retention = retention_of(settings.retention)
    networks, interfaces = (
        [Path(name) for name in names] for names in (settings.networks, settings.interfaces)
    )
    wanted = flow_filter(settings.filters)
    kafka = topic_of(settings.kafka) if settings.kafka else None
    given_rates = parse_rates(settings.sampling_rates)
    own_networks = parsed_networks(settings.own_networks) if settings.own_networks else None
    exporters = parsed_networks(settings.exporters)
    allowed = Intervals.of(exporters, np.zeros(len(exporters), np.int32)) if len(exporters) else None

    report = Diagnostics(stderr).report_lines

    with opening_files():
        credentials = read_credentials(settings.queries)
        credentials.is_final = not settings.rereads_files
        files = LookupFiles(networks, interfaces, own_networks, rereads=settings.rereads_files)
    with ExitStack() as resources:
        inputs, places = _opened_inputs(settings, resources, report)

        def run() -> ExitCode:
            directory = Path(settings.directory)
            to = WorkerOutput(0, directory, settings.spool_bytes, files, wanted, kafka, given_rates, allowed)
            works = [(opened, replace(to, number=number)) for number, opened in inputs.items()]
            stores: list[Store] = []

            def opened_store() -> Store:
                stores.append(_store(settings, retention, report))
                return stores[0]

            with (
                open_sockets(
                    endpoints
                ) as listeners,  # Unix socket files are removed by the user that created them
                collecting(
                    works,
                    replace(to, number=_OWN),
                    opened_store,
                    lambda failure: report(f"{failure.what}\n{failure.remedy}".rstrip()),
                ) as collector,
            ):
                collector.on_failed = requests.end

                def make_app() -> ASGIApp:
                    queries, produced = query_routes(stores[0]), ingest_routes(collector.produced)
                    app = application([*queries, *state_routes(collector.state), *produced])
                    return Guard(app, credentials, own_names(endpoints))

                server = Server(make_app, listeners, requests, report, credentials, _LIMITS)
                urls = ", ".join(
                    url_of(listener, is_tls=credentials.tls is not None) for listener in listeners
                )
                server.status = f"receiving on UDP {', '.join(places)}; queries at {urls}"
                server.on_ready = partial(report, server.status)
                _wait_for_workers(collector, requests)
                if not requests.ending:
                    serve(server)
            if collector.failed is not None:
                raise collector.failed
            return ExitCode.DONE

        yield run


def _opened_inputs(
    settings: CollectSettings, resources: ExitStack, report: Callable[[str], None]
) -> tuple[dict[int, Callable[[Wait], Input]], list[str]]:
    """Open the sockets of all inputs. Each exporter worker has one per port.

    Return functions that open the inputs in their workers, by worker number, and the inputs' names.
    """
    inputs: dict[int, Callable[[Wait], Input]] = {}
    places: list[str] = []

    def opened(receiver: OpenSocket) -> OpenSocket:
        resources.callback(receiver.socket.close)
        place = str(receiver.endpoint)
        if place not in places:
            places.append(place)
            if receiver.warning:
                report(receiver.warning)
        return receiver

    room = settings.receive_buffer_bytes
    ports: list[UdpPort] = [endpoint_of(word) for word in settings.listen]
    for number in range(settings.workers):
        if number:
            ports = [port for port in ports if not port.is_group]
        if not ports:
            break
        sockets = [opened(open_socket(port, room, shared_port=settings.workers > 1)) for port in ports]
        # For port 0 the kernel has chosen a number; the other workers share it.
        ports = [receiver.endpoint for receiver in sockets if isinstance(receiver.endpoint, UdpPort)]
        backlog = Path(settings.directory) / f"backlog-{number}"
        open_backlog = partial(Backlog, backlog, settings.spool_bytes // settings.workers)
        inputs[number] = partial(Exports, sockets, open_backlog)
    rate = settings.sampling
    others: list[Callable[[Wait], Input]] = [
        partial(mirrored_packets, opened(open_mirror(name, rate, room)), rate) for name in settings.mirrors
    ]
    return inputs | dict(enumerate(others, _FIRST_OF_OTHERS)), places


def _store(settings: CollectSettings, retention: Retention, report: Callable[[str], None]) -> Store:
    if settings.clickhouse:
        from nettop.collector.store.server import ServerStore

        return ServerStore(settings.clickhouse, settings.cluster, retention, report=report)
    from nettop.collector.store.embedded import EmbeddedStore

    return EmbeddedStore(Path(settings.directory), retention, report=report)


def _wait_for_workers(collector: Collector, requests: Requests) -> None:
    """Wait until every worker is receiving or shutdown is requested; a worker's exit requests it too."""
    with WakeEvent() as event:
        requests.wake = collector.on_state = event.set
        while not (requests.ending or collector.is_receiving()):
            event.wait()
