# SPDX-License-Identifier: Apache-2.0
"""Queries to a running collector or, if there is none, directly to its store."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

from nettop.errors import PermissionMissing, SourceFailed, UsageError

EXPORTERS_PATH, STATE_PATH = "/api/v1/exporters", "/api/v1/collector"
"""Paths at which a collector reports its exporters and its own state."""
START_COLLECTOR = "start one with nettop collect, or name it with --collector"
_ANSWER_S = 120.0
_UNIX = "unix:"


class Reader(Protocol):
    """A collector or store that answers queries."""

    def query(self, sql: str, form: str) -> bytes:
        """Return the answer in one of ClickHouse's formats. Raise UsageError for a bad query, SourceFailed if there is
        no answer.
        """


class RemoteCollector:
    """A collector, identified by its URL: http://HOST:PORT or unix:PATH."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, sql: str, form: str) -> bytes:
        """Implement `Reader.query`."""
        status, content = self._answer("POST", "/?" + urlencode({"default_format": form}), sql.encode())
        if status == http.client.OK:
            return content
        text = content.decode(errors="replace").strip()
        what = text.partition("DB::Exception: ")[2].rpartition(" (")[0] or text
        raise (UsageError if status == http.client.BAD_REQUEST else SourceFailed)(what)

    def document(self, path: str) -> Any:
        """Return a JSON document. Raise SourceFailed."""
        status, content = self._answer("GET", path)
        if status != http.client.OK:
            raise SourceFailed(f"the collector at {self.url} answered with status {status}", "see its log")
        return json.loads(content)

    def is_running(self) -> bool:
        """Return whether the collector answers."""
        try:
            return self.ping()[0] == http.client.OK
        except (PermissionMissing, SourceFailed):
            return False

    def ping(self) -> tuple[int, bytes]:
        """Return the status and body of the answer to /ping. Raise PermissionMissing or SourceFailed without one."""
        return self._answer("GET", "/ping")

    def _answer(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = _connection(self.url)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except PermissionError as error:
            raise PermissionMissing(
                f"permission denied to use the collector at {self.url}",
                "run it as root, or as the collector's user",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise SourceFailed(
                f"the collector at {self.url} does not answer: {error}", "start it with nettop collect"
            ) from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(url: str) -> http.client.HTTPConnection:
    if url.startswith(_UNIX):
        return _UnixConnection(url.removeprefix(_UNIX))
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"{url!r} is not the URL of a collector", "write it like http://127.0.0.1:9472 or unix:PATH"
        )
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname, parts.port, timeout=_ANSWER_S)


def running_collector(urls: Sequence[str]) -> RemoteCollector | None:
    """Return the first collector that answers; None if none does."""
    for url in urls:
        collector = RemoteCollector(url)
        if collector.is_running():
            return collector
    return None


def _permission_error(directory: Path) -> PermissionError | None:
    """Return the PermissionError for a directory that this user may not read; None if it is readable or missing."""
    try:
        os.scandir(directory / "data").close()
    except OSError as error:
        return error if isinstance(error, PermissionError) else None
    return None


def no_answer_message(urls: Sequence[str]) -> str:
    """Return a message that no collector answers at these URLs, noting where permission was denied."""
    return f"no collector answers at {' or '.join(map(_describe, urls))}"


def _describe(url: str) -> str:
    try:
        status, _ = RemoteCollector(url).ping()
    except PermissionMissing:
        return f"{url} (permission denied)"
    except SourceFailed:
        return url
    return f"{url} (status {status})"


@contextmanager
def open_reader(
    urls: Sequence[str], data_dir: Path | None, report: Callable[[str], None] = lambda _: None
) -> Iterator[Reader]:
    """Yield the first collector that answers, or else the store in the directory, if one is given; `report` the
    progress of upgrading it.

    Raise SourceFailed if neither is usable.
    """
    collector = running_collector(urls)
    if collector is not None:
        yield collector
        return
    if data_dir is None:
        yield RemoteCollector(urls[0])  # its error says why it does not answer
        return
    if not os.path.isdir(data_dir / "data") or not os.access(data_dir, os.W_OK):
        raise SourceFailed(
            f"{no_answer_message(urls)}, and {data_dir} has no flows that you may read",
            f"{START_COLLECTOR}, or its directory with --data-dir",
        ) from _permission_error(data_dir)
    from nettop.collector.store.embedded import EmbeddedStore

    store = EmbeddedStore(data_dir, report=report)
    try:
        yield store
    finally:
        store.close()
