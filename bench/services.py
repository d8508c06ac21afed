# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of the services lens: `sudo .venv/bin/python bench/services.py [redis nginx price] [--quick]`.

`redis` and `nginx`: requests per second of redis-benchmark and of wrk, which saturate two CPUs with their servers,
while `nettop --table --view services -d` runs, relative to those without it. Turns with and without are paired, in
alternating order: nine pairs. Empty programs at the same hooks are measured in pairs of their own. `price`:
nanoseconds per run of each program under both loads, and of empty programs at the same hooks, by the kernel's
statistics.
"""

import contextlib
import re
import statistics
import sys
import time
from argparse import Namespace as Options
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from bpf_stats import Runs, statistics_on
from hooked import Hooked, empty_text
from measure import QUICK, Figure, Report, arguments, at_least, in_pairs, judge
from programs import Process, printing, readable_folder, run, running, until
from sockets import own_namespace

from nettop.kernel.bpf.program import Loader
from nettop.probes.services.probe import make_probe
from nettop.probes.services.programs import FALLBACKS

PAIRS, TURN_S = 9, 3.0
RATE_LEAST = 0.97
"""Bound on requests per second with the lens ÷ without."""
PRICE_NS = 100.0
"""Bound on the cost of a run above that of an empty program."""
REDIS, NGINX = 7777, 8081
CLIENTS = 50
VIEW = ("--table", "--view", "services", "-d", "-t", "1")
CONFIGURATION = """
worker_processes 1; pid {folder}/pid; error_log {folder}/errors; daemon off; user root;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 100000000; root {folder};
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port} backlog=4096; }} }}
"""


# --- loads ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """A server, a generator that returns its requests per second over some seconds, and their title."""

    title: str
    served: Callable[[], AbstractContextManager[Process]]
    requests_per_s: Callable[[float], float]


@contextlib.contextmanager
def listening(port: int, *command: str) -> Iterator[Process]:
    """Run a server, and yield once it listens."""
    with running(*command) as process:
        until(lambda: run("ss", "-Hltn", f"sport = :{port}"), command[0])
        yield process


def redis() -> AbstractContextManager[Process]:
    """Run a Redis that stores nothing on disk."""
    return listening(REDIS, "redis-server", "--port", str(REDIS), "--save", "", "--appendonly", "no")


@contextlib.contextmanager
def nginx() -> Iterator[Process]:
    """Run one nginx process that serves one small file."""
    with readable_folder("nginx") as folder:
        (folder / "small").write_bytes(b"n" * 612)
        (folder / "conf").write_text(CONFIGURATION.format(folder=folder, port=NGINX))
        with listening(NGINX, "nginx", "-e", f"{folder}/errors", "-c", f"{folder}/conf") as process:
            yield process


def redis_per_s(seconds: float) -> float:
    """Return the requests per second of redis-benchmark, given enough requests for about `seconds`."""
    count = str(round(80_000 * seconds))
    text = run("redis-benchmark", "-p", f"{REDIS}", "-c", f"{CLIENTS}", "-t", "get", "--csv", "-n", count)
    return float(text.splitlines()[-1].split('","')[1].strip('"'))


def wrk_per_s(seconds: float) -> float:
    """Return the requests per second of wrk."""
    lasting = f"-d{max(1, round(seconds))}s"
    text = run("wrk", "-t1", f"-c{CLIENTS}", lasting, f"http://127.0.0.1:{NGINX}/small")
    rate = re.search(r"Requests/sec: +([\d.]+)", text)
    assert rate, text
    return float(rate[1])


LOADS = {
    "redis": Load("redis-benchmark", redis, redis_per_s),
    "nginx": Load("wrk and nginx", nginx, wrk_per_s),
}

# --- switches -------------------------------------------------------------------------------------------------


def best_hooks() -> tuple[str, ...]:
    """Return the programs of the mechanism in use on this kernel."""
    with contextlib.closing(make_probe()) as source:
        source.start()
        name = source.read(time.monotonic_ns()).hooks[0].mechanism
    return next(mechanism.programs for mechanism in FALLBACKS.mechanisms if mechanism.name == name)


@contextlib.contextmanager
def empty() -> Iterator[Hooked]:
    """Load empty programs for the same hooks."""
    names = best_hooks()
    with contextlib.closing(Loader().load(empty_text(names))) as program:
        yield Hooked(program, names)


# --- parts ----------------------------------------------------------------------------------------------------


def others(load: Load, pairs: int, turn_s: float) -> Report:
    """Measure the requests per second with each switch on ÷ without."""

    def rate(switch: Callable[[], AbstractContextManager[object]]) -> float:
        with switch():
            return load.requests_per_s(turn_s)

    figures = []
    with load.served(), empty() as hooked:
        load.requests_per_s(turn_s / 3)
        switches = {
            "nettop": lambda: printing(*VIEW),
            "empty programs": hooked.attached,
            "nothing": nullcontext,
        }
        for name, switch in switches.items():
            taken = in_pairs(pairs, rate, nullcontext, {name: switch})[name]
            ratios = sorted(with_it / without for without, with_it in taken)
            bound = RATE_LEAST if name == "nettop" else None
            what = f"with {name} ÷ without, from {ratios[0]:.3f} to {ratios[-1]:.3f}"
            figures.append(at_least(what, statistics.median(ratios), "", bound))
    return f"{load.title}: requests per second, {pairs} pairs of {turn_s:g} s", figures


def price(load: Load, turn_s: float) -> Report:
    """Measure nanoseconds per run of each program above the empty one at the same hook."""
    with load.served(), empty() as hooked, statistics_on():
        with hooked.attached():
            load.requests_per_s(turn_s)
        nothing = {name: runs.ns_each for name, runs in hooked.runs().items()}
        with contextlib.closing(make_probe()) as source:
            source.start()
            load.requests_per_s(turn_s)
            runs = {name: Runs(*counted) for name, counted in source.programs().items()}
    figures = [
        Figure(
            f"{name}, {runs[name].count:,} runs of {runs[name].ns_each:.0f}; empty: {of_nothing:.0f}",
            runs[name].ns_each - of_nothing,
            "ns",
        )
        for name, of_nothing in nothing.items()
    ]
    above = sum(runs[name].ns - runs[name].count * of_nothing for name, of_nothing in nothing.items())
    count = sum(runs[name].count for name in nothing)
    figures.append(Figure("all programs, above empty ones", above / count, "ns", PRICE_NS))
    return f"{load.title}: a run of each program above an empty one, two clock readings in both", figures


def reports(options: Options) -> Iterator[Report]:
    """Run the chosen parts."""
    pairs, turn_s = (1, 1.0) if options.quick else (PAIRS, TURN_S)
    for name in options.parts:
        if name == "price":
            yield from (price(load, turn_s) for load in LOADS.values())
        else:
            yield others(LOADS[name], pairs, turn_s)


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(__doc__, (*LOADS, "price"), quick=QUICK)
    own_namespace()
    return judge(reports(options))


if __name__ == "__main__":
    sys.exit(main())
