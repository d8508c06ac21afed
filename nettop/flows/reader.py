# SPDX-License-Identifier: Apache-2.0
"""Queries to the collector that runs, or where none does, to the store that it has left."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

from nettop.errors import PermissionMissing, SourceFailed, UsageError

EXPORTERS_PATH, STATE_PATH = "/api/v1/exporters", "/api/v1/collector"
"""Where a collector says what its exporters are, and what it does itself."""
START_COLLECTOR = "start one: nettop collect; or name it by --collector"
_ANSWER_S = 120.0
_UNIX = "unix:"


class Reader(Protocol):
    """What answers queries."""

    def query(self, sql: str, form: str) -> bytes:
        """The answer in one of ClickHouse's formats. Raises UsageError for a wrong query, SourceFailed for none."""


class Collector:
    """A collector, by its URL: http://HOST:PORT, or unix:PATH."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, sql: str, form: str) -> bytes:
        """As of Reader."""
        status, content = self._answer("POST", "/?" + urlencode({"default_format": form}), sql.encode())
        if status == http.client.OK:
            return content
        text = content.decode(errors="replace").strip()
        what = text.partition("DB::Exception: ")[2].rpartition(" (")[0] or text
        raise (UsageError if status == http.client.BAD_REQUEST else SourceFailed)(what)

    def document(self, path: str) -> Any:
        """A document of JSON. Raises SourceFailed."""
        status, content = self._answer("GET", path)
        if status != http.client.OK:
            raise SourceFailed(
                f"the collector at {self.url} answers with status {status}", "see what it reports"
            )
        return json.loads(content)

    def is_running(self) -> bool:
        """Whether it answers at all."""
        try:
            return self.ping()[0] == http.client.OK
        except (PermissionMissing, SourceFailed):
            return False

    def ping(self) -> tuple[int, bytes]:
        """The status and the content of its shortest answer. Raises PermissionMissing or SourceFailed for none."""
        return self._answer("GET", "/ping")

    def _answer(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = _connection(self.url)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except PermissionError as error:
            raise PermissionMissing(
                f"you may not use the collector at {self.url}", "run it as root, or as the collector's user"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise SourceFailed(
                f"the collector at {self.url} does not answer: {error}", "start it: nettop collect"
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


def running_collector(urls: Sequence[str]) -> Collector | None:
    """The first of these collectors that answers; None if none does."""
    for url in urls:
        collector = Collector(url)
        if collector.is_running():
            return collector
    return None


def _denied(directory: Path) -> PermissionError | None:
    """Why we may not look into the directory; None where we may, or where it does not exist."""
    try:
        os.scandir(directory / "data").close()
    except OSError as error:
        return error if isinstance(error, PermissionError) else None
    return None


def none_answers(urls: Sequence[str]) -> str:
    """Say that no collector answers at these URLs, and where that is because we may not ask."""
    return f"no collector answers at {' or '.join(map(_tried, urls))}"


def _tried(url: str) -> str:
    try:
        status, _ = Collector(url).ping()
    except PermissionMissing:
        return f"{url} (permission denied)"
    except SourceFailed:
        return url
    return f"{url} (status {status})"


@contextmanager
def opened_reader(urls: Sequence[str], data_dir: Path | None) -> Iterator[Reader]:
    """The first of these collectors that answers, or else the store in the directory, if one is given.

    Raises SourceFailed if neither can be used.
    """
    collector = running_collector(urls)
    if collector is not None:
        yield collector
        return
    if data_dir is None:
        yield Collector(urls[0])  # says why it does not answer
        return
    if not os.path.isdir(data_dir / "data") or not os.access(data_dir, os.W_OK):
        raise SourceFailed(
            f"{none_answers(urls)}, and {data_dir} has no flows that you may read",
            f"{START_COLLECTOR}, or its directory by --data-dir",
        ) from _denied(data_dir)
    from nettop.flows.store.embedded import EmbeddedStore

    store = EmbeddedStore(data_dir)
    try:
        yield store
    finally:
        store.close()
