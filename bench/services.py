# SPDX-License-Identifier: Apache-2.0
"""What the services lens costs: `sudo .venv/bin/python bench/services.py [redis nginx price] [--quick]`.

`redis` and `nginx`: requests a second of redis-benchmark and of wrk, which saturate two CPUs with their servers, while
`nettop --table --view services -d` runs, as a share of those without it. Turns with and without stand next to each
other, in either order: nine pairs. Beside them, in pairs of their own, empty programs at the same hooks. `price`:
nanoseconds a run of each program under both loads, and of empty programs at the same hooks, by the kernel's statistics.
"""

import argparse
import contextlib
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bpf_stats import statistics_on
from measure import NETTOP, Figure, report
from packet_events import TRACING, Hooked
from sockets import own_namespace

from nettop.kernel.program import Loader, ProgramText
from nettop.probes.services.probe import make_probe
from nettop.probes.services.programs import FALLBACKS

PAIRS, TURN_S = 9, 3.0
KEPT = 0.97
"""The least share of requests a second that is left."""
PRICE_NS = 100.0
"""What a run may take beside that of an empty program."""
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
    """A server, a generator that returns its requests a second over some seconds, and what both are called."""

    title: str
    served: Callable[[], AbstractContextManager[None]]
    requests_per_s: Callable[[float], float]


@contextlib.contextmanager
def running(port: int, *command: str) -> Iterator[None]:
    """A server, once it listens."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            listening = ("ss", "-Hltn", f"sport = :{port}")
            while not subprocess.run(listening, capture_output=True, check=True).stdout:
                if server.poll() is not None:
                    raise SystemExit(f"{command[0]} ended with {server.returncode}")
                time.sleep(0.01)
            yield
        finally:
            server.terminate()


@contextlib.contextmanager
def redis() -> Iterator[None]:
    """A Redis that keeps nothing on disk."""
    with running(REDIS, "redis-server", "--port", str(REDIS), "--save", "", "--appendonly", "no"):
        yield


@contextlib.contextmanager
def nginx() -> Iterator[None]:
    """One process of nginx, with one small file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        Path(folder, "small").write_bytes(b"n" * 612)
        Path(folder, "conf").write_text(CONFIGURATION.format(folder=folder, port=NGINX))
        with running(NGINX, "nginx", "-e", f"{folder}/errors", "-c", f"{folder}/conf"):
            yield


def redis_per_s(seconds: float) -> float:
    """Requests a second of redis-benchmark, which takes a number of requests: about so many seconds' worth."""
    words = ["redis-benchmark", "-p", str(REDIS), "-c", str(CLIENTS), "-t", "get", "--csv"]
    count = round(80_000 * seconds)
    text = subprocess.run([*words, "-n", str(count)], capture_output=True, text=True, check=True).stdout
    return float(text.splitlines()[-1].split('","')[1].strip('"'))


def wrk_per_s(seconds: float) -> float:
    """Requests a second of wrk."""
    words = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{max(1, round(seconds))}s", f"http://127.0.0.1:{NGINX}/small"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec: +([\d.]+)", text)
    assert rate, text
    return float(rate[1])


LOADS = {
    "redis": Load("redis-benchmark", redis, redis_per_s),
    "nginx": Load("wrk and nginx", nginx, wrk_per_s),
}

# --- what is switched on and off ------------------------------------------------------------------------------


@contextlib.contextmanager
def lens() -> Iterator[None]:
    """The whole of nettop with this lens, from its first output on."""
    with subprocess.Popen([NETTOP, *VIEW], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        # Nobody reads the rest: the pipe's buffer holds what comes in a turn.
        try:
            yield
        finally:
            process.terminate()
            process.stdout.read()


def best_hooks() -> tuple[str, ...]:
    """The programs of the mechanism that this kernel offers."""
    with contextlib.closing(make_probe()) as source:
        source.start()
        name = source.read(time.monotonic_ns()).hooks[0].mechanism
    return next(mechanism.programs for mechanism in FALLBACKS.mechanisms if mechanism.name == name)


@contextlib.contextmanager
def empty() -> Iterator[Hooked]:
    """Empty programs at the same hooks, loaded."""
    names = best_hooks()
    header = "".join(f"int {name.partition('@')[0]}(u64 *ctx) {{ return 0; }}\n" for name in names)
    text = ProgramText((), header, (), dict.fromkeys(names, TRACING))
    with contextlib.closing(Loader().load(text)) as program:
        yield Hooked(program, names)


@contextlib.contextmanager
def attached(hooked: Hooked) -> Iterator[None]:
    """Programs, attached for a while."""
    hooked.on()
    try:
        yield
    finally:
        hooked.off()


# --- parts ----------------------------------------------------------------------------------------------------


def others(load: Load, pairs: int, turn_s: float) -> None:
    """What is left of the requests a second."""
    with load.served(), empty() as hooked:
        load.requests_per_s(turn_s / 3)
        figures = []
        switches: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "nettop": lens,
            "empty programs": lambda: attached(hooked),
            "nothing": contextlib.nullcontext,
        }
        for name, switched in switches.items():
            ratios = sorted(ratio(load, switched, turn_s, turn % 2 == 0) for turn in range(pairs))
            bound = KEPT if switched is lens else None
            span = f"from {ratios[0]:.3f} to {ratios[-1]:.3f}"
            figures.append(
                Figure(f"with {name} ÷ without, {span}", statistics.median(ratios), "", bound, at_least=True)
            )
    report(f"{load.title}: requests a second, {pairs} pairs of {turn_s:g} s", figures)


def ratio(
    load: Load, switched: Callable[[], AbstractContextManager[None]], turn_s: float, on_first: bool
) -> float:
    """Requests a second with it ÷ without."""
    rates = {}
    for is_on in (on_first, not on_first):
        with switched() if is_on else contextlib.nullcontext():
            rates[is_on] = load.requests_per_s(turn_s)
    return rates[True] / rates[False]


def price(turn_s: float) -> None:
    """Nanoseconds a run of each program, beside the empty one at the same hook."""
    for load in LOADS.values():
        with load.served(), empty() as hooked, statistics_on():
            with attached(hooked):
                load.requests_per_s(turn_s)
            nothing = {name: ns / max(count, 1) for name, (count, ns) in hooked.program.runs().items()}
            with contextlib.closing(make_probe()) as source:
                source.start()
                load.requests_per_s(turn_s)
                runs = dict(source.programs())
        figures = []
        total_count, total_ns, total_nothing = 0, 0.0, 0.0
        for name, of_nothing in nothing.items():
            count, ns = runs[name]
            total_count, total_ns, total_nothing = (
                total_count + count,
                total_ns + ns,
                total_nothing + count * of_nothing,
            )
            what = f"{name}, {count:,} runs of {ns / max(count, 1):.0f}; empty: {of_nothing:.0f}"
            figures.append(Figure(what, ns / max(count, 1) - of_nothing, "ns"))
        beside = (total_ns - total_nothing) / total_count
        figures.append(Figure("all of them, beside empty programs", beside, "ns", PRICE_NS))
        report(
            f"{load.title}: a run of each program beside an empty one, two clock readings in both", figures
        )


def main() -> None:
    """Runs all parts, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", choices=[[], *LOADS, "price"], help="default: all")
    parser.add_argument("--quick", action="store_true", help="short: proves that the bench works")
    options = parser.parse_args()
    own_namespace()
    for name in options.parts or (*LOADS, "price"):
        if name == "price":
            price(1 if options.quick else TURN_S)
        else:
            others(LOADS[name], 1 if options.quick else PAIRS, 1 if options.quick else TURN_S)


if __name__ == "__main__":
    main()
