# SPDX-License-Identifier: Apache-2.0
"""Measure several hosts at once: `sudo .venv/bin/python bench/hosts.py [stream view] [--seconds 60] [--quick]`.

`stream`: the bytes that ssh carries for each host and second, of connections that exchange requests and responses of
random sizes a few times a second. An end is a row, as on a host that has only one of them; the sockets of other
programs of this machine are rows too. `view`: the CPU that nettop
takes here to read and merge the streams, and the CPU that recording takes on the host.
"""

import contextlib
import os
import resource
import sys
import time
from argparse import Namespace as Options
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import QUICK, Figure, Report, arguments, judge
from recording import talking
from sockets import own_namespace

from nettop.hosts.hosts import Hosts
from nettop.hosts.source import HostsSource
from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.recording.chunks import What
from nettop.recording.reader import RecordedFile
from nettop.snapshots import lenses, several_hosts
from nettop.snapshots.connections import LENS
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Frame

NETTOP = str(Path(sys.executable).with_name("nettop"))
CONNECTIONS = 1_000
EXCHANGES = 3
"""Exchanges of each connection in a second."""
MOST_BYTES = 20_000
"""Bytes per second and host that a slow uplink still carries."""


def command(_: str, recorded: Sequence[str]) -> list[str]:
    """Return the command that ssh would run on a host."""
    return [NETTOP, "record", "-", "--interval", "1", "--lenses", ",".join(recorded)]


@dataclass
class Watched:
    """What was sent and used while nettop was watched for some seconds."""

    seconds: float
    cpu_s: float
    remote_cpu_s: float
    sent: int
    chunks: Counter[str]
    rows: int


def watch(count: int, seconds: int) -> Watched:
    """Show the connections of so many hosts, all of them this one, once a second."""
    names = [f"host{number}" for number in range(count)]
    with several_hosts(), Hosts(names, command, 1.0) as hosts:
        lens = next(each for each in lenses() if each.id == LENS.id)
        source = HostsSource(hosts, lens)
        source.start()
        with contextlib.closing(source):
            attach(hosts, names)
            begun, began = cpu_s(), time.monotonic()
            sizes = {link.host: size_of(link.stream) for link in hosts._links.values()}
            remote = remote_cpu_s(hosts)
            rows = 0
            for number in range(1, seconds + 1):
                time.sleep(max(0.0, began + number - time.monotonic()))
                rows = show(lens, source)
            return Watched(
                time.monotonic() - began,
                cpu_s() - begun,
                remote_cpu_s(hosts) - remote,
                sum(size_of(link.stream) - sizes[link.host] for link in hosts._links.values()),
                chunks_of(hosts),
                rows,
            )


def attach(hosts: Hosts, names: Sequence[str]) -> None:
    """Wait until each host has sent a reading."""
    end = time.monotonic() + 120
    while len(hosts.newest(LENS.id)) < len(names):
        if hosts.lost(LENS.id) or time.monotonic() > end:
            raise RuntimeError(f"no readings: {hosts.lost(LENS.id)}")
        time.sleep(0.05)


def show(lens: Lens, source: HostsSource) -> int:
    """Read, and make what a screen shows; return the number of rows."""
    now = source.read(time.monotonic_ns())
    view = View(Frame(now, source.leap()[1]), screen_query(lens.main))
    view.total("bytes_sent_per_s", view.order)
    return len(view.now)


def size_of(stream: object) -> int:
    """Return the bytes that a stream has carried."""
    return os.fstat(stream._output).st_size  # type: ignore[attr-defined]


def cpu_s() -> float:
    """Return the CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def remote_cpu_s(hosts: Hosts) -> float:
    """Return the CPU time of the commands."""
    used = 0
    for link in hosts._links.values():
        assert link.stream is not None
        words = Path(f"/proc/{link.stream._process.pid}/stat").read_bytes().rpartition(b")")[2].split()
        used += int(words[11]) + int(words[12])
    return used / os.sysconf("SC_CLK_TCK")


def chunks_of(hosts: Hosts) -> Counter[str]:
    """Return the bytes of the last whole group of a stream, by what they are, and the number of its readings."""
    found: Counter[str] = Counter()
    stream = next(iter(hosts._links.values())).stream
    assert stream is not None
    file: RecordedFile = stream._file
    placed = file.groups[-1]
    for number, chunk in enumerate(file.chunks(-1)):
        lens = placed.group.lenses[chunk.lens]
        what = "first readings" if number < len(placed.group.lenses) else chunk.what.name.lower()
        found[f"{lens} {what}"] += chunk.file_bytes
        found["readings"] += chunk.what is What.READING and lens == LENS.id
    return found


def stream(watched: Watched) -> Report:
    """Report what one host sends."""
    readings = watched.chunks.pop("readings")
    each = watched.sent / watched.seconds
    return f"One host with {watched.rows:,} rows, {watched.seconds:.0f} s", [
        Figure("bytes that ssh carries for a host", each, "B/s", MOST_BYTES),
        Figure("bytes for a row", each / watched.rows, "B/s"),
        *(
            Figure(f"of a group, {name}, divided by its {readings} readings", size / readings, "B")
            for name, size in watched.chunks.most_common()
        ),
        Figure("CPU of nettop that records there", watched.remote_cpu_s / watched.seconds * 100, "%"),
        Figure("CPU of nettop that shows it", watched.cpu_s / watched.seconds * 100, "%"),
    ]


def view(one: Watched, several: Watched, count: int) -> Report:
    """Report what each more host takes here."""
    more = (several.cpu_s / several.seconds - one.cpu_s / one.seconds) / (count - 1)
    return f"{count} hosts with {several.rows:,} rows, {several.seconds:.0f} s", [
        Figure("CPU of nettop that shows them", several.cpu_s / several.seconds * 100, "%"),
        Figure("CPU for each more host", more * 100, "%"),
    ]


def reports(options: Options) -> Iterator[Report]:
    """Measure the chosen parts."""
    seconds, rows = (5, 100) if options.quick else (options.seconds, options.connections)
    with talking(rows, 1 / (rows / 2 * EXCHANGES)):
        one = watch(1, seconds)
        if "stream" in options.parts:
            yield stream(one)
        if "view" in options.parts:
            yield view(one, watch(options.hosts, seconds), options.hosts)


def main() -> int:
    """Run both parts, or the named one."""
    options = arguments(
        __doc__,
        ("stream", "view"),
        seconds=(60, "seconds to watch"),
        connections=(CONNECTIONS, "connections that exchange messages"),
        hosts=(3, "hosts in the second part"),
        quick=QUICK,
    )
    own_namespace()
    return judge(reports(options))


if __name__ == "__main__":
    sys.exit(main())
