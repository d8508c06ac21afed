# SPDX-License-Identifier: Apache-2.0
"""Check that a real Prometheus gets correct values from nettop serve: `sudo .venv/bin/python bench/prometheus.py`.

A veth pair connects the script's own network namespace to another one with iperf3 and an HTTP server. nettop serves its
metrics here; Prometheus (Debian: prometheus) scrapes it, and so does this script, every second. The exit code is 1 if a
check fails.
"""

import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpu_scenes import A, B, Namespace, Traffic
from measure import Figure, Report, arguments, at_least, judge
from programs import for_seconds, readable_folder, require, run, until
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from serve import HOST, METRICS, OPENMETRICS, PORT, Client, handle_signals, serving, started
from sockets import own_namespace

DEVICE, FAR_DEVICE = "bench0", "far0"
ADDRESSES = [B, *(f"10.79.0.{number}" for number in range(3, 9))]
"""Addresses of the other end: more than the remotes that get series."""
PROMETHEUS_PORT = 9090
SCRAPES_EVERY_S = 5
TOP = ("--top", "process=3", "--top", "remote=3")
LOADS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("5201", ("-b", "100M")),
    ("5202", ("-b", "50M", "-R")),
    ("5203", ("-b", "20M", "-u")),
)
"""Ports of iperf3's servers, and options of their clients."""
ASKERS = 5
"""Number of programs that query the HTTP server, each with its own name."""
WITHIN = 0.01
SUFFIXES = ("_total", "_bucket", "_count", "_sum")
PARTS_OF = "nettop_connections_by_"

Labels = frozenset[tuple[str, str]]
Values = dict[tuple[str, Labels], float]


# --- traffic ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connected() -> Iterator[tuple[Traffic, Namespace, Namespace]]:
    """Yield the traffic, this process's namespace, and the one at the other end.

    The devices do not segment packets: they would count the headers of an aggregate once, where nettop counts those of
    each packet on the wire.
    """
    with Traffic() as traffic:
        ours, theirs = Namespace(os.getpid()), traffic.namespace()
        traffic.connect(ours, theirs, DEVICE, FAR_DEVICE)
        for host, device, addresses in ((ours, DEVICE, [A]), (theirs, FAR_DEVICE, ADDRESSES)):
            host.ip(f"link set {device} gso_max_segs 1")
            for address in addresses:
                host.ip(f"address add {address}/24 dev {device}")
        yield traffic, ours, theirs


@contextlib.contextmanager
def loaded(ours: Namespace, theirs: Namespace, folder: Path) -> Iterator[None]:
    """Run iperf3 both ways and with UDP, and differently named programs that fetch a file over new connections."""
    (folder / "file").write_bytes(bytes(50_000))
    with Traffic() as traffic:
        for port, _ in LOADS:
            traffic.start(theirs.inside("iperf3", "-s", "-p", port))
        python = ["-m", "http.server", "80", "--directory", str(folder)]
        traffic.start(theirs.inside(sys.executable, *python))
        until(lambda: theirs.listens("80", *dict(LOADS)), "the servers at the other end")
        for port, words in LOADS:
            traffic.start(ours.inside("iperf3", "-c", B, "-p", port, "-t", "3600", *words))
        curl = shutil.which("curl")
        assert curl
        for number in range(ASKERS):
            # A process has the name of its file.
            name = folder / f"asker{number}"
            name.symlink_to(curl)
            urls = f"http://10.79.0.[2-8]/file?[1-100000]-{number}"
            rate = f"{4 * (number + 1)}/s"
            traffic.start(ours.inside(str(name), "-s", "-o", "/dev/null", "--rate", rate, urls))
        yield


def device_bytes() -> dict[str, int]:
    """Return the device's own byte counts, by direction."""
    stats = json.loads(run("ip", "-s", "-j", "link", "show", DEVICE))[0]["stats64"]
    return {"received": stats["rx"]["bytes"], "sent": stats["tx"]["bytes"]}


# --- Prometheus -------------------------------------------------------------------------------------------------


class Prometheus:
    """Client of a Prometheus that scrapes nettop."""

    def __init__(self, said: Path) -> None:
        self._client = Client(PROMETHEUS_PORT)
        self._said = said

    def query(self, text: str, at: float) -> list[tuple[dict[str, str], Any]]:
        """Return the value (for a range, the values) of each series at a time (seconds since 1970)."""
        words = urllib.parse.urlencode({"query": text, "time": f"{at:.3f}"})
        answer = json.loads(self._client.get(f"/api/v1/query?{words}"))["data"]["result"]
        return [(each["metric"], each.get("values") or float(each["value"][1])) for each in answer]

    def query_range(self, text: str, start: float, end: float) -> list[list[float]]:
        """Return the values of each series, one per scrape interval."""
        words = urllib.parse.urlencode({"query": text, "start": start, "end": end, "step": SCRAPES_EVERY_S})
        answer = json.loads(self._client.get(f"/api/v1/query_range?{words}"))["data"]["result"]
        return [[float(value) for _, value in each["values"]] for each in answer]

    def complaints(self) -> list[str]:
        """Return the warnings and errors that Prometheus logged."""
        return [
            line
            for line in self._said.read_text().splitlines()
            if "level=warn" in line or "level=err" in line
        ]


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus, and yield once it has scraped nettop."""
    config = folder / "prometheus.yml"
    job = {"job_name": "nettop", "static_configs": [{"targets": [f"{HOST}:{PORT}"]}]}
    scraping = {"global": {"scrape_interval": f"{SCRAPES_EVERY_S}s"}, "scrape_configs": [job]}
    config.write_text(json.dumps(scraping))
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{PROMETHEUS_PORT}",
    ]
    with started("prometheus", command, lambda said: "ready to receive web requests" in said) as (_, said):
        made = Prometheus(said)
        until(lambda: made.query("up == 1", time.time()), "a scrape by Prometheus", 0.2)
        yield made


# --- own scrapes --------------------------------------------------------------------------------------------------


@dataclass
class Direct:
    """Scrapes by this script, and the errors found within and between them."""

    scrapes: int = 0
    samples: int = 0
    compared: int = 0
    seen: Values = field(default_factory=dict)
    counters: set[tuple[str, Labels]] = field(default_factory=set)
    fallen: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    doubled: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Check one more scrape."""
        self.scrapes += 1
        values: Values = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                if key in values:
                    self.doubled.append(written(*key))
                values[key] = float(sample.value)
        self.samples = len(values)
        counters = {key: value for key, value in values.items() if key[0].endswith(SUFFIXES)}
        for key, value in counters.items():
            # A series that reappears must not have decreased.
            if not value >= self.seen.get(key, 0.0):
                self.fallen.append(f"scrape {self.scrapes}: {written(*key)}: {self.seen.get(key)} → {value}")
        self.gone |= {written(*key) for key in self.seen.keys() - counters.keys()}
        self.seen |= counters
        self.compare(values)

    def compare(self, values: Values) -> None:
        """Check that the series by process, remote, network or port sum to the total."""
        names = {name for name, _ in values if name.startswith(PARTS_OF)}
        for name in sorted(names):
            label, _, rest = name.removeprefix(PARTS_OF).partition("_")
            whole = sums(values, f"nettop_connections_{rest}", ("direction",))
            parts = sums(values, name, ("direction",))
            self.compared += 1
            # A metric without values yet may have no series on one side.
            if not are_equal(whole, parts) and any(whole.values()) | any(parts.values()):
                self.unequal.append(f"scrape {self.scrapes}: {name} by {label}: {parts}, total {whole}")


def sums(values: Values, name: str, by: Iterable[str]) -> dict[Labels, float]:
    """Sum a metric's series by some of their labels."""
    totals: dict[Labels, float] = {}
    for (sample, labels), value in values.items():
        if sample == name:
            kept = frozenset((label, text) for label, text in labels if label in by)
            totals[kept] = totals.get(kept, 0.0) + value
    return totals


def are_equal(totals: dict[Labels, float], others: dict[Labels, float]) -> bool:
    """Return whether sums are equal, apart from the rounding of seconds."""
    return totals.keys() == others.keys() and all(
        math.isclose(total, others[labels], rel_tol=1e-12) for labels, total in totals.items()
    )


def written(name: str, labels: Labels) -> str:
    """Return a series in Prometheus notation."""
    listed = ", ".join(f'{label}="{text}"' for label, text in sorted(labels))
    return f"{name}{{{listed}}}"


def none_of(what: str, faults: Iterable[str]) -> Figure:
    """Return the number of faults, which must be 0, as a figure; print the first few."""
    listed = list(faults)
    for fault in listed[:10]:
        print(f"            {what}: {fault}")
    return Figure(what, len(listed), "", 0)


# --- checks -----------------------------------------------------------------------------------------------------


def check_formats(client: Client) -> Iterator[Figure]:
    """Check that promtool and prometheus_client's parser accept the output."""
    text = client.get(METRICS)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    yield Figure("promtool check metrics: exit code", done.returncode, "", 0)
    yield none_of("promtool check metrics: complaints", (done.stdout + done.stderr).decode().splitlines())
    answer = Client(accepts=OPENMETRICS).get(METRICS).decode()
    try:
        families = list(openmetrics_parser.text_string_to_metric_families(answer))  # type: ignore[no-untyped-call]
    except ValueError as error:
        yield none_of("OpenMetrics: errors", [repr(error)])
    else:
        yield at_least("OpenMetrics: samples", sum(len(family.samples) for family in families), "", 1)


def check_scrapes(source: Prometheus, began: float, ended: float) -> Iterator[Figure]:
    """Check that each scrape by Prometheus succeeded."""
    values = source.query_range("up", began, ended)
    ups = values[0] if values else []
    yield at_least("scrapes", len(ups), "", int((ended - began) / SCRAPES_EVERY_S))
    yield Figure("scrapes that failed (up is not 1)", len(ups) - ups.count(1.0), "", 0)
    over = f"[{ended - began:.0f}s]"
    for title, text, unit in (
        ("slowest scrape", f"1e3 * max_over_time(scrape_duration_seconds{over})", "ms"),
        ("samples per scrape", f"max_over_time(scrape_samples_scraped{over})", ""),
    ):
        yield Figure(title, source.query(text, ended)[0][1], unit)
    yield none_of("warnings in Prometheus's log", source.complaints())


def check_bytes(source: Prometheus, ended: float, counted: Mapping[str, int]) -> Iterator[Figure]:
    """Check that the metric's increase in Prometheus equals the device's own count.

    There is no traffic at the beginning and the end, so it does not matter that readings are up to a second old. The
    range extends exactly from one scrape to another, so nothing is extrapolated.
    """
    for direction, bytes_counted in counted.items():
        series = (
            f'nettop_bandwidth_bytes_total{{interface="{DEVICE}",direction="{direction}",backing="uplink"}}'
        )
        samples = source.query(f"{series}[1h]", ended)
        yield Figure(f"series of bytes {direction} besides the one", abs(len(samples) - 1), "", 0)
        if len(samples) != 1:
            continue
        times = [float(at) for at, _ in samples[0][1]]
        lasted = times[-1] - times[0]
        over = f"{round(lasted * 1e3) + 1}ms"
        for what, query, factor in (("increase()", "increase", 1.0), ("rate() × time", "rate", lasted)):
            value = source.query(f"{query}({series}[{over}])", times[-1])[0][1] * factor
            apart = 100 * abs(value / bytes_counted - 1)
            title = f"bytes {direction}: {what} {value:,.0f}, the device {bytes_counted:,}"
            yield Figure(title, apart, "%", 100 * WITHIN)


def check_quantiles(source: Prometheus, at: float) -> Iterator[Figure]:
    """Check that each stage with packets, and each of their series, has a 99th percentile."""
    for what, by, counts, quantiles in (
        (
            "stages",
            ("stage",),
            "sum by (stage) (increase(nettop_latency_seconds_count[1m])) > 0",
            "histogram_quantile(0.99, sum by (stage, le) (rate(nettop_latency_seconds_bucket[1m])))",
        ),
        (
            "series",
            None,
            "increase(nettop_latency_seconds_count[1m]) > 0",
            "histogram_quantile(0.99, rate(nettop_latency_seconds_bucket[1m]))",
        ),
    ):
        saw = {labelled(labels, by) for labels, _ in source.query(counts, at)}
        known = {labelled(labels, by): value for labels, value in source.query(quantiles, at)}
        if by:
            print(
                "          "
                + ", ".join(f"{dict(each)} {known[each] * 1e6:.0f} µs" for each in saw & known.keys())
            )
        missing = (str(sorted(each)) for each in saw if not math.isfinite(known.get(each, math.nan)))
        yield at_least(f"{what} that saw packets", len(saw), "", 1)
        yield none_of(f"{what} without histogram_quantile(0.99, …)", missing)


def labelled(labels: Mapping[str, str], by: Iterable[str] | None) -> Labels:
    """Return these labels of a series; by default all but its name."""
    wanted = labels.keys() - {"__name__"} if by is None else by
    return frozenset((label, labels[label]) for label in wanted)


def check_direct(direct: Direct) -> Iterator[Figure]:
    """Report the checks on this script's own scrapes."""
    yield Figure("scrapes by this script", direct.scrapes)
    yield Figure("samples in the last", direct.samples)
    yield at_least("sums of series by process, remote, network or port", direct.compared, "", 1)
    yield none_of("sums that differ from the totals", direct.unequal)
    yield at_least("counter series", len(direct.seen), "", 1)
    yield none_of("counter series that decreased", direct.fallen)
    yield none_of("duplicate series", direct.doubled)
    yield Figure("counter series that disappeared", len(direct.gone))


def scrape_for(seconds: float, direct: Direct, short_lived: list[str]) -> None:
    """Scrape every second; after each scrape run a short-lived program and cause a packet drop."""
    client = Client()
    nobody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for left in for_seconds(seconds):
        direct.add(client.get(METRICS).decode())
        if short_lived:
            subprocess.run(short_lived, capture_output=True, check=False, stdin=subprocess.DEVNULL)
            nobody.sendto(b"n", (HOST, 9))
        time.sleep(min(1.0, left))


def reports(seconds: int) -> Iterator[Report]:
    """Generate traffic, and check the scrapes of Prometheus and this script."""
    direct, quiet_s = Direct(), 2.0 * SCRAPES_EVERY_S
    with (
        readable_folder("prometheus") as folder,
        connected() as (_, ours, theirs),
        serving(*TOP),
        prometheus(folder) as source,
    ):
        print(f"{seconds} s of traffic, {os.cpu_count()} CPUs, {' '.join(TOP)}", flush=True)
        scrape_for(quiet_s, direct, [])
        began, before = time.time(), device_bytes()
        with loaded(ours, theirs, folder):
            scrape_for(seconds, direct, ["curl", "-s", f"http://{B}/file?short"])
            busy = time.time()
        scrape_for(quiet_s, direct, [])
        ended, after = time.time(), device_bytes()
        moved = {name: after[name] - before[name] for name in before}
        yield "Scrapes by Prometheus", check_scrapes(source, began, ended)
        yield "Formats", check_formats(Client())
        yield "Bytes", check_bytes(source, ended, moved)
        yield "Quantiles", check_quantiles(source, busy)
        yield "Scrapes by this script", check_direct(direct)


def main() -> int:
    """Generate traffic, and check the scrapes of Prometheus and this script."""
    options = arguments(__doc__, seconds=(120, "duration of the traffic"))
    require("prometheus", "promtool", "iperf3", "curl")
    own_namespace()
    return judge(reports(options.seconds))


if __name__ == "__main__":
    handle_signals()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
