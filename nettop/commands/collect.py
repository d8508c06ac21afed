# SPDX-License-Identifier: Apache-2.0
"""`nettop collect`: its options, its settings, and how it starts."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nettop.commands.invoker import (
    SERVICE_USERS,
    User,
    caller,
    closed_to,
    name_of,
    named_user,
    opening_as,
    owner_of_directory,
    owner_of_files,
)
from nettop.commands.options import checked_word, complete_list, option, size_bytes, whole
from nettop.commands.privilege import give_up_privileges
from nettop.errors import ExitCode, NettopError, UsageError
from nettop.interrupts import requested_by_signals, undisturbed
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

if TYPE_CHECKING:
    from nettop.snapshots.source import Source

_PACKAGES = (
    "google.protobuf",
    "httptools",
    "prometheus_client",
    "starlette",
    "uvicorn",
    "uvloop",
    "zstandard",
)
_URLS_MOST_BYTES = 1 << 16
_WORKERS_MAX, _SAMPLING_MAX, _GROUP_MAX = 64, 1 << 20, 65_535
_TABLES = {
    "raw": "flows_raw",
    "1m": "flows_1m",
    "5m": "flows_5m",
    "1h": "flows_1h",
    "talkers": "talkers_1m",
    "counters": "interface_counters",
    "ledger": "ledger",
}
"""The tables that keep rows for so long, by the word of --retention."""
_DURATION = re.compile(r"([0-9]{1,6})([hdwy])")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}

COLLECT_HELP = "Receive flows that routers and switches report (sFlow, NetFlow, IPFIX), and store them."

COLLECT_EXAMPLES = f"""[bold]Examples[/bold]

nettop collect  [dim]any protocol at UDP ports {", ".join(FLOW_PORTS)}, stored on this host[/dim]

nettop collect --listen 2055 --listen '[::1]:4739' --data-dir /srv/flows --retention raw=3d,1h=5y

nettop collect --networks GeoLite2-ASN.mmdb --networks offices.csv --own-network 192.0.2.0/24

nettop collect --interface eth1 --sampling 500 --conntrack  [dim]what this host sees, too[/dim]

nettop collect --clickhouse http://ch1:8123 --clickhouse http://ch2:8123 --cluster flows

nettop flows --top src,dst --since 1h  [dim]who sent most, and to whom[/dim]

curl 'http://{DEFAULT_QUERY_LISTEN}/?query=SELECT+count()+FROM+flows_raw'

Datagrams are read by processes without any privilege. SIGTERM ends when all that was received is stored."""

_FROM, _INTO, _KNOWN, _TO = (
    "What to receive",
    "Where to store it",
    "What is known of addresses",
    "Who may query it",
)


def _complete_retention(incomplete: str) -> list[str]:
    return complete_list([f"{word}=" for word in _TABLES], incomplete)


# fmt: off
@dataclass(frozen=True, slots=True)
class CollectOptions:
    """The options as they were given, in the order of --help."""

    listen: Annotated[list[str] | None, option("--listen", metavar="[ADDRESS:]PORT", panel=_FROM,
                                               help="UDP port to receive at, of any protocol; may be given several "
                                               f"times ({', '.join(FLOW_PORTS)})")] = None
    workers: Annotated[str, option("--workers", metavar="N", panel=_FROM,
                                   help="Processes that receive; the kernel gives each exporter to one (1)")] = "1"
    receive_buffer: Annotated[str, option("--receive-buffer", metavar="SIZE", panel=_FROM,
                                          help="Buffer of each port in the kernel, for bursts (64M)")] = "64M"
    sampling_rate: Annotated[list[str] | None, option("--sampling-rate", panel=_FROM,
                                                      metavar="[EXPORTER[/INTERFACE]=]N",
                                                      help="Sampling rate of an exporter or of its interface, in place "
                                                      "of what it says; N alone for flows of which no rate is known; "
                                                      "may be given several times")] = None
    interface: Annotated[list[str] | None, option("--interface", metavar="NAME", panel=_FROM,
                                                  help="Also sample what this interface receives, such as a mirrored "
                                                  "port; may be given several times")] = None
    sampling: Annotated[str, option("--sampling", metavar="N", panel=_FROM,
                                    help="Of the packets of interfaces take one in N (1000)")] = "1000"
    nflog: Annotated[list[str] | None, option("--nflog", metavar="GROUP", panel=_FROM,
                                              help="Also take packets that the firewall logs to this group; may be "
                                              "given several times")] = None
    conntrack: Annotated[bool, option("--conntrack", panel=_FROM,
                                      help="Also take the connections that conntrack has seen end")] = False
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", panel=_FROM,
                                               help="Store only flows that match: :443, src=10.0.0.0/8, protocol=tcp, "
                                               "side!=internal; the others are counted")] = None
    data_dir: Annotated[str | None, option("--data-dir", metavar="DIR", panel=_INTO,
                                           help=f"Directory of the flows ({SYSTEM_FLOWS_DIR}; "
                                           "~/.local/share/nettop/flows for others than root)")] = None
    retention: Annotated[list[str] | None, option("--retention", metavar="TABLE=TIME", panel=_INTO,
                                                  autocompletion=_complete_retention,
                                                  help="How long to keep rows (raw=7d,1m=30d,5m=90d,1h=2y,talkers=30d,"
                                                  "counters=90d,ledger=90d)")] = None
    spool_size: Annotated[str, option("--spool-size", metavar="SIZE", panel=_INTO,
                                      help="What may wait on the disk for the store, and as much again to be "
                                      "decoded; more is dropped (10G)")] = "10G"
    clickhouse: Annotated[list[str] | None, option("--clickhouse", metavar="URL", panel=_INTO,
                                                   help="Store on this ClickHouse server, as http://USER:PASSWORD@"
                                                   "HOST:8123, or @FILE with such lines; may be given several times, "
                                                   "of one cluster")] = None
    cluster: Annotated[str, option("--cluster", metavar="NAME", panel=_INTO,
                                   help="The cluster's name; tables are made on all its nodes")] = ""
    kafka: Annotated[str, option("--kafka", metavar="HOST:PORT[,…]/TOPIC", panel=_INTO,
                                 help="Also send flows to this topic, as docs/flows.proto has them")] = ""
    networks: Annotated[list[str] | None, option("--networks", metavar="FILE", panel=_KNOWN,
                                                 help="AS numbers, countries and names of networks: .mmdb, or CSV with "
                                                 "the columns network, asn, as_name, country, name; may be given "
                                                 "several times")] = None
    own_network: Annotated[list[str] | None, option("--own-network", metavar="PREFIX", panel=_KNOWN,
                                                    help="One of your networks, which says what is in and out; may be "
                                                    "given several times")] = None
    interfaces: Annotated[list[str] | None, option("--interfaces", metavar="FILE", panel=_KNOWN,
                                                   help="Names of interfaces: CSV with the columns exporter, if_index, "
                                                   "name, description, speed")] = None
    query_listen: Annotated[list[str] | None, option("--query-listen", metavar="HOST:PORT|unix:PATH", panel=_TO,
                                                     help="Where to answer queries, beside the socket in the data "
                                                     f"directory ({DEFAULT_QUERY_LISTEN}); none: nowhere else")] = None
    token_file: Annotated[str | None, option("--token-file", metavar="FILE", panel=_TO,
                                             help="Queries need the token in FILE, as a bearer token or as the "
                                             "password of any user")] = None
    insecure_listen: Annotated[bool, option("--insecure-listen", panel=_TO,
                                            help="Answer queries beyond loopback without a token")] = False
    cert: Annotated[str | None, option("--cert", metavar="FILE", panel=_TO,
                                       help="Certificate chain, for HTTPS")] = None
    key: Annotated[str | None, option("--key", metavar="FILE", panel=_TO, help="Key of the certificate")] = None
    # fmt: on


def collect_settings(options: CollectOptions) -> CollectSettings:
    """The settings for these options. Raises UsageError for invalid values and combinations."""
    data_dir = os.path.abspath(default_flows_dir() if options.data_dir is None else options.data_dir)
    words = options.query_listen or [DEFAULT_QUERY_LISTEN]
    if options.cluster and not options.clickhouse:
        raise UsageError("--cluster without --clickhouse", "give the URL of at least one of its servers")
    return CollectSettings(
        data_dir=data_dir,
        listen=tuple(options.listen or FLOW_PORTS),
        receive_buffer_bytes=size_bytes("--receive-buffer", options.receive_buffer),
        workers=_at_most("--workers", options.workers, _WORKERS_MAX),
        mirrors=tuple(dict.fromkeys(options.interface or ())),
        sampling=_at_most("--sampling", options.sampling, _SAMPLING_MAX),
        sampling_rates=tuple(options.sampling_rate or ()),
        nflog=tuple(dict.fromkeys(_group(text) for text in options.nflog or ())),
        conntrack=options.conntrack,
        clickhouse=tuple(options.clickhouse or ()),
        cluster=options.cluster,
        kafka=options.kafka,
        retention=_retention(options.retention or ()),
        spool_bytes=size_bytes("--spool-size", options.spool_size),
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


def _at_most(name: str, text: str, most: int) -> int:
    number = whole(name, text)
    if number > most:
        raise UsageError(f"{name} {number} is more than {most}", f"give {name} from 1 to {most}")
    return number


def _group(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _GROUP_MAX):
        raise UsageError(f"--nflog {text!r} is not a group", f"give a number from 0 to {_GROUP_MAX}")
    return int(text)


def _retention(texts: Iterable[str]) -> dict[str, int]:
    """Seconds by the names of tables."""
    seconds: dict[str, int] = {}
    for text in ",".join(texts).split(","):
        if not text:
            continue
        word, _, duration = text.strip().partition("=")
        table = _TABLES[checked_word("table of --retention", word, list(_TABLES))]
        match = _DURATION.fullmatch(duration)
        if match is None:
            raise UsageError(f"--retention {text!r} has no time", "write it like raw=3d, 1m=4w or 1h=2y")
        seconds[table] = int(match[1]) * _HOURS[match[2]] * 3600
    return seconds


def start_collect(options: CollectOptions, _source_of: Callable[[str], Source] | None) -> ExitCode:
    """Collect as the options say. Raises NettopError where it cannot begin, and where it cannot go on."""
    settings = collect_settings(options)
    wanted = (
        *_PACKAGES,
        "clickhouse_connect" if settings.clickhouse else "chdb",
        *(("confluent_kafka",) if settings.kafka else ()),
    )
    missing = [name for name in wanted if not _is_installed(name)]
    if missing:
        raise NettopError(
            f"nettop collect needs packages that are not installed: {', '.join(missing)}",
            "install them with nettop, as nettop[flows]: scripts/install-deps.sh --flows, or the package nettop-flows",
        )
    with undisturbed():
        from nettop.serve.collect import opened_collector

    named_by = caller()
    settings = replace(settings, clickhouse=_server_urls(settings.clickhouse, named_by))
    user = _owner(Path(settings.data_dir), named_by if options.data_dir is not None else None)
    if named_by is not None:
        _check_sockets(options.query_listen or (), named_by, user)
        # Another user could read what who called sudo may not, and has put in the file's place meanwhile.
        settings = replace(settings, rereads_files=user == named_by)
    with ExitStack() as ends:
        # While nettop is root: buffers beyond what others may have, and ports below 1024.
        requests = ends.enter_context(requested_by_signals())
        run = ends.enter_context(opened_collector(settings, requests, sys.stderr, partial(opening_as, named_by)))
        give_up_privileges(user)
        return run()


def _server_urls(words: Iterable[str], named_by: User | None) -> tuple[str, ...]:
    """URLs as they are, and those in the files of words such as @FILE, where other users do not see a password."""
    urls: list[str] = []
    for word in words:
        if not word.startswith("@"):
            urls.append(word)
            continue
        path = word.removeprefix("@")
        with opening_as(named_by):
            try:
                lines = read_file(path, _URLS_MOST_BYTES).decode().split()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not text"
                raise UsageError(
                    f"--clickhouse {word} cannot be read: {why}", "give a file with one URL on each line"
                ) from error
        if not lines:
            raise UsageError(f"--clickhouse {word} has no URL", "write one on each line, as http://HOST:8123")
        urls += lines
    return tuple(urls)


def _check_sockets(words: Iterable[str], named_by: User, user: User | None) -> None:
    """Raise NettopError for a Unix socket that `named_by`, who called sudo, may not make, or that another `user` would
    make.
    """
    for word in words:
        if not word.startswith("unix:"):
            continue
        if user != named_by:
            raise UsageError(
                f"--query-listen {word}: it would not be made as {name_of(named_by)}, who called sudo",
                f"give --data-dir a directory of {name_of(named_by)}'s, too",
            )
        owner_of_files(Path(word.removeprefix("unix:")).parent)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def _owner(directory: Path, named_by: User | None = None) -> User | None:
    """Makes the directory, and returns who is to own what is in it: who called sudo and has named it, or else somebody
    else than root; None for who runs nettop.

    Raises NettopError if that is not possible.
    """
    if named_by is not None or os.geteuid():
        with opening_as(owner_of_files(directory)), _storing_in(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return named_by
    with _storing_in(directory):
        user = owner_of_directory(directory, SERVICE_USERS) or named_user(SERVICE_USERS)
        if (closed := closed_to(user, directory)) is not None:
            raise UsageError(
                f"flows cannot be stored in {directory}: {name_of(user)}, who stores them, may not enter {closed}",
                f"chmod o+x {closed}, or choose another --data-dir",
            )
        _make(directory)
        if directory.stat().st_uid != user.uid:
            _give(directory, user)
    return user


def _make(directory: Path) -> None:
    """Make the directory, in parents that its owner, who is not yet known to it, may enter."""
    umask = os.umask(0o022)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    finally:
        os.umask(umask)


def _give(directory: Path, user: User) -> None:
    """Make the user the owner of a directory of root's, where nobody else may write any more. Raises NettopError for
    one that is not empty.
    """
    if any(directory.iterdir()):
        raise NettopError(
            f"{directory} belongs to root, and datagrams are never read as root",
            f"chown -R {name_of(user)} {directory}, or choose another --data-dir",
        )
    directory.chmod(stat.S_IMODE(directory.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
    os.chown(directory, user.uid, user.gid)


@contextmanager
def _storing_in(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"flows cannot be stored in {directory}: {error.strerror}", "use a directory that can be written"
        ) from error
