# SPDX-License-Identifier: Apache-2.0
"""Rows of the services lens, from the counts and the watched connections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nettop.kernel.bpf import process_columns
from nettop.kernel.bpf.set_table import mix
from nettop.kernel.host.processes import ProcessNames
from nettop.probes.services.programs import FIRST_SLOT, HISTOGRAMS, SUMS
from nettop.probes.services.usual import UsualTimes
from nettop.snapshots import services as spec
from nettop.snapshots.arrays import Array, Mask, as_list, concatenate_rows, copy_columns, positions, take_rows
from nettop.snapshots.connections import NO_YES
from nettop.snapshots.row_ids import row_ids
from nettop.snapshots.schema import row_dtype
from nettop.snapshots.snapshot import Rows, known, mark_unknown, unknown_value

_SERVICE_ROW, _CONNECTION_ROW, _WAITING_ROW = (
    row_dtype(table, process_columns.COLUMNS) for table in (spec.SERVICES, spec.CONNECTIONS, spec.WAITING)
)
_TIME_COLUMNS = ("response_ns", "timed", "request_bytes", "response_bytes", "transfer_ns")
"""Columns counted together with response times."""
_ONLY_TCP = (
    "queued", "service_time", "transfer_ns", "closed", "failed_connects", "refused", "connections", "overlaps",
    "pushes", "replies", "pattern",
)  # fmt: skip
"""Columns that only the programs for TCP count."""
_ONLY_DNS = ("failed_responses", "missing_names")
_NOT_INFERRED = next(number for number, name in NO_YES.items() if name == "no")
_CONNECTION_COPIED = (
    "id", "service", "side", "netns", "local_port", "remote_port", "responses", "response_ns", "queued_ns",
    "queued_responses", "local_isn", "remote_isn",
)  # fmt: skip
_OWNER = ("pid", *(name for name, _ in process_columns.COLUMNS))


@dataclass(frozen=True, eq=False, slots=True)
class ProgramCounts:
    """The programs' counts.

    Services, their numbers and tallies, by slot, and the numbers of those that left; the entries of clients, grouped by
    key, with a hash of each key and where each group begins; every watched connection; the UDP requests that wait; and
    the time of the reading, by CLOCK_MONOTONIC and wall clock.
    """

    services: Array
    numbers: Array
    tallies: Array
    left: Array
    clients: tuple[Array, Array, Array]
    connections: Array
    requests: Array
    taken_ns: int
    wall_ns: int


class Withheld:
    """Response times that services counted while they were marked; they are subtracted from later rows."""

    def __init__(self) -> None:
        self._until: dict[int, Array] = {}

    def set_columns(self, rows: Array) -> None:
        """Set columns of marked rows to unknown, and subtract withheld times from the others."""
        marked = _have_no_times(rows)
        for at in np.flatnonzero(marked):
            self._until[int(rows["id"][at])] = rows[at].copy()
        for at in np.flatnonzero(~marked & np.isin(rows["id"], list(self._until))):
            for name in (*HISTOGRAMS, *_TIME_COLUMNS):
                rows[name][at] -= self._until[int(rows["id"][at])][name]
        unknown = (*HISTOGRAMS, *_TIME_COLUMNS, "recent_p99", "usual_p99", "waiting", "oldest", "stalled")
        mark_unknown(rows, unknown, marked)
        rows["speed"][marked] = spec.NORMAL

    def forget(self, numbers: Array) -> None:
        """Forget services that left."""
        for number in as_list(numbers):
            self._until.pop(number, None)


def service_rows(
    counted: ProgramCounts, names: ProcessNames, usual: UsualTimes, withheld: Withheld
) -> tuple[Rows, Rows]:
    """Return a row for each service with a connection or a request, sorted by number, and the rows of those that left.

    All other services of a side share one row.
    """
    services, tallies = counted.services, counted.tallies
    is_shown: Mask = np.logical_or.reduce(tallies["response"] > 0, axis=1)
    for name in ("unanswered", "overlaps", "pushes", "failed_connects"):
        is_shown |= tallies[name] > 0
    for used in (counted.connections, counted.requests):
        is_shown |= np.isin(counted.numbers, used["service"])
    # A slot that is being taken has no data yet.
    is_shown[FIRST_SLOT:] &= services["began_at"][FIRST_SLOT:] > 0
    shown = np.flatnonzero(is_shown)
    shown = shown[np.argsort(counted.numbers[shown])]
    rows = _unknown_rows(len(shown), _SERVICE_ROW)
    rows["id"] = counted.numbers[shown]
    copy_columns(rows, services, ("side", "protocol", "port", "netns", *_OWNER), of=shown)
    rows["address"] = _addresses(services["address"][shown])
    copy_columns(rows, tallies, (*SUMS, *HISTOGRAMS), of=shown)
    rows["timed"] = rows["response"].sum(axis=1)
    rows["responses"] = rows["timed"] + rows["overlaps"]
    rows["pattern"] = _patterns(rows)
    rows["waiting"] = rows["connections"] = 0
    at = positions(counted.connections["service"].astype(np.uint64), rows["id"])
    _count_connections(rows, counted.connections, at, counted.taken_ns)
    _count_requests(rows, counted)
    no_owner = rows["start_time"] == 0
    for name in _OWNER:
        rows[name][no_owner] = _unknown_of(rows.dtype[name])
    names.name_any(rows)
    is_others = rows["id"] < FIRST_SLOT
    rows["process"][is_others] = names.code(spec.OTHERS)
    mark_unknown(rows, ("protocol", "port", "netns"), is_others)
    rows["side"][is_others] = rows["id"][is_others]
    usual.set_columns(rows, counted.taken_ns)
    withheld.set_columns(rows)
    withheld.forget(counted.left)
    has_left = np.isin(rows["id"], counted.left)
    texts = names.texts()
    now, left = (take_rows(rows, np.flatnonzero(has_left == is_left)) for is_left in (False, True))
    return Rows(spec.SERVICES, now, texts, counted.taken_ns), Rows(
        spec.SERVICES, left, texts, counted.taken_ns
    )


def _count_requests(rows: Array, counted: ProgramCounts) -> None:
    """Count the UDP requests that wait, and set columns to unknown that are not counted for a row's protocol. The rows
    of all other services are of both."""
    at = positions(counted.requests["service"].astype(np.uint64), rows["id"])
    since = counted.requests["since"][at >= 0]
    _count_waiting(rows, at[at >= 0], since, since, counted.taken_ns)
    is_others = rows["id"] < FIRST_SLOT
    is_udp, is_dns = rows["protocol"] == spec.UDP, rows["port"] == spec.DNS_PORT
    mark_unknown(rows, _ONLY_TCP, is_udp & ~is_others)
    mark_unknown(rows, _ONLY_DNS, ~(is_udp & is_dns) & ~is_others)


def _patterns(rows: Array) -> Array:
    """Return the pattern of turns: marked if too many of them cannot be timed."""
    least = np.maximum(1, spec.MARKED_FROM * (rows["responses"] + rows["replies"]))
    pushing = np.where(rows["replies"] >= least, spec.PUSHING, spec.ALTERNATING)
    return np.where(rows["overlaps"] >= least, spec.OVERLAPPING, pushing)


def client_rows(counted: ProgramCounts, services: Rows) -> Rows:
    """Return a row for each counted client of a served service, sorted by number."""
    entries, hashes, starts = counted.clients
    rows = _unknown_rows(len(starts), spec.CLIENTS.dtype)
    heads = take_rows(entries, starts)
    rows["id"] = row_ids(mix(hashes[starts], np.minimum.reduceat(entries["first_seen"], starts)))
    rows["service"] = heads["service"]
    rows["client"] = _addresses(heads["address"])
    for name in ("response", "response_ns"):
        rows[name] = np.add.reduceat(entries[name], starts, axis=0)
    rows["responses"] = rows["response"].sum(axis=1)
    at = positions(rows["service"], services.array["id"])
    is_known = at >= 0  # the others belong to services that left
    named = ("process", "port", "netns", "namespace")
    copy_columns(rows, services.array, named, to=is_known, of=at[is_known])
    connections = counted.connections[counted.connections["side"] == spec.SERVED]
    ends = _ends(connections["service"], connections["remote_address"])
    of_row = _ends(heads["service"], heads["address"])
    order = np.argsort(of_row, kind="stable")
    at = positions(ends, of_row[order])
    numbers = np.full(len(ends), -1, np.int64)
    numbers[at >= 0] = order[at[at >= 0]]
    rows["waiting"] = rows["connections"] = 0
    _count_connections(rows, connections, numbers, counted.taken_ns)
    marked = _are_marked(rows["service"], services)
    mark_unknown(rows, ("response", "response_ns", "waiting", "oldest"), marked)
    rows = take_rows(rows, np.flatnonzero(is_known))
    rows = take_rows(rows, np.argsort(rows["id"], kind="stable"))
    return Rows(spec.CLIENTS, rows, services.texts, counted.taken_ns)


def connection_rows(counted: ProgramCounts, services: Rows, names: ProcessNames) -> tuple[Rows, Rows]:
    """Return a row for each watched connection, sorted by cookie, and one for each request that waits, on a connection
    or over UDP."""
    connections = _connections(counted, services)
    rows = concatenate_rows(connections, _requests(counted))
    names.name_any(rows)
    # The process of a connection that is not yet accepted is the one that serves.
    at = positions(rows["service"], services.array["id"])
    borrowed = ~known(rows["start_time"]) & (at >= 0) & (rows["side"] == spec.SERVED)
    owner = ("process", "pid", "cgroup", "container")
    copy_columns(rows, services.array, owner, to=borrowed, of=at[borrowed])
    texts = names.texts()
    waiting = _waiting(rows)
    connections = take_rows(rows, np.arange(len(connections)))
    return (
        Rows(spec.CONNECTIONS, connections, texts, counted.taken_ns),
        Rows(spec.WAITING, waiting, texts, counted.taken_ns),
    )


def _connections(counted: ProgramCounts, services: Rows) -> Array:
    """Return a row for each watched connection, sorted by cookie; processes have no names yet."""
    connections = counted.connections
    connections = take_rows(connections, np.argsort(connections["id"], kind="stable"))
    rows = _unknown_rows(len(connections), _CONNECTION_ROW)
    copy_columns(rows, connections, _CONNECTION_COPIED)
    mark_unknown(rows, ("queued_ns", "queued_responses"), connections["side"] != spec.SERVED)
    has_owner = connections["has_owner"] == 1
    copy_columns(rows, connections, _OWNER, to=has_owner, of=has_owner)
    for name in ("local_address", "remote_address"):
        rows[name] = _addresses(connections[name])
    is_waiting = (connections["open_since"] > 0) & ~_are_marked(rows["service"], services)
    age = np.maximum(counted.taken_ns - connections["open_since"][is_waiting].astype(np.int64), 0)
    rows["inferred"][is_waiting] = connections["is_inferred"][is_waiting]
    rows["waited"][is_waiting], rows["since"][is_waiting] = age, counted.wall_ns - age
    has_read = (connections["side"] == spec.SERVED) & is_waiting
    rows["was_read"][has_read] = connections["was_read"][has_read]
    return rows


def _requests(counted: ProgramCounts) -> Array:
    """Return a row for each UDP request that waits, like those of connections."""
    requests = counted.requests
    rows = _unknown_rows(len(requests), _CONNECTION_ROW)
    identity = requests["cookie"]
    for column in (*requests["address"].T, requests["port"], requests["number"], requests["side"]):
        identity = mix(identity, column.astype(np.uint64))
    rows["id"] = row_ids(identity)
    copy_columns(rows, requests, ("service", "side", "netns", "local_port"))
    rows["remote_port"] = requests["port"]
    rows["local_address"] = _addresses(requests["local_address"])
    rows["remote_address"] = _addresses(requests["address"])
    has_owner = requests["start_time"] > 0
    copy_columns(rows, requests, _OWNER, to=has_owner, of=has_owner)
    age = np.maximum(counted.taken_ns - requests["since"].astype(np.int64), 0)
    rows["waited"], rows["since"], rows["inferred"] = age, counted.wall_ns - age, _NOT_INFERRED
    return rows


def _waiting(rows: Array) -> Array:
    """Return the rows with a request that waits, sorted by id."""
    is_waiting = np.flatnonzero(known(rows["waited"]))
    waiting = take_rows(rows, is_waiting[np.argsort(rows["id"][is_waiting], kind="stable")])
    result = np.zeros(len(waiting), _WAITING_ROW)
    copy_columns(result, waiting, _WAITING_ROW.names or ())
    return result


def _are_marked(numbers: Array, services: Rows) -> Array:
    """Return a mask of the services without response times."""
    return np.isin(numbers, services.array["id"][_have_no_times(services.array)])


def _have_no_times(services: Array) -> Array:
    """Return a mask of the rows whose requests and responses do not alternate."""
    return np.isin(services["pattern"], (spec.OVERLAPPING, spec.PUSHING))


def _count_connections(rows: Array, connections: Array, at: Array, taken_ns: int) -> None:
    """Count the connections of each row, and their open requests; `at` is the row of each connection, or −1."""
    connections, at = connections[at >= 0], at[at >= 0]
    np.add.at(rows["connections"], at, 1)
    is_waiting = connections["open_since"] > 0
    at, connections = at[is_waiting], connections[is_waiting]
    moved_at = np.maximum(connections["open_since"], connections["moved_at"])
    _count_waiting(rows, at, connections["open_since"], moved_at, taken_ns)


def _count_waiting(rows: Array, at: Array, since: Array, moved_at: Array, taken_ns: int) -> None:
    """Count requests that wait `since` then, and whose data last moved at `moved_at`, in these rows."""
    np.add.at(rows["waiting"], at, 1)
    for name, began in (("oldest", since), ("stalled", moved_at)):
        if name in (rows.dtype.names or ()):
            is_first = at[~known(rows[name][at])]
            rows[name][is_first] = 0
            ages = np.maximum(taken_ns - began.astype(np.int64), 0).astype(np.uint64)
            np.maximum.at(rows[name], at, ages)


def _unknown_rows(count: int, dtype: np.dtype[np.void]) -> Array:
    """Return rows with every number unknown, and empty process names."""
    rows = np.zeros(count, dtype)
    for name in dtype.names or ():
        if dtype[name].base.kind != "S":
            rows[name] = _unknown_of(dtype[name])
    return rows


def _unknown_of(dtype: np.dtype[np.void]) -> object:
    return b"" if dtype.base.kind == "S" else unknown_value(dtype)


def _addresses(words: Array) -> Array:
    """Convert addresses from the programs' format, in network order, to that of the columns."""
    return np.ascontiguousarray(words).view(">u8").reshape(words.shape)


def _ends(service: Array, address: Array) -> Array:
    """Return a hash for each client of a service."""
    hashes = service.astype(np.uint64)
    for column in address.T:
        hashes = mix(hashes, column.astype(np.uint64))
    return hashes


assert len(spec.SIDES) == FIRST_SLOT
