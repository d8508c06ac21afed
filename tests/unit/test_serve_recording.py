# SPDX-License-Identifier: Apache-2.0
"""`nettop serve --from`: a recording in the API, with its time and its host, and what it refuses to give as live."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from nettop.commands.recordings import open_replay
from nettop.recording.player import Player
from nettop.recording.recording import open_recording
from nettop.serve.api.traffic import Traffic
from nettop.serve.command import make_app
from nettop.serve.http.limits import ServerCounts
from nettop.serve.metrics.totals import Totals
from nettop.serve.served import Publications, Served
from nettop.snapshots.connections import LENS
from nettop.snapshots.source import SourceOptions
from tests.unit.build import make_frame
from tests.unit.children import Child, capabilities
from tests.unit.recordings import BEGIN_NS, SECOND_NS, at_second, record
from tests.unit.serving import DEADLINE_S, Client

READINGS = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a recording of one connection, which sends 10 bytes more in each second than in the one before."""
    seconds = range(READINGS)
    frames = [make_frame([{"id": 1, "process": "nginx", "bytes_sent": 5 * n * n}]) for n in seconds]
    return record(tmp_path / "r.nettop", [at_second(frame.now, n) for n, frame in enumerate(frames)])


@dataclass
class Host:
    """A recording that is served, its player stopped."""

    player: Player
    served: Served
    totals: Totals

    def get(self, path: str, query: bytes = b"") -> Client:
        """Return the answer to a request."""

        async def ask() -> Client:
            publications = Publications(self.served.session)
            app = make_app(self.served, self.totals, Traffic(), ServerCounts(), publications)
            client = Client(app, path, query)
            if path.endswith("stream"):
                await client.until(b"\n\nid: ")
                await client.go()
            await client.end()
            publications.close()
            return client

        return asyncio.run(ask())

    def document(self, path: str, query: bytes = b"") -> dict[str, Any]:
        """Return the JSON document of an answer."""
        document: dict[str, Any] = json.loads(self.get(path, query).body)
        return document


@pytest.fixture
def host(path: Path) -> Iterator[Host]:
    """Yield the recording, 10 seconds after its beginning."""
    with open_recording(path) as recording:
        player = Player(recording)
        player.is_paused = True
        player.jump(BEGIN_NS + 10 * SECOND_NS)
        with open_replay(player) as session:
            served = Served(session, (LENS,), player=player)
            totals = Totals(served, {}, SourceOptions())
            with totals.running():
                session.sample_now().result(DEADLINE_S)
                yield Host(player, served, totals)


def test_a_table_is_of_the_moment(host: Host) -> None:
    """Serve the recorded host, time and rates of the player's current moment."""
    columns = b"columns=bytes_sent,bytes_sent_per_s"
    first = host.document("/api/v1/connections", columns)
    assert (first["recording_of"], first["time"]) == ("web-1", "2026-11-28T14:00:10.000000Z")
    assert first["rows"] == [{"bytes_sent": 500, "bytes_sent_per_s": 95.0}]
    host.player.jump(BEGIN_NS + 11 * SECOND_NS)
    assert host.document("/api/v1/connections", columns)["rows"] == [
        {"bytes_sent": 605, "bytes_sent_per_s": 105.0}
    ]


def test_every_form_says_that_it_is_a_recording(host: Host) -> None:
    """Mark CSV by a header, and events of the stream, as those of a recording."""
    table = host.get("/api/v1/connections", b"format=csv")
    assert table.headers["nettop-recording-of"] == "web-1"
    assert host.get("/api/v1/stream", b"view=connections").body.count(b'"recording_of":"web-1"') == 1


@pytest.mark.parametrize("refused", ["/metrics", "/api/metrics/realtime", "/api/stats/summary"])
def test_numbers_without_a_time_are_refused(host: Host, refused: str) -> None:
    """Return 404 where a scraper would store numbers as of now, and omit these paths from the description."""
    answer = host.get(refused)
    assert answer.status == 404
    assert "this is a recording of web-1" in json.loads(answer.body)["detail"]
    assert refused not in host.document("/api/openapi.json")["paths"]


def test_health(host: Host) -> None:
    """Report what is served and the current moment; do not call old readings late."""
    health = host.document("/health")
    assert health["status"] == "ok"
    assert health["lenses"]["connections"]["age_s"] is None
    assert health["recording"] == {
        "host": "web-1",
        "moment": "2026-11-28T14:00:10.000000Z",
        "begin": "2026-11-28T14:00:00.000000Z",
        "end": "2026-11-28T14:00:19.000000Z",
    }


def test_the_command(path: Path) -> None:
    """Play from the moment on, without privileges, with the page, and exit on SIGTERM."""
    listen = f"unix:{path.parent / 'http'}"
    words = [sys.executable, "-m", "nettop", "serve", "--from", str(path), "--at", "-2s", "--listen", listen]
    environment = {name: text for name, text in os.environ.items() if name != "SUDO_UID"}
    transport = httpx.HTTPTransport(uds=str(path.parent / "http"))
    with (
        Child(words, stderr=subprocess.PIPE, env=environment) as child,
        httpx.Client(transport=transport, base_url="http://localhost", timeout=DEADLINE_S) as client,
    ):
        assert child.stderr is not None
        assert f"serving a recording of web-1 at {listen}" in child.stderr.readline()
        assert capabilities(child.pid) == {"0" * 16}
        assert "dashboard.js" in client.get("/").text
        with client.stream("GET", "/api/v1/stream?view=connections") as events:
            times = (
                json.loads(line[6:])["time"] for line in events.iter_lines() if line.startswith("data: ")
            )
            assert next(time for time in times if time >= "2026-11-28T14:00:19")
        assert client.get("/api/v1/drops").status_code == 404
        child.send_signal(signal.SIGTERM)
        assert child.wait(DEADLINE_S) == 0
