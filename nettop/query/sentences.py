# SPDX-License-Identifier: Apache-2.0
"""Sentences of findings, with values of their rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from nettop.query.address import endpoint_text
from nettop.query.place import ANY_ADDRESS
from nettop.query.related_rows import common_process, listeners, other_ends, same_rows
from nettop.query.units import RATIO, TIMES, UNKNOWN, human, unit_of
from nettop.query.values import values_of
from nettop.query.view import View
from nettop.snapshots.arrays import Index, Mask, distinct_rows
from nettop.snapshots.connections import SYN_RECV, UNATTRIBUTED
from nettop.snapshots.schema import OWN_NAMESPACE, Kind

_SHARES = frozenset(f"{unit}/s" for unit in TIMES)
"""Units of rates of time: shares of a CPU, or of the time of a connection."""
_OPTIONAL = re.compile(r"\[([^\]]*)\]")
_VALUE = re.compile(r"\{(\w+)\}")
_WAITING = frozenset({"receive_queue", "send_queue", "waiting"})
"""Gauges that say how much waits: several rows have more. Of other gauges the largest one counts."""
_TOTALLED = (Kind.COUNTER, Kind.SUM, Kind.RATIO, Kind.QUANTILE)


def sentence(template: str, view: View, at: Index) -> str:
    """Fill in the values of rows."""
    return filled(template, {name: _value(view, name, at) for name in _VALUE.findall(template)})


def filled(template: str, values: Mapping[str, str | None]) -> str:
    """Fill in values; leave out what is between square brackets if one of its values is unknown (None)."""

    def optional(part: re.Match[str]) -> str:
        return "" if None in (values[name] for name in _VALUE.findall(part[1])) else part[1]

    return _VALUE.sub(lambda name: values[name[1]] or _unknown(name[1]), _OPTIONAL.sub(optional, template))


def _unknown(name: str) -> str:
    return UNATTRIBUTED if name in ("process", "listener") else UNKNOWN


def _value(view: View, name: str, at: Index) -> str | None:
    """Return a value of rows as text; None if it is unknown."""
    if name == "rows":
        return f"{len(at):,}"
    if name in _FROM_ELSEWHERE:
        return _FROM_ELSEWHERE[name](view, at)
    table = view.table
    field = table.by_name.get(name)
    if field is None or field.kind in _TOTALLED:
        total = view.total(name, at)
        if total is None and len(at) == 1:  # the interval was covered only in part, by some hook
            (total,) = values_of(view, name, at)
        unit = unit_of(table, name)
        if total is not None and unit in _SHARES:  # of the time of each row
            total /= len(at)
        return None if total is None else human(total, unit_in_sentence(unit))
    if field.kind is Kind.GAUGE:
        numbers = [number for number in values_of(view, name, at) if number is not None]
        number = (sum if name in _WAITING else max)(numbers) if numbers else None
        return None if number is None else human(number, unit_of(table, name))
    unsaid = (None, OWN_NAMESPACE) if name == "namespace" else (None,)
    return _first_of(str(value) for value in values_of(view, name, at) if value not in unsaid)


def _first_of(texts: Iterable[str]) -> str | None:
    """Return the first text, and how many others there are; None without any."""
    distinct = list(dict.fromkeys(texts))
    return (
        f"{distinct[0]} and {len(distinct) - 1:,} more" if len(distinct) > 1 else next(iter(distinct), None)
    )


def _target(view: View, at: Index) -> str | None:
    """Return to which addresses and ports connections failed."""
    addresses, ports = (values_of(view, name, at) for name in ("remote_address", "port"))
    pairs = zip(addresses, ports, strict=True)
    return _first_of(endpoint_text(address, port) for address, port in pairs if address is not None)


def _reader(view: View, at: Index) -> str | None:
    """Return the process at the other end of these connections, if it is only one and has not read what came."""
    ends = other_ends(view, at)
    has_unread = view.raw("receive_queue")[ends] > 0
    return common_process(view, ends[has_unread & ~_reads(view, ends)]) if has_unread.all() else None


def _reads(view: View, at: Index) -> Mask:
    """Return which of these connections were read from: more has come in the interval than waits now in addition."""
    reads, was_there = np.zeros(len(at), bool), view.before_at[at] >= 0
    if view.before is not None:
        arrived, there = view.column("bytes_received"), at[was_there]
        was = view.before.array["receive_queue"][view.before_at[there]].astype(np.int64)
        waits_more = view.raw("receive_queue")[there].astype(np.int64) - was
        reads[was_there] = arrived.known[there] & (arrived.numbers[there].astype(np.int64) > waits_more)
    return reads


def _unread(view: View, at: Index) -> str | None:
    """Return how much waits in the receive buffers of these sockets; None if they are empty."""
    return _value(view, "receive_queue", at) if view.raw("receive_queue")[at].any() else None


def _other_end(view: View, at: Index) -> str | None:
    """Return the process at the other end of these connections, if it is on this host and there is only one."""
    return common_process(view, other_ends(view, at))


def _listener(view: View, at: Index) -> str | None:
    """Return the process that listens on the port of these connections."""
    return common_process(view, listeners(view, at))


def _time_wait(view: View, _: Index) -> str | None:
    """Return the number of sockets in TIME_WAIT."""
    number = view.snapshot.counts.get("time_wait")
    return None if number is None else f"{number:,}"


def _senders(view: View, at: Index) -> str | None:
    """Return how many addresses have half-open connections to this listener; None if only one has."""
    is_half_open = same_rows(view, ("local_port", "netns"), at[0]) & (view.raw("state") == SYN_RECV)
    firsts, _ = distinct_rows([view.raw("remote_address")[is_half_open]])
    return f"{len(firsts):,}" if len(firsts) > 1 else None


def _sender(view: View, at: Index) -> str | None:
    """Return the process on this host whose UDP sockets are connected to this one; None unless there is just one."""
    port, address, netns, protocol = (
        view.raw(name)[at[0]] for name in ("local_port", "local_address", "netns", "protocol")
    )
    is_sender = (view.raw("remote_port") == port) & (view.raw("protocol") == protocol)
    is_there = (view.raw("remote_address") == address).all(axis=1)
    has_any = values_of(view, "local_address", at[:1])[0] in ANY_ADDRESS
    is_sender &= view.raw("netns") == netns if has_any else is_there
    return common_process(view, np.flatnonzero(is_sender))


def _client(view: View, at: Index) -> str | None:
    """Return the process on this host that uses this service, at the same address; None unless there is just one."""
    is_used = same_rows(view, ("port", "address"), at[0]) & (view.raw("side") != view.raw("side")[at[0]])
    return common_process(view, np.flatnonzero(is_used))


_FROM_ELSEWHERE = {
    "other_end": _other_end,
    "reader": _reader,
    "target": _target,
    "unread": _unread,
    "listener": _listener,
    "time_wait": _time_wait,
    "senders": _senders,
    "sender": _sender,
    "client": _client,
}
"""Values in sentences that are in no column of the rows."""


def unit_in_sentence(unit: str) -> str:
    """Return the unit to show: sentences name what they count, as in `12 datagrams/s`."""
    counted, _, per = unit.partition("/")
    return unit if counted in ("bytes", RATIO, *TIMES) else "packets" if per else counted
