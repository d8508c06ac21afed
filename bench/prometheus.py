# SPDX-License-Identifier: Apache-2.0
"""Whether a real Prometheus gets from nettop serve what is true: `sudo .venv/bin/python bench/prometheus.py`.

A veth pair leads from the script's own network namespace to another one, with iperf3 and an HTTP server there. nettop
serves its metrics here, where Prometheus scrapes it (Debian: prometheus), and so does this script, every second. The
exit code is 1 if a check fails.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpu_scenes import A, B, Namespace, Traffic
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from serve import (
    HOST,
    METRICS,
    PORT,
    PROMETHEUS_ACCEPTS,
    READY_WITHIN_S,
    Client,
    handle_signals,
    serving,
    started,
)
from sockets import own_namespace

DEVICE, FAR_DEVICE = "bench0", "far0"
ADDRESSES = [B, *(f"10.79.0.{number}" for number in range(3, 9))]
"""Of the other end: more than the remotes that have series."""
PROMETHEUS_PORT = 9090
SCRAPES_EVERY_S = 5
TOP = ("--top", "process=3", "--top", "remote=3")
LOADS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("5201", ("-b", "100M")),
    ("5202", ("-b", "50M", "-R")),
    ("5203", ("-b", "20M", "-u")),
)
"""The ports of iperf3's servers, and what their clients do."""
ASKERS = 5
"""Programs that ask the HTTP server, each with its own name."""
WITHIN = 0.01
SUFFIXES = ("_total", "_bucket", "_count", "_sum")
PARTS_OF = "nettop_connections_by_"

Labels = frozenset[tuple[str, str]]
Values = dict[tuple[str, Labels], float]


@dataclass
class Checks:
    """What was checked, and whether it held."""

    failed: list[str] = field(default_factory=list)

    def say(self, what: str, figures: str, *, holds: bool) -> None:
        """Print a check, its figures and the word ok or FAILED."""
        print(f"  {'ok    ' if holds else 'FAILED'}  {what}: {figures}", flush=True)
        if not holds:
            self.failed.append(what)


# --- the scene --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connected() -> Iterator[tuple[Traffic, Namespace, Namespace]]:
    """This process's namespace, and the one at the other end.

    Packets are not segmented by the devices: these would count the headers of an aggregate once, nettop counts those of
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
    """iperf3 both ways and with UDP, and programs of several names that fetch a file, each time anew."""
    (folder / "file").write_bytes(bytes(50_000))
    with Traffic() as traffic:
        for port, _ in LOADS:
            traffic.start(theirs.inside("iperf3", "-s", "-p", port))
        python = ["-m", "http.server", "80", "--directory", str(folder)]
        traffic.start(theirs.inside(sys.executable, *python))
        until(
            lambda: all(f":{port} " in theirs.run("ss", "-tlnH") for port in ("80", *(p for p, _ in LOADS))),
            "the servers at the other end",
        )
        for port, words in LOADS:
            traffic.start(ours.inside("iperf3", "-c", B, "-p", port, "-t", "3600", *words))
        curl = shutil.which("curl")
        assert curl
        for number in range(ASKERS):
            # A program is called what its file is called.
            name = folder / f"asker{number}"
            name.symlink_to(curl)
            urls = f"http://10.79.0.[2-8]/file?[1-100000]-{number}"
            rate = f"{4 * (number + 1)}/s"
            traffic.start(ours.inside(str(name), "-s", "-o", "/dev/null", "--rate", rate, urls))
        yield


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; exit if it does not hold in time."""
    end = time.monotonic() + READY_WITHIN_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {READY_WITHIN_S:g} s")
        time.sleep(0.2)


def device_bytes() -> dict[str, int]:
    """What the device itself has counted, by direction."""
    said = subprocess.run(["ip", "-s", "-j", "link", "show", DEVICE], capture_output=True, check=True)
    stats = json.loads(said.stdout)[0]["stats64"]
    return {"received": stats["rx"]["bytes"], "sent": stats["tx"]["bytes"]}


# --- Prometheus -------------------------------------------------------------------------------------------------


class Prometheus:
    """A Prometheus that scrapes nettop, and what it knows."""

    def __init__(self, said: Path) -> None:
        self._client = Client(PROMETHEUS_PORT)
        self._said = said

    def query(self, text: str, at: float) -> list[tuple[dict[str, str], Any]]:
        """The value or, of a range, the values of each series at a time (seconds since 1970)."""
        words = urllib.parse.urlencode({"query": text, "time": f"{at:.3f}"})
        answer = json.loads(self._client.get(f"/api/v1/query?{words}"))["data"]["result"]
        return [(each["metric"], each.get("values") or float(each["value"][1])) for each in answer]

    def query_range(self, text: str, start: float, end: float) -> list[list[float]]:
        """The values of each series, one for each scrape interval."""
        words = urllib.parse.urlencode({"query": text, "start": start, "end": end, "step": SCRAPES_EVERY_S})
        answer = json.loads(self._client.get(f"/api/v1/query_range?{words}"))["data"]["result"]
        return [[float(value) for _, value in each["values"]] for each in answer]

    def complaints(self) -> list[str]:
        """What it warned of."""
        return [
            line
            for line in self._said.read_text().splitlines()
            if "level=warn" in line or "level=err" in line
        ]


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """Prometheus, once it has scraped nettop."""
    config = folder / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": f"{SCRAPES_EVERY_S}s"},
                "scrape_configs": [
                    {"job_name": "nettop", "static_configs": [{"targets": [f"{HOST}:{PORT}"]}]}
                ],
            }
        )
    )
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{PROMETHEUS_PORT}",
    ]
    with started("prometheus", command, lambda said: "ready to receive web requests" in said) as (_, said):
        made = Prometheus(said)
        until(lambda: made.query("up == 1", time.time()), "a scrape by Prometheus")
        yield made


# --- what is scraped here -----------------------------------------------------------------------------------------


@dataclass
class Direct:
    """Scrapes by this script: whatever is wrong in one of them, and in one after another."""

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
        """Look at one more scrape."""
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
            # A series that was away must not come back with less.
            if not value >= self.seen.get(key, 0.0):
                self.fallen.append(f"scrape {self.scrapes}: {written(*key)}: {self.seen.get(key)} → {value}")
        self.gone |= {written(*key) for key in self.seen.keys() - counters.keys()}
        self.seen |= counters
        self.compare(values)

    def compare(self, values: Values) -> None:
        """Whether what is listed by process, remote, network or port adds up to the whole."""
        names = {name for name, _ in values if name.startswith(PARTS_OF)}
        for name in sorted(names):
            label, _, rest = name.removeprefix(PARTS_OF).partition("_")
            whole = sums(values, f"nettop_connections_{rest}", ("direction",))
            parts = sums(values, name, ("direction",))
            self.compared += 1
            # A metric of which nothing is known yet has no series in one of them.
            if whole != parts and any(whole.values()) | any(parts.values()):
                self.unequal.append(f"scrape {self.scrapes}: {name} by {label}: {parts}, in all {whole}")


def sums(values: Values, name: str, by: Iterable[str]) -> dict[Labels, float]:
    """The sums of a metric's series, by some of their labels."""
    totals: dict[Labels, float] = {}
    for (sample, labels), value in values.items():
        if sample == name:
            kept = frozenset((label, text) for label, text in labels if label in by)
            totals[kept] = totals.get(kept, 0.0) + value
    return totals


def written(name: str, labels: Labels) -> str:
    """A series as people write it."""
    listed = ", ".join(f'{label}="{text}"' for label, text in sorted(labels))
    return f"{name}{{{listed}}}"


def some(lines: Iterable[str]) -> str:
    """The first few of them, below each other."""
    return "".join(f"\n            {line}" for line in itertools.islice(lines, 10))


# --- checks -----------------------------------------------------------------------------------------------------


def check_formats(checks: Checks, client: Client) -> None:
    """promtool and prometheus_client's parser take what is served."""
    text = client.get(METRICS)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    complaints = (done.stdout + done.stderr).decode().strip()
    lines = len(text.splitlines())
    checks.say(
        "promtool check metrics",
        f"{lines} lines, exit code {done.returncode} {complaints}",
        holds=done.returncode == 0 and not complaints,
    )
    answer = Client(accepts=PROMETHEUS_ACCEPTS).get(METRICS).decode()
    try:
        families = list(openmetrics_parser.text_string_to_metric_families(answer))  # type: ignore[no-untyped-call]
    except ValueError as error:
        checks.say("OpenMetrics", repr(error), holds=False)
    else:
        count = sum(len(family.samples) for family in families)
        checks.say("OpenMetrics", f"{len(families)} families, {count} samples", holds=count > 0)


def check_scrapes(checks: Checks, source: Prometheus, began: float, ended: float) -> None:
    """Each scrape by Prometheus succeeded."""
    values = source.query_range("up", began, ended)
    ups = values[0] if values else []
    expected = int((ended - began) / SCRAPES_EVERY_S)
    checks.say("up == 1", f"{ups.count(1.0)} of {len(ups)}", holds=len(ups) >= expected and set(ups) == {1.0})
    over = f"[{ended - began:.0f}s]"
    for title, text in (
        ("slowest scrape", f"1e3 * max_over_time(scrape_duration_seconds{over})"),
        ("samples of a scrape", f"max_over_time(scrape_samples_scraped{over})"),
    ):
        print(f"          {title}: {source.query(text, ended)[0][1]:.0f}{' ms' if '1e3' in text else ''}")
    complaints = source.complaints()
    checks.say("Prometheus warns of nothing", f"{len(complaints)}{some(complaints)}", holds=not complaints)


def check_bytes(checks: Checks, source: Prometheus, ended: float, counted: Mapping[str, int]) -> None:
    """What the device counted is what Prometheus says the metric increased by.

    There is no traffic at the beginning and the end, so that it does not matter that readings are up to a second old.
    The range is that from one scrape to another, so that nothing is extrapolated.
    """
    for direction, bytes_counted in counted.items():
        series = (
            f'nettop_bandwidth_bytes_total{{interface="{DEVICE}",direction="{direction}",backing="uplink"}}'
        )
        samples = source.query(f"{series}[1h]", ended)
        if len(samples) != 1:
            checks.say(f"increase of {series}", f"{len(samples)} series", holds=False)
            continue
        times = [float(at) for at, _ in samples[0][1]]
        over = f"{round((times[-1] - times[0]) * 1e3) + 1}ms"
        increase = source.query(f"increase({series}[{over}])", times[-1])[0][1]
        rate = source.query(f"rate({series}[{over}])", times[-1])[0][1] * (times[-1] - times[0])
        apart = increase / bytes_counted - 1
        checks.say(
            f"bytes {direction}",
            f"increase() {increase:,.0f}, rate() × time {rate:,.0f}, the device {bytes_counted:,}: "
            f"{apart:+.4%} apart",
            holds=max(abs(apart), abs(rate / bytes_counted - 1)) <= WITHIN,
        )


def check_quantiles(checks: Checks, source: Prometheus, at: float) -> None:
    """Each stage that saw packets has a 99th percentile."""
    counts = source.query("sum by (stage) (increase(nettop_latency_seconds_count[1m]))", at)
    saw = {labels["stage"] for labels, count in counts if count > 0}
    text = "histogram_quantile(0.99, sum by (stage, le) (rate(nettop_latency_seconds_bucket[1m])))"
    quantiles = {labels["stage"]: value for labels, value in source.query(text, at)}
    listed = ", ".join(f"{stage} {quantiles.get(stage, math.nan) * 1e6:.0f} µs" for stage in sorted(saw))
    holds = bool(saw) and all(math.isfinite(quantiles.get(stage, math.nan)) for stage in saw)
    checks.say("histogram_quantile(0.99, …) of each stage that saw packets", listed, holds=holds)
    each = source.query("histogram_quantile(0.99, rate(nettop_latency_seconds_bucket[1m]))", at)
    seen = source.query("increase(nettop_latency_seconds_count[1m]) > 0", at)
    known = {without_name(labels) for labels, value in each if math.isfinite(value)}
    missing = {without_name(labels) for labels, _ in seen} - known
    checks.say(
        "the same of each of their series",
        f"{len(seen)} series{some(str(sorted(labels)) for labels in missing)}",
        holds=bool(seen) and not missing,
    )


def without_name(labels: Mapping[str, str]) -> Labels:
    """The labels of a series."""
    return frozenset((label, text) for label, text in labels.items() if label != "__name__")


def check_direct(checks: Checks, direct: Direct) -> None:
    """What this script saw in its own scrapes."""
    print(f"          {direct.scrapes} scrapes by this script, the last with {direct.samples} samples")
    checks.say(
        "the series of processes, remotes, networks and ports add up to all",
        f"{direct.compared} sums, {len(direct.unequal)} differ{some(direct.unequal)}",
        holds=direct.compared > 0 and not direct.unequal,
    )
    checks.say(
        "no counter falls",
        f"{len(direct.seen)} series, {len(direct.fallen)} fell{some(direct.fallen)}",
        holds=bool(direct.seen) and not direct.fallen,
    )
    checks.say(
        "no series comes twice", f"{len(direct.doubled)}{some(direct.doubled)}", holds=not direct.doubled
    )
    print(f"          counters whose series went: {len(direct.gone)}{some(sorted(direct.gone))}")


def scrape_for(seconds: float, direct: Direct, short_lived: list[str]) -> None:
    """Scrape every second, and each time have a program run that soon ends, and a packet dropped."""
    client = Client()
    nobody = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        direct.add(client.get(METRICS).decode())
        if short_lived:
            subprocess.run(short_lived, capture_output=True, check=False, stdin=subprocess.DEVNULL)
            nobody.sendto(b"n", (HOST, 9))
        time.sleep(min(1.0, left))


def main() -> int:
    """Let traffic flow, and check what Prometheus and this script got."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=int, default=120, help="of traffic")
    options = parser.parse_args()
    for program in ("prometheus", "promtool", "iperf3", "curl"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed")
    own_namespace()
    checks, direct = Checks(), Direct()
    with contextlib.ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="bench-prometheus")))
        _, ours, theirs = ends.enter_context(connected())
        ends.enter_context(serving(*TOP))
        source = ends.enter_context(prometheus(folder))
        print(f"{options.seconds} s of traffic, {os.cpu_count()} CPUs, {' '.join(TOP)}", flush=True)
        quiet_s = 2.0 * SCRAPES_EVERY_S
        scrape_for(quiet_s, direct, [])
        began, before = time.time(), device_bytes()
        with loaded(ours, theirs, folder):
            scrape_for(options.seconds, direct, ["curl", "-s", f"http://{B}/file?short"])
            busy = time.time()
        scrape_for(quiet_s, direct, [])
        ended, after = time.time(), device_bytes()
        print(f"\nAfter {options.seconds} s")
        check_scrapes(checks, source, began, ended)
        check_formats(checks, Client())
        check_bytes(checks, source, ended, {name: after[name] - before[name] for name in before})
        check_quantiles(checks, source, busy)
        check_direct(checks, direct)
    print(f"\n{'FAILED: ' + '; '.join(checks.failed) if checks.failed else 'ok: all checks hold'}")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    handle_signals()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
