# SPDX-License-Identifier: Apache-2.0
"""The price of each lens for Redis and nginx: requests per second, and the runs of the services lens's programs."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack

from bpf_stats import Runs, statistics_on
from cpu_cost import EMPTY, PEERS, Switch, all_switches, empty_switch, lens_view
from harness import NOTHING, OURS, Sample, Scale, Target, Turns, benchmark
from hooked import Hooked, empty_text
from programs import Process, readable_folder, run, running, until
from sockets import own_namespace

from nettop.kernel.bpf.program import Loader
from nettop.probes.services.probe import make_probe
from nettop.probes.services.programs import FALLBACKS

TURN_S, QUICK_S = 0.6, 0.1
REDIS, NGINX = 7777, 8081
CLIENTS = 50
CONFIGURATION = """
worker_processes 1; pid {folder}/pid; error_log {folder}/errors; daemon off; user root;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 100000000; root {folder};
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port} backlog=4096; }} }}
"""


# --- loads ----------------------------------------------------------------------------------------------------


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


LOADS: Mapping[str, Callable[[float], float]] = {"redis": redis_per_s, "nginx": wrk_per_s}


def of_loads(switch: Switch, seconds: float = TURN_S) -> Sample:
    """Return the requests per second of each load with the switch on."""
    with switch():
        return {name: per_s(seconds) for name, per_s in LOADS.items()}


@contextlib.contextmanager
def served() -> Iterator[None]:
    """Run both servers, in a network namespace of their own."""
    own_namespace()
    with redis(), nginx():
        of_loads(contextlib.nullcontext, QUICK_S)
        yield


def best_hooks() -> tuple[str, ...]:
    """Return the programs of the mechanism in use on this kernel."""
    with contextlib.closing(make_probe()) as source:
        source.start()
        name = source.read(time.monotonic_ns()).hooks[0].mechanism
    return next(mechanism.programs for mechanism in FALLBACKS.mechanisms if mechanism.name == name)


# --- benchmarks -----------------------------------------------------------------------------------------------

UNITS = dict.fromkeys(LOADS, "requests/s")
NEEDS = ("redis-server", "redis-benchmark", "nginx", "wrk", "ss")


@benchmark(
    "requests", "Requests per second beside a lens", UNITS, rounds=3, needs=NEEDS, base=NOTHING, peers=PEERS,
    more_is_better=tuple(LOADS),
)  # fmt: skip
def requests(scale: Scale) -> Iterator[Turns]:
    """redis-benchmark, and wrk with one nginx process, which saturate two CPUs with their servers, relative to the
    adjacent turn without any tool; all of nettop's own work takes part.
    """
    with served(), all_switches(scale) as switches:
        seconds = scale.pick(TURN_S, QUICK_S)
        yield {name: lambda switch=switch: of_loads(switch, seconds) for name, switch in switches.items()}


@benchmark(
    "services", "Requests per second, services lens ÷ empty programs", UNITS, rounds=11, needs=NEEDS, base=EMPTY,
    more_is_better=tuple(LOADS), targets=tuple(Target(0.97, load, at_least=True) for load in LOADS),
)  # fmt: skip
def services(scale: Scale) -> Iterator[Turns]:
    """The same loads, relative to the adjacent turn with empty programs at the same hooks."""
    with served(), empty_switch() as empty:
        seconds, lens = scale.pick(TURN_S, QUICK_S), lens_view("services")
        yield {OURS: lambda: of_loads(lens, seconds), EMPTY: lambda: of_loads(empty, seconds)}


@benchmark(
    "services_run",
    "A run of the services lens's programs above an empty one",
    "ns",
    rounds=3,
    needs=NEEDS,
)
def services_run(scale: Scale) -> Iterator[Turns]:
    """By the kernel's statistics of BPF programs, which include two clock readings in both."""

    def above_empty(per_s: Callable[[float], float]) -> float:
        seconds = scale.pick(TURN_S, QUICK_S)
        with ExitStack() as ends:
            names = best_hooks()
            hooked = Hooked(ends.enter_context(contextlib.closing(Loader().load(empty_text(names)))), names)
            with hooked.attached():
                per_s(seconds)
            nothing = {name: runs.ns_each for name, runs in hooked.runs().items()}
            source = ends.enter_context(contextlib.closing(make_probe()))
            source.start()
            per_s(seconds)
            runs = {name: Runs(*counted) for name, counted in source.programs().items()}
        above = sum(runs[name].ns - runs[name].count * of_nothing for name, of_nothing in nothing.items())
        return above / sum(runs[name].count for name in nothing)

    with served(), statistics_on():
        yield {name: lambda per_s=per_s: above_empty(per_s) for name, per_s in LOADS.items()}
