# SPDX-License-Identifier: Apache-2.0
"""POST /ingest/flows: flows of other producers, as docs/flows.proto has them."""

from __future__ import annotations

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nettop.flows.inputs.produced import ProducedFlows
from nettop.serve.problems import Problem


def ingest_routes(produced: ProducedFlows) -> list[Route]:
    """The route. What was answered with 200 is on the disk."""

    async def ingest(request: Request) -> Response:
        # A page of any website could have a browser on this host post here; only browsers name an origin.
        if "origin" in request.headers:
            raise Problem(403, "web pages may not send flows", "leave out the header Origin")
        accepted = await run_sync(produced.take, await request.body())
        return JSONResponse({"accepted": accepted})

    return [Route("/ingest/flows", ingest, methods=["POST"])]
