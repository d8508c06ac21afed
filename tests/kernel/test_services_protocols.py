# SPDX-License-Identifier: Apache-2.0
"""Third-party services and generators whose protocols multiplex, push or greet: counts are the tools' own, and times
are right or the service is marked."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from nettop.snapshots.services import PATTERNS

from .command import Row
from .lab import Namespace
from .services import ERROR, SERVED, USED, Watched, quantile, running, tool

pytestmark = pytest.mark.kernel

HTTP2, MQTT, GRPC, WEBSOCKET = range(9381, 9385)
ALTERNATING, OVERLAPPING, PUSHING = PATTERNS.values()
ANSWER_S = 0.02
"""How long services of our own take to answer."""
PEERS = Path(__file__).parent
PYTHON = "/usr/bin/python3"


@cache
def peer(module: str) -> list[str]:
    """Return the command of our own peer, which runs on Debian's Python with this module, or skip the test."""
    if subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True, check=False).returncode:
        pytest.skip(f"python3-{module} is not installed (scripts/install-deps.sh --kernels)")
    return [PYTHON, str(PEERS / f"{module}_peer.py")]


def is_marked(row: Row) -> bool:
    """Return whether a service is marked as overlapping, without times."""
    return bool(row["pattern"] == OVERLAPPING and row["timed"] is None)


def has_time(row: Row, least_s: float, most_s: float, share: float = 0.5) -> bool:
    """Return whether a quantile of a service's times is in the range, within the width of a bucket."""
    return least_s * (1 - ERROR) <= quantile(row, "response", share) / 1e9 <= most_s * (1 + ERROR)


def h2load(home: Namespace, *options: str) -> int:
    """Run h2load and return how many of its requests were answered."""
    text = home.run(tool("h2load"), *options, f"http://127.0.0.1:{HTTP2}/x")
    match = re.search(r"(\d+) succeeded, 0 failed, 0 errored, 0 timeout", text)
    assert match, text
    return int(match[1])


def test_http2(home: Namespace, watched: Watched, tmp_path: Path) -> None:
    """Sequential requests are counted, plus up to three turns per connection for SETTINGS and their acknowledgement.

    If both ends' greetings cross, the service is marked instead. Of ten parallel requests, those that are sent together
    and answered together count as one.
    """
    connections = 4
    (tmp_path / "x").write_bytes(b"n" * 612)
    command = [tool("nghttpd"), "--no-tls", "-d", str(tmp_path), str(HTTP2)]
    with running(home, *command, port=HTTP2, log=tmp_path / "log"):
        single = h2load(home, "-n", "2000", "-c", str(connections), "-m", "1")
        for side in (SERVED, USED):
            row = watched.until(home, HTTP2, side, connections=0)
            assert single <= row["responses"] <= single + 3 * connections
            assert is_marked(row) or row["timed"] == row["responses"]
        together = h2load(home, "-n", "4000", "-c", str(connections), "-m", "10")
        for side in (SERVED, USED):
            row = watched.until(home, HTTP2, side, connections=0)
            assert (
                is_marked(row)
                or single + together // 10 <= row["responses"] <= single + together + 6 * connections
            )


def calls(home: Namespace, port: int, number: int, at_once: int, pause_s: float = 0) -> list[float]:
    """Make gRPC calls with pauses; return each one's client-side seconds, fastest first."""
    text = home.run(*peer("grpc"), "call", str(port), str(number), str(at_once), str(pause_s))
    return sorted(json.loads(text))


@contextmanager
def grpc(home: Namespace, folder: Path) -> Iterator[None]:
    """Run a gRPC service."""
    command = [*peer("grpc"), "serve", str(GRPC), str(ANSWER_S)]
    with running(home, *command, port=GRPC, log=folder / "grpc"):
        yield


def test_grpc(home: Namespace, watched: Watched, tmp_path: Path) -> None:
    """Sequential calls have the client's times, or the side is marked, as both ends speak first; those of ten threads
    on one connection are marked at both ends."""
    with grpc(home, tmp_path):
        times = calls(home, GRPC, 100, 1)
        for side in (SERVED, USED):
            row = watched.until(home, GRPC, side, connections=0)
            assert is_marked(row) or has_time(row, ANSWER_S, times[50])
        calls(home, GRPC, 300, 10)
        for side in (SERVED, USED):
            assert is_marked(watched.until(home, GRPC, side, connections=0))


@pytest.mark.parametrize(("pause_s", "number"), [(0.02, 60), (0.2, 20), (1.2, 6)])
def test_grpc_calls_with_pauses(
    home: Namespace, watched: Watched, tmp_path: Path, pause_s: float, number: int
) -> None:
    """Calls one at a time have the client's times, or the side is marked: both ends send PINGs during them."""
    with grpc(home, tmp_path):
        times = calls(home, GRPC, number, 1, pause_s)
        for side in (SERVED, USED):
            row = watched.until(home, GRPC, side, connections=0)
            assert is_marked(row) or has_time(row, ANSWER_S, times[number // 2])


def test_websocket(home: Namespace, watched: Watched, tmp_path: Path) -> None:
    """A question is a turn, like the handshake; a ping is a push, and its pong a reply.

    With few pings the service keeps its times, with many it loses them.
    """
    port, asked, pinged = WEBSOCKET, 100, 2
    serve = [*peer("websockets"), "serve", str(port), str(ANSWER_S)]
    with running(home, *serve, port=port, log=tmp_path / "log"):
        home.run(*peer("websockets"), "ask", str(port), str(asked), str(pinged))
        for side in (SERVED, USED):
            row = watched.until(
                home, port, side, responses=asked + 1, pushes=pinged, connections=0, unanswered=0
            )
            assert row["pattern"] == ALTERNATING
            assert row["timed"] == row["responses"]
            assert quantile(row, "response", 0.5) >= ANSWER_S * 1e9 * (1 - ERROR)
        home.run(*peer("websockets"), "ask", str(port), "1", "20")
        for side in (SERVED, USED):
            row = watched.until(home, port, side, pushes=pinged + 20, connections=0, unanswered=0)
            assert row["pattern"] == PUSHING
            assert row["timed"] is None


def test_mqtt(home: Namespace, watched: Watched, tmp_path: Path) -> None:
    """A broker's delivery is a push, and its confirmation a response."""
    messages = 10
    publish = [tool("mosquitto_pub"), "-p", str(MQTT), "-t", "x", "-m", "hello", "-q", "1"]
    subscribe = [tool("mosquitto_sub"), "-p", str(MQTT), "-t", "x", "-C", str(messages), "-W", "30"]
    command = [tool("mosquitto"), "-p", str(MQTT)]
    with running(home, *command, port=MQTT, log=tmp_path / "log"):
        inside = ["ip", "netns", "exec", home.name, *subscribe]
        with subprocess.Popen(inside, stdout=subprocess.PIPE) as subscriber:
            watched.until(home, MQTT, SERVED, responses=2)
            home.run(*publish, "--repeat", str(messages), "--repeat-delay", "0.15")
            assert subscriber.communicate()[0] == b"hello\n" * messages
        # The first may come within 60 ms of the response to SUBSCRIBE, as if it were more of that.
        turns = 2 + 1 + messages
        for side in (SERVED, USED):
            row = watched.until(home, MQTT, side, responses=turns, timed=turns, connections=0)
            assert messages - 1 <= row["pushes"] <= messages
            assert row["unanswered"] <= 2
