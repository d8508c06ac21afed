# SPDX-License-Identifier: Apache-2.0
"""Settings of `nettop collect`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from nettop.errors import UsageError
from nettop.settings import (
    DEFAULT_QUERY_LISTEN,
    EMPTY,
    FLOW_PORTS,
    FLOWS_SOCKET,
    SYSTEM_FLOWS_DIR,
    default_flows_dir,
)
from nettop.settings.declared import listed, setting
from nettop.settings.serve import ACCESS, Access, ServeSettings
from nettop.settings.values import checked_word, parse_count, parse_names, parse_size

_WORKERS_MAX, _SAMPLING_MAX = 64, 1 << 20
_TABLES = {
    "raw": "flows_raw",
    "1m": "flows_1m",
    "5m": "flows_5m",
    "1h": "flows_1h",
    "talkers": "talkers_1m",
    "counters": "interface_counters",
    "ledger": "ledger",
}
"""Tables with a retention time, by their name in --retention."""
_DURATION = re.compile(r"([0-9]{1,6})([hdwy])")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}
_FROM, _INTO, _KNOWN = "What to receive", "Storage", "Address and interface names"


def _parse_lists(flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for text in texts for word in parse_names(flag, text))


def _parse_once(_flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _parse_listen(_flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if text != "none")


def _parse_retention(flag: str, texts: Sequence[str]) -> dict[str, int]:
    """Return seconds by table."""
    seconds: dict[str, int] = {}
    for text in filter(None, ",".join(texts).split(",")):
        word, _, duration = text.strip().partition("=")
        table = _TABLES[checked_word(f"table of {flag}", word, list(_TABLES))]
        match = _DURATION.fullmatch(duration)
        if match is None:
            raise UsageError(f"{flag} {text!r} has no valid time", "write it like raw=3d, 1m=4w or 1h=2y")
        seconds[table] = int(match[1]) * _HOURS[match[2]] * 3600
    return seconds


# fmt: off
@dataclass(frozen=True, kw_only=True)
class CollectSettings(Access):
    """Settings of `nettop collect`.

    Inputs: `listen` are UDP ports, with or without addresses; datagrams are accepted from the networks `exporters`, by
    default from all. `sampling_rates` are the sampling rates of exporters and their interfaces. The collector reads one
    packet in `sampling` from the interfaces `mirrors`.

    Outputs: the collector stores flows in `data_dir`, or on the servers `clickhouse`, which may form a `cluster`, and
    sends them to `kafka` (brokers and a topic). The spool, at most `spool_bytes`, is always in `data_dir`. `retention`
    overrides the seconds for which tables keep their rows, by name. Only flows that match all `filters` are stored.

    `networks` and `interfaces` are files, `own_networks` are prefixes. `rereads_files` makes it reload files that
    change while it runs.
    """

    listen: tuple[str, ...] = setting(FLOW_PORTS, "--listen", metavar="[ADDRESS:]PORT", panel=_FROM,
                                      help="Receive any of the protocols on this UDP port; "
                                      f"repeatable ({', '.join(FLOW_PORTS)})")
    exporters: tuple[str, ...] = setting((), "--exporters", metavar="PREFIX,…", kind=list[str], panel=_FROM,
                                         parse=_parse_lists, help="Accept datagrams only from these addresses and "
                                         "networks, and count the others as refused; repeatable (all)")
    workers: int = setting(1, "--workers", metavar="N", panel=_FROM, parse=partial(parse_count, most=_WORKERS_MAX),
                           help="Receiving processes; the kernel assigns each exporter to one (1)")
    receive_buffer_bytes: int = setting(64 << 20, "--receive-buffer", metavar="SIZE", panel=_FROM, parse=parse_size,
                                        help="Kernel receive buffer of each port, to absorb bursts (64M)")
    sampling_rates: tuple[str, ...] = setting((), "--sampling-rate", metavar="[EXPORTER[/INTERFACE]=]N", panel=_FROM,
                                             help="Override the sampling rate of an exporter or one of its interfaces; "
                                             "N alone applies to flows without a known rate; repeatable")
    mirrors: tuple[str, ...] = setting((), "--interface", metavar="NAME", kind=list[str], panel=_FROM,
                                       parse=_parse_once, help="Also sample packets received on this interface, such "
                                       "as a mirror port; repeatable")
    sampling: int = setting(1000, "--sampling", metavar="N", panel=_FROM,
                            parse=partial(parse_count, most=_SAMPLING_MAX),
                            help="Sample one in N packets of --interface (1000)")
    filters: tuple[str, ...] = setting((), "--filter", metavar="TEXT", panel=_FROM,
                                      help="Store only matching flows: :443, src=10.0.0.0/8, protocol=tcp, "
                                      "side!=internal; the others are only counted")
    data_dir: str = setting("", "--data-dir", metavar="DIR", panel=_INTO,
                            help=f"Directory of the flow store ({SYSTEM_FLOWS_DIR}; ~/.local/share/nettop/flows if not "
                            "root)")
    retention: Mapping[str, int] = setting(EMPTY, "--retention", metavar="TABLE=TIME", kind=list[str], panel=_INTO,
                                           parse=_parse_retention, complete=listed([f"{word}=" for word in _TABLES]),
                                           help="How long to keep the rows of each table (raw=7d,1m=30d,5m=90d,1h=2y,"
                                           "talkers=30d,counters=90d,ledger=90d)")
    spool_bytes: int = setting(10 << 30, "--spool-size", metavar="SIZE", panel=_INTO, parse=parse_size,
                               help="Disk space for flows waiting to be stored, and as much again for datagrams "
                               "waiting to be decoded; beyond it they are dropped (10G)")
    clickhouse: tuple[str, ...] = setting((), "--clickhouse", metavar="URL", panel=_INTO,
                                         help="Store on this ClickHouse server: http://USER:PASSWORD@HOST:8123, or "
                                         "@FILE with one URL per line; repeatable for the servers of one cluster")
    cluster: str = setting("", "--cluster", metavar="NAME", panel=_INTO,
                           help="Create the tables on all nodes of this ClickHouse cluster")
    kafka: str = setting("", "--kafka", metavar="HOST:PORT[,…]/TOPIC", panel=_INTO,
                         help="Also send flows to this topic, encoded as in docs/reference/flows.proto")
    networks: tuple[str, ...] = setting((), "--networks", metavar="FILE", panel=_KNOWN,
                                       help="Read AS numbers, countries and names of networks from FILE: .mmdb, or CSV "
                                       "with the columns network, asn, as_name, country, name; repeatable")
    own_networks: tuple[str, ...] = setting((), "--own-network", metavar="PREFIX", panel=_KNOWN,
                                           help="Count this network as internal when deciding a flow's direction; "
                                           "repeatable")
    interfaces: tuple[str, ...] = setting((), "--interfaces", metavar="FILE", panel=_KNOWN,
                                         help="Read interface names from FILE: CSV with the columns exporter, "
                                         "if_index, name")
    query_listen: tuple[str, ...] = setting(
        (DEFAULT_QUERY_LISTEN,), "--query-listen", metavar="HOST:PORT|unix:PATH", kind=list[str], panel=ACCESS,
        parse=_parse_listen, help="Answer queries at this address as well as on the socket in the data directory; "
        f"none: socket only ({DEFAULT_QUERY_LISTEN})")
    rereads_files: bool = field(default=True)
    # fmt: on

    def check(self, _given: Mapping[str, Any]) -> None:
        """Raise UsageError for settings that exclude each other."""
        if self.cluster and not self.clickhouse:
            raise UsageError("--cluster requires --clickhouse", "add the URL of at least one of its servers")

    @cached_property
    def directory(self) -> str:
        """The absolute path of the directory, whose default is that of the user who starts the collector."""
        return os.path.abspath(self.data_dir or default_flows_dir())

    @property
    def queries(self) -> ServeSettings:
        """The settings of the query server, which also listens on a socket in the directory."""
        listen = (f"unix:{os.path.join(self.directory, FLOWS_SOCKET)}", *self.query_listen)
        return ServeSettings(
            listen=listen,
            token_file=self.token_file,
            insecure_listen=self.insecure_listen,
            cert=self.cert,
            key=self.key,
        )
