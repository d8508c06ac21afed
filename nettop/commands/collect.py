# SPDX-License-Identifier: Apache-2.0
"""`nettop collect`: startup."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

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
from nettop.commands.options import SourceOf, require_packages
from nettop.commands.privilege import give_up_privileges
from nettop.errors import ExitCode, NettopError, UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.reading import read_file
from nettop.settings import DEFAULT_QUERY_LISTEN, FLOW_PORTS
from nettop.settings.collect import CollectSettings

_PACKAGES = ("google.protobuf", "h11", "prometheus_client", "starlette", "uvloop")
_URLS_MOST_BYTES = 1 << 16

HELP = "Receive and store the flows that routers and switches export (sFlow, NetFlow, IPFIX)."

EXAMPLES = f"""\
nettop collect  # any protocol on UDP ports {", ".join(FLOW_PORTS)}, stored on this host
nettop collect --listen 2055 --listen '[::1]:4739' --data-dir /srv/flows --retention raw=3d,1h=5y
nettop collect --networks GeoLite2-ASN.mmdb --networks offices.csv --own-network 192.0.2.0/24
nettop collect --interface eth1 --sampling 500  # also packets that this host sees
nettop collect --clickhouse http://ch1:8123 --clickhouse http://ch2:8123 --cluster flows
nettop flows --top src,dst --since 1h  # largest senders and receivers
curl 'http://{DEFAULT_QUERY_LISTEN}/?query=SELECT+count()+FROM+flows_raw'

Unprivileged processes read the datagrams. On SIGTERM, nettop stores what was received, then exits."""


def start_collect(settings: CollectSettings, _source_of: SourceOf) -> ExitCode:
    """Collect flows until requested to end. Raise NettopError if that cannot start or continue."""
    store = "clickhouse_connect" if settings.clickhouse else "chdb"
    require_packages(
        "collect",
        (*_PACKAGES, store, *(("confluent_kafka",) if settings.kafka else ())),
        "install nettop[flows]: run scripts/install-deps.sh --flows, or install the package nettop-flows",
    )
    with importing():
        from nettop.serve.collect import open_collector

    named_by = caller()
    settings = replace(settings, clickhouse=_server_urls(settings.clickhouse, named_by))
    user = _owner(Path(settings.directory), named_by if settings.data_dir else None)
    if named_by is not None:
        _check_sockets(settings.query_listen, named_by, user)
        # As another user, nettop might reread a file that the caller of sudo has since replaced by a link to one that
        # the caller may not read.
        settings = replace(settings, rereads_files=user == named_by)
    with ExitStack() as resources:
        # While nettop is still root: receive buffers above the limit for other users, and ports below 1024.
        requests = resources.enter_context(requested_by_signals())
        run = resources.enter_context(
            open_collector(settings, requests, sys.stderr, partial(open_files_as, named_by))
        )
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
            raise UsageError(
                f"--clickhouse {word} contains no URL", "write one per line, like http://HOST:8123"
            )
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
