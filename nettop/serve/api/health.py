# SPDX-License-Identifier: Apache-2.0
"""/health of `nettop serve`: whether every lens is read on time, and if not, why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nettop.query.times import rfc3339
from nettop.serve.health import HEALTH_PATH, LIVE_PATH, health_response
from nettop.serve.metrics.totals import Totals
from nettop.serve.served import Served
from nettop.snapshots.schema import Lens

if TYPE_CHECKING:
    from nettop.recording.player import Player


def health_routes(served: Served, totals: Totals) -> list[Route]:
    """Return the route: 200 if healthy, else 503; both with the state of each lens."""

    async def health(request: Request) -> Response:
        lenses = {lens.id: _state(served, lens) for lens in served.lenses}
        reasons = [f"{name}: {state['reason']}" for name, state in lenses.items() if state["reason"]]
        reasons += _why_stuck(served, totals)
        details = {} if served.player is None else {"recording": _recording(served, served.player)}
        return health_response(
            request, reasons, lenses=lenses, interval_s=served.session.interval_s, **details
        )

    async def live(request: Request) -> Response:
        return health_response(request, _why_stuck(served, totals))

    return [Route(HEALTH_PATH, health, methods=["GET"]), Route(LIVE_PATH, live, methods=["GET"])]


def _why_stuck(served: Served, totals: Totals) -> list[str]:
    """Return what only a restart may mend."""
    reasons = {"no lens is read": served.is_stuck, "readings are not added up": totals.are_behind}
    return [reason for reason, is_so in reasons.items() if is_so]


def _recording(served: Served, player: Player) -> dict[str, str | None]:
    recording = player.recording
    moments = {"moment": player.wall_ns, "begin": recording.begin_ns, "end": recording.end_ns}
    return {"host": served.recording_of} | {name: rfc3339(wall_ns) for name, wall_ns in moments.items()}


def _state(served: Served, lens: Lens) -> dict[str, Any]:
    """Return the state of a lens: whether it is read, the age of the last reading, its mechanisms and its losses.

    What was recorded has no age.
    """
    frame, failure = served.frame(lens.id), served.failure(lens.id)
    reason = None
    if failure is not None:
        reason = f"{failure.what}{f': {failure.remedy}' if failure.remedy else ''}"
    elif frame is None:
        reason = "not read yet"
    return {
        "state": "ok" if reason is None else "failing",
        "reason": reason,
        "age_s": served.age_s(lens.id),
        "hooks": {} if frame is None else frame.now.via,
        "lost": {} if frame is None else {what: n for what, n in frame.now.notable_losses.items() if n},
    }
