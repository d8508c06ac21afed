# SPDX-License-Identifier: Apache-2.0
"""JSON documents that account for everything the collector received, and POST /ingest/flows, which receives flows from
other producers in the format of docs/reference/flows.proto."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nettop.collector.collector import CollectorState
from nettop.collector.decode.sequences import Counting
from nettop.collector.exporters import EXPORTER
from nettop.collector.reader import EXPORTERS_PATH, STATE_PATH
from nettop.collector.spool import DROPPED
from nettop.collector.worker import ProducedFlows
from nettop.query.address import address_text
from nettop.serve.health import HEALTH_PATH, health_response
from nettop.serve.problems import Problem
from nettop.snapshots.arrays import Array
from nettop.snapshots.collector import PROTOCOLS


def state_routes(state: Callable[[], CollectorState]) -> list[Route]:
    """Return the routes of exporters, collector state and health."""

    async def exporters(_request: Request) -> Response:
        return JSONResponse({"exporters": exporter_documents(state().received.exporters)})

    async def collector(_request: Request) -> Response:
        return JSONResponse(state_document(state()))

    async def health(request: Request) -> Response:
        failure = state().failure
        return health_response(request, [failure.what] if failure else [])

    return [
        Route(EXPORTERS_PATH, exporters, methods=["GET"]),
        Route(STATE_PATH, collector, methods=["GET"]),
        Route(HEALTH_PATH, health, methods=["GET"]),
    ]


def ingest_routes(produced: ProducedFlows) -> list[Route]:
    """Return the route. A 200 response means that the flows are on disk."""

    async def ingest(request: Request) -> Response:
        # Any website could make a browser on this host post here. Only browsers send Origin.
        if "origin" in request.headers:
            raise Problem(403, "web pages may not send flows", "omit the Origin header")
        accepted = await run_sync(produced.take, await request.body())
        return JSONResponse({"accepted": accepted})

    return [Route("/ingest/flows", ingest, methods=["POST"])]


def exporter_documents(exporters: Array) -> list[dict[str, Any]]:
    """Return a document per exporter: `exporters` (e,), dtype EXPORTER, with fields by name and the protocol's name.

    If it is unknown what an exporter's sequence numbers count, `counting` and `lost` are null.
    """
    names = [name for name in EXPORTER.names or () if name != "exporter"]
    addresses = [address_text(exporter.tobytes()) for exporter in exporters["exporter"]]
    protocols = [PROTOCOLS[version] for version in exporters["protocol_version"].tolist()]
    columns = [exporters[name].tolist() for name in names]
    documents = [
        {"exporter": address, "protocol": protocol, **dict(zip(names, values, strict=True))}
        for address, protocol, values in zip(addresses, protocols, zip(*columns, strict=True), strict=True)
    ]
    for document in documents:
        counting = Counting(document["counting"])
        is_known = counting != Counting.UNKNOWN
        document["counting"] = counting.name.lower() if is_known else None
        # A late datagram counts as lost until it arrives.
        document["lost"] = max(0, document["lost"]) if is_known else None
    return documents


def state_document(state: CollectorState) -> dict[str, Any]:
    """Return an account of everything that was received.

    `flows.received` is always the sum of the other counts in `flows`; `datagrams` and `sets_without_template` add up
    likewise. They exclude flows left in the spool by an earlier run: `stored_from_before` counts those.
    """
    received, ledger = state.received, state.received.ledger
    spooled, stored = received.spooled["flows_raw"], state.stored["flows_raw"]
    unreadable = state.stored[f"flows_raw{DROPPED}"]
    dropped = received.spooled[f"flows_raw{DROPPED}"] + unreadable
    return {
        "datagrams": {
            "arrived": sum(ledger[name] for name in ("datagrams", "refused", "kernel_drops"))
            + received.queued,
            "decoded": ledger["decoded"],
            "malformed": ledger["unknown_version"] + ledger["bad_header"],
            "refused": ledger["refused"],
            "queued": received.queued,
            "dropped_by_kernel": ledger["kernel_drops"],
        },
        "sets_without_template": {
            "held": ledger["held"],
            "released": ledger["released"],
            "forgotten": ledger["forgotten"],
            "waiting": received.waiting,
        },
        "flows": {
            "received": ledger["rows"],
            "filtered": ledger["filtered"],
            "pending": received.pending,
            "waiting": spooled - stored - unreadable,
            "stored": stored,
            "dropped_by_spool": dropped,
        },
        "stored_from_before": state.stored_earlier["flows_raw"],
        "spool": {"blocks": state.waiting_blocks, "bytes": state.waiting_bytes},
        "failure": None if state.failure is None else state.failure.what,
        "ledger": dict(ledger),
        "sockets": [asdict(counts) | {"endpoint": str(counts.endpoint)} for counts in received.sockets],
        "exporters": {
            "known": len(received.exporters),
            "evicted": received.evicted,
            "evicted_unrecognized": received.evicted_unrecognized,
        },
        "forgotten": dict(received.forgotten),
    }
