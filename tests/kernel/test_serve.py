# SPDX-License-Identifier: Apache-2.0
"""nettop serve on the running kernel gives Prometheus the kernel's counts, without privileges."""

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_metrics

from nettop.serve.metrics.series import EVICTED, OTHERS
from nettop.snapshots.connections import HOOK_EVENTS
from nettop.snapshots.schema import OWN_NAMESPACE

from . import bpf_objects, traffic
from .command import NOBODY, SUDO, Running
from .lab import PATIENCE, Lab, Namespace, enter, until
from .test_bandwidth import MOVED, device_counts
from .test_privileges import AS_NOBODY, assert_closed_to_its_user, kept, open_to_all, users

pytestmark = pytest.mark.kernel

Sample = tuple[str, frozenset[tuple[str, str]]]
SIZE = 3_000_017
"""A prime number of bytes."""


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket, reachable from every network namespace."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30 * PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Serving(Running):
    """nettop serve in a network namespace, on a Unix socket in a directory of its user's."""

    def __init__(self, folder: Path, *options: str, namespace: Namespace | None = None, **how: Any) -> None:
        self.path = folder / "http.sock"
        if namespace is not None:
            how["preexec_fn"] = lambda: enter(namespace.name)
        super().__init__("serve", "--listen", f"unix:{self.path}", "-t", "0.2", *options, **how)

    def begin(self) -> None:
        """Wait until it answers."""
        until(
            lambda: "serving at" in self.errors() or self.process.poll() is not None,
            "nettop serves",
            deadline_s=60,
        )
        assert self.process.poll() is None, self.errors()

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and body of an answer."""
        with contextlib.closing(UnixConnection(self.path)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def metrics(self) -> dict[Sample, float]:
        """Scrape; assert that each sample occurs once."""
        status, text = self.get("/metrics")
        assert status == 200
        samples = [sample for family in parse_metrics(text) for sample in family.samples]
        by_name = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
        assert len(by_name) == len(samples)
        return by_name


def of(metrics: dict[Sample, float], name: str, **labels: str) -> float:
    """Return the sum of the series with this name and these labels."""
    wanted = labels.items()
    return sum(value for (metric, having), value in metrics.items() if metric == name and wanted <= having)


def moved_by(metrics: dict[Sample, float], device: str) -> dict[str, float]:
    """Return the metrics of a device in nettop's own namespace, by the table's names."""
    labels = {"interface": device, "namespace": OWN_NAMESPACE}
    return {
        name: of(metrics, f"nettop_bandwidth_{unit}_total", direction=direction, **labels)
        for name in MOVED
        for unit, direction in [name.split("_")]
    }


def metrics_since(serving: Serving, began_s: float) -> dict[Sample, float] | None:
    """Return the metrics, if their bandwidth reading began after this time."""
    metrics = serving.metrics()
    read_s = of(metrics, "nettop_reading_timestamp_seconds", lens="bandwidth")
    return metrics if read_s > began_s else None


def test_serve_of_root_becomes_a_service_user(tmp_path: Path) -> None:
    """Started by root, serve becomes another user, also with a token and a Unix socket that are root's."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123")
    token.chmod(0o600)
    with Serving(tmp_path, "--lenses", "connections", "--token-file", str(token), env=None) as serving:
        serving.begin()
        assert all(user[0] != 0 for user in users(serving.pid))
        assert serving.get("/metrics")[0] == HTTPStatus.UNAUTHORIZED


@pytest.mark.walks
def test_metrics_are_what_the_kernel_counted(lab: Lab, tmp_path: Path) -> None:
    """A device's bytes and packets are its own; a process's are those it sent; every top set has the whole sum."""
    near, far = lab.pair()
    server, client = lab.worker(near.namespace, "serveserver"), lab.worker(far.namespace, "serveclient")
    port = server.call(traffic.listen, "listener", near.v4)
    options = ("--lenses", "bandwidth", "--top", "process=1", "--top", "remote=1")
    with Serving(tmp_path, *options, namespace=near.namespace) as serving:
        serving.begin()
        quiet: list[tuple[dict[Sample, float], dict[str, int], int]] = []

        def is_quiet() -> bool:
            """Return whether nothing passed before the device was read again, and the sums are of a later reading."""
            began_s, device = time.time(), device_counts(near.namespace, near.device)
            metrics = until(lambda: metrics_since(serving, began_s), "a reading")
            status, text = serving.get("/api/metrics/realtime")
            assert status == 200
            quiet.append((metrics, device, json.loads(text)["total_bytes"]))
            return device == device_counts(near.namespace, near.device)

        def are_beginnings_seen() -> bool:
            """Return whether events are attached: later connections then count from their first byte."""
            return of(serving.metrics(), "nettop_hook_info", hook=HOOK_EVENTS.name) == 1

        until(are_beginnings_seen, "events are attached", 60)
        until(is_quiet, "a moment without packets")
        before, device_before, _ = quiet[-1]
        client.call(traffic.connect, "call", traffic.Call((near.v4, port)))
        server.call(traffic.accept, "listener", "call")
        server.start(traffic.exchange, {}, {"call": SIZE})
        client.call(traffic.exchange, {"call": SIZE}, {})
        server.result()

        def has_arrived() -> bool:
            """Return whether both the sockets and the device have been read since then."""
            until(is_quiet, "a moment without packets")
            now = of(quiet[-1][0], "nettop_connections_bytes_total")
            return now - of(before, "nettop_connections_bytes_total") >= 2 * SIZE

        until(has_arrived, "what was sent is counted")
        after, device_after, total_bytes = quiet[-1]
        moved = [moved_by(reading, near.device) for reading in (before, after)]
        assert {name: moved[1][name] - moved[0][name] for name in MOVED} == {
            name: device_after[name] - device_before[name] for name in MOVED
        }
        for name in ("bytes", "data_packets", "retransmits"):
            in_all = of(after, f"nettop_connections_{name}_total")
            for top in ("process", "remote", "network", "port"):
                assert of(after, f"nettop_connections_by_{top}_{name}_total") == in_all
        busiest = {
            dict(labels)["process"]
            for name, labels in after
            if name == "nettop_connections_by_process_bytes_total"
        }
        assert "serveserver" in busiest
        assert len(busiest - {OTHERS, EVICTED}) <= 2  # the largest, and as many that were
        assert total_bytes == moved[1]["bytes_received"] + moved[1]["bytes_sent"]


@pytest.mark.walks
def test_no_rights_are_left_and_nothing_stays(lab: Lab, tmp_path: Path) -> None:
    """Every lens is served as the sudo caller, without capabilities in any thread; SIGTERM leaves nothing."""
    objects = bpf_objects.existing()
    folder = tmp_path / "run"
    folder.mkdir()
    open_to_all(tmp_path)
    os.chown(folder, NOBODY, NOBODY)
    with Serving(folder, env=SUDO) as serving:
        serving.begin()
        assert users(serving.pid) == {AS_NOBODY}
        assert kept(serving.pid) == []
        assert_closed_to_its_user(serving.pid)
        status, text = serving.get("/health")
        assert status == 200, text
        for view in ("connections", "connections.groups", "cpu", "bandwidth.flows", "latency.pairs", "drops"):
            status, text = serving.get(f"/api/v1/{view}?limit=5")
            assert status == 200, text
        assert kept(serving.pid) == []
        os.kill(serving.pid, signal.SIGHUP)
        assert serving.get("/health")[0] == 200
        assert serving.end() == 0
        said = serving.complaints().splitlines()
        assert len(said) == 2, said  # where it serves, and what it read again
    assert not serving.path.exists()
    bpf_objects.nothing_new_since(objects)
