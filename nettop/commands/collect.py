# SPDX-License-Identifier: Apache-2.0
"""`nettop collect`: options, settings and startup."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from nettop.commands.invoker import (
    SERVICE_USERS,
    User,
    caller,
    file_owner,
    first_closed_directory,
    name_of,
    named_user,
    open_files_as,
    owner_of_directory,
)
from nettop.commands.options import (
    SourceOf,
    checked_word,
    list_completer,
    option,
    parse_count,
    parse_size,
    require_packages,
    split_names,
)
from nettop.commands.privilege import give_up_privileges
from nettop.errors import ExitCode, NettopError, UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.reading import read_file
from nettop.settings import (
    DEFAULT_QUERY_LISTEN,
    FLOW_PORTS,
    FLOWS_SOCKET,
    SYSTEM_FLOWS_DIR,
    CollectSettings,
    ServeSettings,
    default_flows_dir,
)

_PACKAGES = (
    "google.protobuf",
    "httptools",
    "prometheus_client",
    "starlette",
    "uvicorn",
    "uvloop",
)
_URLS_MOST_BYTES = 1 << 16
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

HELP = "Receive and store the flows that routers and switches export (sFlow, NetFlow, IPFIX)."

EXAMPLES = f"""[bold]Examples[/bold]

nettop collect  [dim]any protocol on UDP ports {", ".join(FLOW_PORTS)}, stored on this host[/dim]

nettop collect --listen 2055 --listen '[::1]:4739' --data-dir /srv/flows --retention raw=3d,1h=5y

nettop collect --networks GeoLite2-ASN.mmdb --networks offices.csv --own-network 192.0.2.0/24

nettop collect --interface eth1 --sampling 500  [dim]also packets that this host sees[/dim]

nettop collect --clickhouse http://ch1:8123 --clickhouse http://ch2:8123 --cluster flows

nettop flows --top src,dst --since 1h  [dim]largest senders and receivers[/dim]

curl 'http://{DEFAULT_QUERY_LISTEN}/?query=SELECT+count()+FROM+flows_raw'

Unprivileged processes read the datagrams. On SIGTERM, nettop stores what was received, then exits."""

_FROM, _INTO, _KNOWN, _TO = (
    "What to receive",
    "Storage",
    "Address and interface names",
    "Query access",
)


# fmt: off
@dataclass(frozen=True, slots=True)
class CollectOptions:
    """Options as given, in the order of --help."""

    listen: Annotated[list[str] | None, option("--listen", metavar="[ADDRESS:]PORT", panel=_FROM,
                                               help="Receive any of the protocols on this UDP port; repeatable "
                                               f"({', '.join(FLOW_PORTS)})")] = None
    exporters: Annotated[list[str] | None, option("--exporters", metavar="PREFIX,…", panel=_FROM,
                                                  help="Accept datagrams only from these addresses and networks, and "
                                                  "count the others as refused; repeatable (all)")] = None
    workers: Annotated[str, option("--workers", metavar="N", panel=_FROM,
                                   help="Receiving processes; the kernel assigns each exporter to one (1)")] = "1"
    receive_buffer: Annotated[str, option("--receive-buffer", metavar="SIZE", panel=_FROM,
                                          help="Kernel receive buffer of each port, to absorb bursts (64M)")] = "64M"
    sampling_rate: Annotated[list[str] | None, option("--sampling-rate", panel=_FROM,
                                                      metavar="[EXPORTER[/INTERFACE]=]N",
                                                      help="Override the sampling rate of an exporter or one of its "
                                                      "interfaces; N alone applies to flows without a known rate; "
                                                      "repeatable")] = None
    interface: Annotated[list[str] | None, option("--interface", metavar="NAME", panel=_FROM,
                                                  help="Also sample packets received on this interface, such as a "
                                                  "mirror port; repeatable")] = None
    sampling: Annotated[str, option("--sampling", metavar="N", panel=_FROM,
                                    help="Sample one in N packets of --interface (1000)")] = "1000"
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", panel=_FROM,
                                               help="Store only matching flows: :443, src=10.0.0.0/8, protocol=tcp, "
                                               "side!=internal; the others are only counted")] = None
    data_dir: Annotated[str | None, option("--data-dir", metavar="DIR", panel=_INTO,
                                           help=f"Directory of the flow store ({SYSTEM_FLOWS_DIR}; "
                                           "~/.local/share/nettop/flows if not root)")] = None
    retention: Annotated[list[str] | None, option("--retention", metavar="TABLE=TIME", panel=_INTO,
                                                  autocompletion=list_completer([f"{word}=" for word in _TABLES]),
                                                  help="How long to keep the rows of each table (raw=7d,1m=30d,5m=90d,"
                                                  "1h=2y,talkers=30d,counters=90d,ledger=90d)")] = None
    spool_size: Annotated[str, option("--spool-size", metavar="SIZE", panel=_INTO,
                                      help="Disk space for flows waiting to be stored, and as much again for "
                                      "datagrams waiting to be decoded; beyond it they are dropped (10G)")] = "10G"
    clickhouse: Annotated[list[str] | None, option("--clickhouse", metavar="URL", panel=_INTO,
                                                   help="Store on this ClickHouse server: http://USER:PASSWORD@"
                                                   "HOST:8123, or @FILE with one URL per line; repeatable for the "
                                                   "servers of one cluster")] = None
    cluster: Annotated[str, option("--cluster", metavar="NAME", panel=_INTO,
                                   help="Create the tables on all nodes of this ClickHouse cluster")] = ""
    kafka: Annotated[str, option("--kafka", metavar="HOST:PORT[,…]/TOPIC", panel=_INTO,
                                 help="Also send flows to this topic, encoded as in docs/reference/flows.proto")] = ""
    networks: Annotated[list[str] | None, option("--networks", metavar="FILE", panel=_KNOWN,
                                                 help="Read AS numbers, countries and names of networks from FILE: "
                                                 ".mmdb, or CSV with the columns network, asn, as_name, country, name; "
                                                 "repeatable")] = None
    own_network: Annotated[list[str] | None, option("--own-network", metavar="PREFIX", panel=_KNOWN,
                                                    help="Count this network as internal when deciding a flow's "
                                                    "direction; repeatable")] = None
    interfaces: Annotated[list[str] | None, option("--interfaces", metavar="FILE", panel=_KNOWN,
                                                   help="Read interface names from FILE: CSV with the columns "
                                                   "exporter, if_index, name")] = None
    query_listen: Annotated[list[str] | None, option("--query-listen", metavar="HOST:PORT|unix:PATH", panel=_TO,
                                                     help="Answer queries at this address as well as on the socket in "
                                                     f"the data directory; none: socket only ({DEFAULT_QUERY_LISTEN})"
                                                     )] = None
    token_file: Annotated[str | None, option("--token-file", metavar="FILE", panel=_TO,
                                             help="Require the token in FILE for queries, as a bearer token or as "
                                             "the password of any user")] = None
    insecure_listen: Annotated[bool, option("--insecure-listen", panel=_TO,
                                            help="Allow queries from other hosts without a token")] = False
    cert: Annotated[str | None, option("--cert", metavar="FILE", panel=_TO,
                                       help="Certificate chain for HTTPS")] = None
    key: Annotated[str | None, option("--key", metavar="FILE", panel=_TO, help="Private key of the certificate")] = None
    # fmt: on


def collect_settings(options: CollectOptions) -> CollectSettings:
    """Convert the options to settings. Raise UsageError for invalid values and combinations."""
    data_dir = os.path.abspath(default_flows_dir() if options.data_dir is None else options.data_dir)
    words = options.query_listen or [DEFAULT_QUERY_LISTEN]
    if options.cluster and not options.clickhouse:
        raise UsageError("--cluster requires --clickhouse", "add the URL of at least one of its servers")
    return CollectSettings(
        data_dir=data_dir,
        listen=tuple(options.listen or FLOW_PORTS),
        exporters=tuple(word for each in options.exporters or () for word in split_names(each) or ()),
        receive_buffer_bytes=parse_size("--receive-buffer", options.receive_buffer),
        workers=parse_count("--workers", options.workers, _WORKERS_MAX),
        mirrors=tuple(dict.fromkeys(options.interface or ())),
        sampling=parse_count("--sampling", options.sampling, _SAMPLING_MAX),
        sampling_rates=tuple(options.sampling_rate or ()),
        clickhouse=tuple(options.clickhouse or ()),
        cluster=options.cluster,
        kafka=options.kafka,
        retention=_retention(options.retention or ()),
        spool_bytes=parse_size("--spool-size", options.spool_size),
        filters=tuple(options.filter or ()),
        networks=tuple(options.networks or ()),
        interfaces=tuple(options.interfaces or ()),
        own_networks=tuple(options.own_network or ()),
        queries=ServeSettings(
            listen=(f"unix:{os.path.join(data_dir, FLOWS_SOCKET)}", *(word for word in words if word != "none")),
            insecure_listen=options.insecure_listen,
            token_file=options.token_file,
            cert=options.cert,
            key=options.key,
        ),
    )


def _retention(texts: Iterable[str]) -> dict[str, int]:
    """Parse --retention to seconds by table."""
    seconds: dict[str, int] = {}
    for text in ",".join(texts).split(","):
        if not text:
            continue
        word, _, duration = text.strip().partition("=")
        table = _TABLES[checked_word("table of --retention", word, list(_TABLES))]
        match = _DURATION.fullmatch(duration)
        if match is None:
            raise UsageError(f"--retention {text!r} has no valid time", "write it like raw=3d, 1m=4w or 1h=2y")
        seconds[table] = int(match[1]) * _HOURS[match[2]] * 3600
    return seconds


def start_collect(options: CollectOptions, _source_of: SourceOf) -> ExitCode:
    """Collect flows until requested to end. Raise NettopError if that cannot start or continue."""
    settings = collect_settings(options)
    store = "clickhouse_connect" if settings.clickhouse else "chdb"
    require_packages(
        "collect",
        (*_PACKAGES, store, *(("confluent_kafka",) if settings.kafka else ())),
        "install nettop[flows]: run scripts/install-deps.sh --flows, or install the package nettop-flows",
    )
    with importing():
        from nettop.serve.collect import open_collector

    named_by = caller()
    settings = settings._replace(clickhouse=_server_urls(settings.clickhouse, named_by))
    user = _owner(Path(settings.data_dir), named_by if options.data_dir is not None else None)
    if named_by is not None:
        _check_sockets(options.query_listen or (), named_by, user)
        # As another user, nettop might reread a file that the caller of sudo has since replaced by a link to one that
        # the caller may not read.
        settings = settings._replace(rereads_files=user == named_by)
    with ExitStack() as ends:
        # While nettop is still root: receive buffers above the limit for other users, and ports below 1024.
        requests = ends.enter_context(requested_by_signals())
        run = ends.enter_context(open_collector(settings, requests, sys.stderr, partial(open_files_as, named_by)))
        give_up_privileges(user)
        return run()


def _server_urls(words: Iterable[str], named_by: User | None) -> tuple[str, ...]:
    """Replace each @FILE by the URLs in that file: other users can see passwords in arguments, but not in a file."""
    urls: list[str] = []
    for word in words:
        if not word.startswith("@"):
            urls.append(word)
            continue
        path = word.removeprefix("@")
        with open_files_as(named_by):
            try:
                lines = read_file(path, _URLS_MOST_BYTES).decode().split()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                raise UsageError(
                    f"--clickhouse {word} cannot be read: {why}", "use a file with one URL per line"
                ) from error
        if not lines:
            raise UsageError(f"--clickhouse {word} contains no URL", "write one per line, like http://HOST:8123")
        urls += lines
    return tuple(urls)


def _check_sockets(words: Iterable[str], named_by: User, user: User | None) -> None:
    """Raise NettopError for a Unix socket that the caller of sudo, `named_by`, may not create, or that another `user`
    would create.
    """
    for word in words:
        if not word.startswith("unix:"):
            continue
        if user != named_by:
            raise UsageError(
                f"--query-listen {word} would not be created as {name_of(named_by)}, who called sudo",
                f"also set --data-dir to a directory of {name_of(named_by)}",
            )
        file_owner(Path(word.removeprefix("unix:")).parent)


def _owner(directory: Path, named_by: User | None = None) -> User | None:
    """Create the data directory and return the owner of its files: the caller of sudo who named it, else a user other
    than root; None for the user who runs nettop.

    Raise NettopError if that is impossible.
    """
    if named_by is not None or os.geteuid():
        with open_files_as(file_owner(directory)), _storing_in(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return named_by
    with _storing_in(directory):
        user = owner_of_directory(directory, SERVICE_USERS) or named_user(SERVICE_USERS)
        if (closed := first_closed_directory(user, directory)) is not None:
            raise UsageError(
                f"flows cannot be stored in {directory}: user {name_of(user)} may not enter {closed}",
                f"run chmod o+x {closed}, or choose another --data-dir",
            )
        _make(directory)
        if directory.stat().st_uid != user.uid:
            _give(directory, user)
    return user


def _make(directory: Path) -> None:
    """Create the directory with parents that any user may enter: its owner is not set yet."""
    umask = os.umask(0o022)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    finally:
        os.umask(umask)


def _give(directory: Path, user: User) -> None:
    """Change the owner of a directory from root to the user, and revoke write access for others. Raise NettopError if
    it is not empty.
    """
    if any(directory.iterdir()):
        raise NettopError(
            f"{directory} belongs to root, and nettop never reads datagrams as root",
            f"run chown -R {name_of(user)} {directory}, or choose another --data-dir",
        )
    directory.chmod(stat.S_IMODE(directory.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
    os.chown(directory, user.uid, user.gid)


@contextmanager
def _storing_in(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"flows cannot be stored in {directory}: {error.strerror}", "choose a writable --data-dir"
        ) from error
