# SPDX-License-Identifier: Apache-2.0
"""A connection seen from both of its ends: where the time of its requests goes, and who waits for whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nettop.query.columns import FEW_COUNTS
from nettop.query.other_end import other_end
from nettop.query.query import screen_query
from nettop.query.units import RATIO, human, plural
from nettop.query.values import values_of
from nettop.query.view import View
from nettop.snapshots import find_table
from nettop.snapshots.arrays import Array, Mask, positions
from nettop.snapshots.connections import UNATTRIBUTED
from nettop.snapshots.hosts import HOST
from nettop.snapshots.services import SIDES, USED
from nettop.snapshots.snapshot import Frame, known

OF_ENDS = (("connections", "sockets"), ("services", "connections"), ("services", "waiting"))
"""Lenses and tables whose rows are one end of a connection, with the key of its socket."""
_USED = SIDES[USED]
_NO_TIMES = "unknown: the services lens (7) times them, while it is shown or was within the last minute"


@dataclass(frozen=True, slots=True)
class _End:
    """A row, as the sockets' or the services' lens has it."""

    view: View
    at: int

    def __getitem__(self, name: str) -> Any:
        return values_of(self.view, name, np.array([self.at]))[0]

    @property
    def key(self) -> int:
        return int(self.view.now.array[self.view.table.key][self.at])

    @property
    def name(self) -> str:
        """The process, and its host if there are several."""
        words = [self["process"] or UNATTRIBUTED, *([] if self["pid"] is None else [str(self["pid"])])]
        return " ".join([*words, "on", self[HOST.name]] if HOST.name in self.view.table.by_name else words)


def both_ends(connections: Frame | None, services: Frame | None, key: int) -> dict[str, str]:
    """Return facts about the connection whose socket has this key, from both ends, by title; none if its other end is
    on no host that is shown."""
    sockets, turns = _views(connections, services)
    near_turn = _end(turns, key)
    far, far_turn = _far(sockets, turns, key)
    if far is None:
        return {}
    facts = {"Other end": _condition(far)}
    if near_turn is None or far_turn is None:
        return facts | ({} if turns is not None else {"Requests": _NO_TIMES})
    if near_turn["side"] == far_turn["side"]:  # both connected, or which one did is not known
        return facts
    ends = (near_turn, far_turn)
    client, server = ends if near_turn["side"] == _USED else ends[::-1]
    return facts | _requests(client, server) | _waiting(client, server)


def other_key(connections: Frame | None, services: Frame | None, key: int) -> int | None:
    """Return the key of the socket at the other end of a connection; None if it is on no host that is shown."""
    return _key_of(_far(*_views(connections, services), key)[0])


def _views(connections: Frame | None, services: Frame | None) -> tuple[View | None, View | None]:
    return _view(connections, *OF_ENDS[0]), _view(services, *OF_ENDS[1])


def _far(sockets: View | None, turns: View | None, key: int) -> tuple[_End | None, _End | None]:
    """Return the other end of a connection, as the sockets' and the services' lens have it.

    Sequence numbers come first: private addresses may occur again on other hosts, and so may their ports. Addresses
    follow, as some firewalls change sequence numbers.
    """
    turn = _by_sequence(_end(turns, key))
    if turn is not None:
        return _end(sockets, turn.key), turn
    far = _by_address(_end(sockets, key))
    return far, _end(turns, _key_of(far))


def _view(frame: Frame | None, lens: str, table: str) -> View | None:
    if frame is None or table not in frame.now.tables:
        return None
    return View(frame, screen_query(find_table(f"{lens}.{table}")[1]))


def _end(view: View | None, key: int | None) -> _End | None:
    if view is None or key is None:
        return None
    (at,) = positions(np.array([key], np.uint64), view.now.array[view.table.key])
    return None if at < 0 else _End(view, int(at))


def _key_of(end: _End | None) -> int | None:
    return None if end is None else end.key


def _by_address(end: _End | None) -> _End | None:
    """Return the end with the same addresses and ports, swapped."""
    if end is None:
        return None
    rows = end.view.now.array
    others = other_end(rows[end.at : end.at + 1], rows)
    return _end(end.view, int(others["id"][0])) if len(others) == 1 else None


def _by_sequence(end: _End | None) -> _End | None:
    """Return the end that began from the same sequence numbers, swapped: address translation does not change them."""
    if end is None or not (
        end["local_isn"] and end["remote_isn"]
    ):  # None, or 0: from a nettop without these columns
        return None
    rows = end.view.now.array
    is_other = _are_near(rows["local_isn"], rows["remote_isn"][end.at])
    is_other &= _are_near(rows["remote_isn"], rows["local_isn"][end.at])
    is_other[end.at] = False
    found = np.flatnonzero(is_other)
    return _End(end.view, int(found[0])) if len(found) == 1 else None


def _are_near(numbers: Array, number: Any) -> Mask:
    """Return which sequence numbers differ by one at most, as the end that connected counts its SYN."""
    near: Mask = (numbers - number + np.uint32(1)).astype(np.uint32) <= 2
    return near


def _condition(end: _End) -> str:
    """Return who is at the far end, and what it sees of the path."""
    ratio, rtt, unread = end["retransmit_ratio"], end["rtt_us"], end["receive_queue"]
    facts = [
        f"RTT {human(rtt, 'us')}" if rtt is not None else "",
        f"sends {human(ratio, RATIO)} again" if ratio is not None else "",
        f"has {human(unread, 'bytes')} unread" if unread else "",
    ]
    known = ", ".join(filter(None, facts))
    return f"{end.name}: {known}" if known else end.name


def _requests(client: _End, server: _End) -> dict[str, str]:
    """Return how long requests take, divided into path, queue and service, and how long the client pauses."""
    asked, served = _Times.recent(client), _Times.recent(server)
    is_recent = asked is not None and served is not None
    asked, served = (asked, served) if is_recent else (_Times.whole(client), _Times.whole(server))
    if asked is None or served is None:
        return {"Requests": f"none yet from {client.name} to {server.name}"}
    path_ns = max(0.0, asked.response_ns - served.response_ns)
    when = "the last interval" if is_recent else "all since they are watched"
    number = f"{asked.responses:,.0f} {plural('response', int(asked.responses))}"
    facts = {
        "Request": f"{human(asked.response_ns, 'ns')}, the mean of {number} ({when})",
        "Path": f"{human(path_ns, 'ns')} there and back",
        "Server": f"{human(served.response_ns, 'ns')} in {server.name}{_divided(served)}",
    }
    if is_recent and asked.pause_ns is not None:
        facts["Client"] = f"{client.name} asks again {human(asked.pause_ns, 'ns')} after a response"
    return facts


def _divided(served: _Times) -> str:
    """Return how a server's response time is divided, if it was seen to read its requests."""
    if served.queued_ns is None:
        return ""
    service_ns = max(0.0, served.response_ns - served.queued_ns)
    return f": {human(served.queued_ns, 'ns')} until it reads, {human(service_ns, 'ns')} until it answers"


class _Times(NamedTuple):
    """Mean times of answered requests at one end."""

    responses: float
    response_ns: float
    queued_ns: float | None
    pause_ns: float | None = None

    @classmethod
    def recent(cls, end: _End) -> _Times | None:
        """Return those of the last interval; None if they are few."""
        responses = _growth(end, "responses")
        if responses < FEW_COUNTS:
            return None
        response_ns, queued = _growth(end, "response_ns"), _growth(end, "queued_responses")
        queued_ns = _growth(end, "queued_ns") / queued if queued else None
        return cls(responses, response_ns / responses, queued_ns, _pause_ns(end, responses, response_ns))

    @classmethod
    def whole(cls, end: _End) -> _Times | None:
        """Return those since the connection is watched; None if there are none."""
        responses, response_ns = _total(end, "responses"), _total(end, "response_ns")
        queued, queued_ns = _total(end, "queued_responses"), _total(end, "queued_ns")
        if not responses or response_ns is None:
            return None
        return cls(
            responses,
            response_ns / responses,
            queued_ns / queued if queued and queued_ns is not None else None,
        )


def _total(end: _End, name: str) -> int | None:
    """Return a counter since the connection is watched; None if it is unknown, as from an older nettop."""
    column = end.view.now.array[name][end.at : end.at + 1]
    return int(column[0]) if known(column)[0] else None


def _growth(end: _End, name: str) -> float:
    grown = end.view.growth(name)
    return float(grown.numbers[end.at]) if grown.known[end.at] else 0.0


def _pause_ns(client: _End, responses: float, response_ns: float) -> float:
    """Return the mean pause before the requests of the last interval.

    Response times count when they end: one that began before the interval, or is still open, counts in part here.
    """
    elapsed_s = float(np.broadcast_to(client.view.elapsed_by_row, client.view.size)[client.at])
    before, now = _waited_before(client), client["waited"]
    inside_ns = response_ns - (before or 0) + (now or 0)
    requests = responses - (before is not None) + (now is not None)
    return max(0.0, elapsed_s * 1e9 - inside_ns) / requests


def _waited_before(end: _End) -> int | None:
    """Return the age of the open request at the beginning of the interval; None without one."""
    before, at = end.view.before, int(end.view.before_at[end.at])
    if before is None or at < 0:
        return None
    waited = before.array["waited"][at : at + 1]
    return int(waited[0]) if known(waited)[0] else None


def _waiting(client: _End, server: _End) -> dict[str, str]:
    """Return who waits for whom."""
    waited = client["waited"]
    if waited is None:
        return {}
    read = {"yes": ", which has read the request", "no": ", which has not read the request"}
    whom = f"{server.name}{read.get(server['was_read'], '')}"
    return {"Waits": f"{client.name} has waited {human(waited, 'ns')} for {whom}"}
