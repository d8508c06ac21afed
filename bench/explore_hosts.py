# SPDX-License-Identifier: Apache-2.0
"""Interfaces, namespaces, sockets and processes that come, go, are renamed and reused, while nettop counts.

At every step what the connections and the bandwidth lens have counted is held against what the processes moved and what
the kernel's own counters of the devices say.
"""

import json
import random
import select
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from tests.kernel import traffic
from tests.kernel.command import JSON, Running
from tests.kernel.lab import Lab, Namespace, NotInTimeError, Worker, until
from tests.kernel.traffic import Call

STEPS = 25
NAMES = ("wan0", "lan0", "lan1", "dmz")
"""Few, so that names come again."""
SETTLES_S = 40.0
"""Within which the last acknowledgements have come, and nettop has walked over the sockets that no process holds: on a
busy machine it does that seldom."""
INDEXES = (61, 62, 63, 64)
MOVED = ("bytes_sent", "bytes_received")
CARRIED = ("packets_sent", "bytes_sent", "packets_received", "bytes_received")
_STATS = {"packets_sent": ("tx", "packets"), "bytes_sent": ("tx", "bytes"),
          "packets_received": ("rx", "packets"), "bytes_received": ("rx", "bytes")}  # fmt: skip
LATER = ("--interval", "3600", "--deltas", "--follow-namespaces")

Device = tuple[int, str]
"""A network namespace's number, and a name in it."""


@dataclass
class Link:
    """A veth pair between two hosts: the name at each, and the third byte of its addresses."""

    ends: tuple["Host", "Host"]
    names: list[str]
    number: int


@dataclass
class Host:
    """A network namespace with two processes, and what these have moved there since nettop has seen it."""

    space: Namespace
    workers: tuple[Worker, Worker]
    moved: Counter[str] = field(default_factory=Counter)
    links: list[Link] = field(default_factory=list)


class Watched:
    """A view that runs, refreshed on demand, and the sums of what its intervals have added."""

    def __init__(self, running: Running, key: tuple[str, ...], columns: tuple[str, ...]) -> None:
        self.running, self._key, self._columns = running, key, columns
        self._read, self._times = 0, set[str]()
        self._newest: dict[tuple[object, ...], str] = {}
        self.sums: dict[tuple[object, ...], Counter[str]] = {}
        """What was added, by the values of the key."""

    def refresh(self) -> None:
        """Have it read all that has happened by now, and print it."""
        for _ in range(2):  # what the second one begins ends the first
            before = len(self._times)
            with suppress(BrokenPipeError):  # it has ended, which is told below
                self.running.refresh()
            until(lambda before=before: self._ended() or self._take_in() > before, "a refresh", 60)
        if self._ended():
            raise NotInTimeError(f"nettop ended: {self.running.errors()}")

    def lists(self, keys: set[Device]) -> bool:
        """Return whether the last refresh had rows for all of them."""
        newest = max(self._times)
        return all(self._newest.get(key) == newest for key in keys)

    def _ended(self) -> bool:
        return self.running.process.poll() is not None

    def _take_in(self) -> int:
        """Add up the whole lines that are new; returns the number of refreshes so far."""
        with open(self.running.output, "rb") as file:
            file.seek(self._read)
            lines, _, _ = file.read().rpartition(b"\n")
        self._read += len(lines) + bool(lines)
        for row in map(json.loads, lines.splitlines()):
            if row.get("type") != "lost":
                self._times.add(row["time"])
                key = tuple(row[name] for name in self._key)
                self._newest[key] = row["time"]
                self.sums.setdefault(key, Counter()).update({name: row[name] or 0 for name in self._columns})
        return len(self._times)


class World:
    """Hosts, links between them, and the two views that watch."""

    def __init__(
        self, lab: Lab, chance: random.Random, home: Namespace, sockets: Running, devices: Running
    ) -> None:
        self._lab, self._chance = lab, chance
        self.sockets = Watched(sockets, ("netns",), MOVED)
        self.devices = Watched(devices, ("netns", "interface"), CARRIED)
        self.hosts: list[Host] = []
        self.done: list[str] = []
        self.faults: list[str] = []
        self._numbers, self._names = count(1), count()
        self._base: dict[Device, Counter[str]] = {}
        """What the kernel had counted of a device, less what nettop had, when it was first watched."""
        self._settle(home)

    # --- what may happen -------------------------------------------------------------------------------------

    def add_host(self) -> None:
        """Add a namespace with two processes in it."""
        self._settle(self._lab.namespace())
        self.watch_now()

    def _settle(self, space: Namespace) -> None:
        space.sysctl("net.ipv6.conf.all.disable_ipv6", 1)  # nothing is sent that we do not send
        names = [f"host{next(self._names)}" for _ in range(2)]
        workers = self._lab.worker(space, names[0]), self._lab.worker(space, names[1])
        # Under its number another namespace may have moved something that is gone.
        self.hosts.append(Host(space, workers, self._shown(space)))
        self.note(f"host {space.name}")

    def remove_host(self) -> None:
        """Kill a host's processes, with their connections; remove its devices and its name."""
        if len(self.hosts) < 3:
            return
        host = self._chance.choice(self.hosts[1:])
        self.note(f"remove host {host.space.name}")
        for link in tuple(host.links):
            self.unlink(link)
        for worker in host.workers:
            worker.end()
        self.check()
        self.hosts.remove(host)
        host.space.remove()

    def add_link(self) -> None:
        """Add a veth pair under names, and sometimes numbers, that others had before."""
        ends = self._chance.sample(self.hosts, 2)
        names = [self._free_name(host) for host in ends]
        if not all(names):
            return
        link = Link((ends[0], ends[1]), [str(name) for name in names], next(self._numbers))
        index = ["index", str(self._chance.choice(INDEXES))] if self._chance.random() < 0.5 else []
        peer = ["type", "veth", "peer", "name", link.names[1], "netns", ends[1].space.name]
        try:
            ends[0].space.ip("link", "add", link.names[0], *index, *peer)
        except RuntimeError:  # the number is taken
            return
        self.note(f"link {link.number}: {link.names} {index}")
        for side, host in enumerate(ends):
            host.links.append(link)
            host.space.ip("addr", "add", self._address(link, side) + "/24", "dev", link.names[side])
            host.space.ip("link", "set", link.names[side], "up", "gso_max_segs", "1")
        self.watch_now()

    def _free_name(self, host: Host) -> str | None:
        taken = {link.names[link.ends.index(host)] for link in host.links}
        return next((name for name in self._chance.sample(NAMES, len(NAMES)) if name not in taken), None)

    @staticmethod
    def _address(link: Link, side: int) -> str:
        return f"10.{90 + link.number // 250}.{link.number % 250}.{side + 1}"

    def remove_link(self) -> None:
        """Move something over a veth pair, and remove the pair before anybody reads what it carried."""
        if link := self._some_link():
            self._talk(link)
            self.unlink(link)

    def unlink(self, link: Link) -> None:
        """Take a veth pair away."""
        self.note(f"unlink {link.number}")
        for host, name in zip(link.ends, link.names, strict=True):
            host.space.ip("link", "set", name, "down")  # nothing passes between the last look and the removal
        last = {self._device(link, side): self._counted(link, side) for side in range(2)}
        link.ends[0].space.ip("link", "del", link.names[0])
        for host in link.ends:
            host.links.remove(link)
        self.check()
        self.find(
            f"{device} was removed: {fault}"
            for device, counted in last.items()
            if device[0] == self.hosts[0].space.inode  # elsewhere the counters went with the device
            for fault in self._difference(device, counted)
        )
        for device in last:
            del self._base[device]

    def rename(self) -> None:
        """Give a device another name."""
        link = self._some_link()
        if link is None:
            return
        side = self._chance.randrange(2)
        name = self._free_name(link.ends[side])
        if name is None:
            return
        self.check()
        space, old = link.ends[side].space, link.names[side]
        self.note(f"rename {old} to {name} on {space.name}")
        del self._base[self._device(link, side)]
        space.ip("link", "set", old, "down")
        space.ip("link", "set", old, "name", name)
        space.ip("link", "set", name, "up")
        link.names[side] = name
        self.watch_now()

    def talk(self) -> None:
        """Move something over a link by a TCP connection."""
        if link := self._some_link():
            self._talk(link)

    def _talk(self, link: Link) -> None:
        here, there = link.ends if self._chance.random() < 0.5 else link.ends[::-1]
        side = link.ends.index(there)
        up, down = self._chance.randint(1, 200_000), self._chance.randint(1, 200_000)
        self.note(f"talk over {link.number}: {up} up, {down} down")
        client, server = self._chance.choice(here.workers), self._chance.choice(there.workers)
        self._tcp(client, server, self._address(link, side), up, down)
        self._count(here, up, down)
        self._count(there, down, up)

    def talk_within(self) -> None:
        """Move something over loopback by a TCP connection."""
        host = self._chance.choice(self.hosts)
        up, down = self._chance.randint(1, 200_000), self._chance.randint(1, 200_000)
        self.note(f"talk within {host.space.name}: {up} up, {down} down")
        self._tcp(*host.workers, "127.0.0.1", up, down)
        self._count(host, up + down, up + down)

    def _tcp(self, client: Worker, server: Worker, address: str, up: int, down: int) -> None:
        """Move so much over a connection; then close it at neither end, one end, or both."""
        made = next(self._names)
        port = server.call(traffic.listen, f"listener{made}", address)
        client.call(traffic.connect, made, Call((address, port)))
        server.call(traffic.accept, f"listener{made}", made)
        client.start(traffic.exchange, {made: up}, {made: down})
        server.call(traffic.exchange, {made: down}, {made: up})
        client.result()
        for worker in (client, server):
            worker.call(traffic.acknowledged, [made])
        if self._chance.random() < 0.5:
            server.call(traffic.close, [f"listener{made}"])
        for worker in self._chance.choice(((), (client,), (server,), (client, server), (server, client))):
            worker.call(traffic.close, [made])

    def datagrams(self) -> None:
        """Send datagrams over loopback, from a socket that may close before anybody reads what it sent."""
        host = self._chance.choice(self.hosts)
        sender, receiver = host.workers
        size, number, made = self._chance.randint(1, 1400), self._chance.randint(1, 50), next(self._names)
        self.note(f"{number} datagrams of {size} within {host.space.name}")
        port = receiver.call(traffic.udp, made, "127.0.0.1")
        sender.call(traffic.udp, made, "127.0.0.1", ("127.0.0.1", port))
        for _ in range(number):
            sender.call(traffic.send, {made: size})
            receiver.call(receive_datagram, made)
        for worker in self._chance.choice(((), (sender,), (receiver, sender))):
            worker.call(traffic.close, [made])
        self._count(host, number * size, number * size)

    def replace_process(self) -> None:
        """Kill a process with what it has open, and start another one in its place."""
        host = self._chance.choice(self.hosts)
        side = self._chance.randrange(2)
        self.note(f"kill {host.workers[side].pid} in {host.space.name}")
        host.workers[side].end()
        new = self._lab.worker(host.space, f"host{next(self._names)}")
        host.workers = (new, host.workers[1]) if side == 0 else (host.workers[0], new)

    # --- what has to be true ---------------------------------------------------------------------------------

    def note(self, what: str) -> None:
        """Remember a step, for the report of a fault."""
        self.done.append(what)

    def find(self, faults: Iterable[str]) -> None:
        """Remember faults, with how much had been done by then."""
        self.faults += [f"after {len(self.done)} ({self.done[-1]}): {fault}" for fault in faults]

    def check(self) -> None:
        """Read, and hold what nettop has counted against what is true."""
        with suppress(NotInTimeError):
            until(lambda: not self._faults(), "sums that are right", SETTLES_S)
            return
        self.find(self._faults())
        for host in self.hosts:  # each fault is told once
            host.moved = self._shown(host.space)
        for device, counted in self._devices():
            self._base[device] = self._uncounted(device, counted)

    def _faults(self) -> list[str]:
        """Read; return what of all that nettop has counted is not true."""
        self.sockets.refresh()
        self.devices.refresh()
        of_hosts = [
            f"{name} of {host.space.name}: {self._shown(host.space)[name]} shown, {host.moved[name]} moved"
            for host in self.hosts
            for name in MOVED
            if self._shown(host.space)[name] != host.moved[name]
        ]
        return of_hosts + [
            fault for device, counted in self._devices() for fault in self._difference(device, counted)
        ]

    def _shown(self, space: Namespace) -> Counter[str]:
        return Counter(self.sockets.sums.get((space.inode,), {}))

    def _devices(self) -> list[tuple[Device, Counter[str]]]:
        """Return each device, and what the kernel has counted of it."""
        links = {id(link): link for host in self.hosts for link in host.links}.values()
        return [(self._device(link, side), self._counted(link, side)) for link in links for side in range(2)]

    def watch_now(self) -> None:
        """Read, so that all devices are attached to; from now on all that they carry has to be counted."""
        wanted = {device for device, _ in self._devices()}
        until(lambda: self.devices.refresh() or self.devices.lists(wanted), f"rows for {wanted}")
        self.sockets.refresh()
        for device, counted in self._devices():
            if device not in self._base:
                self._base[device] = self._uncounted(device, counted)

    def _uncounted(self, device: Device, counted: Counter[str]) -> Counter[str]:
        shown = self.devices.sums.get(device, Counter())
        return Counter({name: counted[name] - shown[name] for name in CARRIED})

    def _difference(self, device: Device, counted: Counter[str]) -> list[str]:
        now = self._uncounted(device, counted)
        return [
            f"{name} of {device}: {base - now[name]:+} shown in {counted[name]}"
            for name, base in self._base[device].items()
            if now[name] != base
        ]

    def _device(self, link: Link, side: int) -> Device:
        return link.ends[side].space.inode, link.names[side]

    def _counted(self, link: Link, side: int) -> Counter[str]:
        """Return what the kernel has counted of a device."""
        shown = link.ends[side].space.ip("-s", "-j", "link", "show", link.names[side])
        stats = json.loads(shown)[0]["stats64"]
        return Counter({name: stats[way][unit] for name, (way, unit) in _STATS.items()})

    def _some_link(self) -> Link | None:
        links = [link for host in self.hosts for link in host.links]
        return self._chance.choice(links) if links else None

    @staticmethod
    def _count(host: Host, sent: int, received: int) -> None:
        host.moved.update({"bytes_sent": sent, "bytes_received": received})


def receive_datagram(memory: traffic.Memory, name: object) -> None:
    """Read one datagram."""
    traffic.ready([memory[name]])
    memory[name].recv(65536)


def churn(memory: traffic.Memory) -> None:
    """Connect and close some hundred times a second, for as long as the process lives."""
    while True:
        traffic.storm(memory, "127.0.0.1", 0.005)
        select.select([], [], [], 0.05)


def explore_hosts(chance: random.Random) -> list[str]:
    """Let a world change at random, beside a storm of connections; return what nettop counted wrongly."""
    with Lab() as lab:
        home = lab.namespace()
        around = (
            "ip",
            "netns",
            "exec",
            home.name,
        )  # only there does it count packets; elsewhere it reads counters
        with (
            Running(*JSON, *LATER, "--all") as sockets,
            Running(*JSON, *LATER, "--view", "bandwidth", around=around) as devices,
        ):
            return explored(World(lab, chance, home, sockets, devices), lab, chance)


def explored(world: "World", lab: Lab, chance: random.Random) -> list[str]:
    """Let a world live, and end what watches it; returns what was counted wrongly."""
    try:
        live(world, lab, chance)
    except NotInTimeError as error:
        world.faults.append(str(error))
    for watched in (world.sockets, world.devices):
        status = watched.running.end()
        errors = watched.running.complaints()
        if status or "Traceback" in errors:
            world.faults.append(f"exit status {status}: {errors[-3000:]}")
    history = "\n    ".join(
        ["what was done:", *(f"{number} {what}" for number, what in enumerate(world.done, 1))]
    )
    return [*world.faults, history] if world.faults else []


def live(world: World, lab: Lab, chance: random.Random) -> None:
    """Build a small world, and let things happen in it."""
    storm = lab.worker(lab.namespace(), "storm")
    for _ in range(3):
        world.add_host()
    storm.start(churn)
    actions = (
        world.add_link, world.add_link, world.remove_link, world.rename, world.talk, world.talk, world.talk_within,
        world.datagrams, world.replace_process, world.add_host, world.remove_host,
    )  # fmt: skip
    for _ in range(STEPS):
        for action in chance.choices(actions, k=chance.randint(1, 3)):
            action()
        world.check()
