# SPDX-License-Identifier: Apache-2.0
"""Change interfaces, namespaces, sockets and processes at random while nettop counts.

They are added, removed, renamed and reused. At every step the counts of the connections and bandwidth lenses are
compared with what the processes sent and received and with the kernel's own counters of the devices.
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
"""Few names, so that they are reused."""
SETTLES_S = 40.0
"""Deadline for the last acknowledgements, and for nettop's walk over sockets that no process holds, which is rare on a
busy machine."""
INDEXES = (61, 62, 63, 64)
MOVED = ("bytes_sent", "bytes_received")
CARRIED = ("packets_sent", "bytes_sent", "packets_received", "bytes_received")
_STATS = {"packets_sent": ("tx", "packets"), "bytes_sent": ("tx", "bytes"),
          "packets_received": ("rx", "packets"), "bytes_received": ("rx", "bytes")}  # fmt: skip
LATER = ("--interval", "3600", "--deltas", "--follow-namespaces")

Device = tuple[int, str]
"""Inode number of a network namespace, and a device name in it."""


@dataclass
class Link:
    """A veth pair between two hosts: its name on each, and the number in its addresses."""

    ends: tuple["Host", "Host"]
    names: list[str]
    number: int


@dataclass
class Host:
    """A network namespace with two processes, and what they sent and received since nettop first saw it."""

    space: Namespace
    workers: tuple[Worker, Worker]
    moved: Counter[str] = field(default_factory=Counter)
    links: list[Link] = field(default_factory=list)


class Watched:
    """A running view, refreshed on demand, and the sums of its per-interval values."""

    def __init__(self, running: Running, key: tuple[str, ...], columns: tuple[str, ...]) -> None:
        self.running, self._key, self._columns = running, key, columns
        self._read, self._times = 0, set[str]()
        self._newest: dict[tuple[object, ...], str] = {}
        self.sums: dict[tuple[object, ...], Counter[str]] = {}
        """Sums by the values of the key."""

    def refresh(self) -> None:
        """Have the view read and print all that has happened so far."""
        for _ in range(2):  # the first refresh is complete when the second begins
            before = len(self._times)
            with suppress(BrokenPipeError):  # nettop has exited, which is reported below
                self.running.refresh()
            until(lambda before=before: self._ended() or self._take_in() > before, "a refresh", 60)
        if self._ended():
            raise NotInTimeError(f"nettop ended: {self.running.errors()}")

    def lists(self, keys: set[Device]) -> bool:
        """Return whether the last refresh had rows for all keys."""
        newest = max(self._times)
        return all(self._newest.get(key) == newest for key in keys)

    def _ended(self) -> bool:
        return self.running.process.poll() is not None

    def _take_in(self) -> int:
        """Sum the new complete lines; return the number of refreshes so far."""
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
    """Hosts, links between them, and the two views that watch them."""

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
        """The kernel's counts of a device less nettop's, when the device was first watched."""
        self._settle(home)

    # --- actions ---------------------------------------------------------------------------------------------

    def add_host(self) -> None:
        """Add a namespace with two processes in it."""
        self._settle(self._lab.namespace())
        self.watch_now()

    def _settle(self, space: Namespace) -> None:
        space.sysctl("net.ipv6.conf.all.disable_ipv6", 1)  # no traffic but our own
        names = [f"host{next(self._names)}" for _ in range(2)]
        workers = self._lab.worker(space, names[0]), self._lab.worker(space, names[1])
        # A removed namespace with the same inode number may have counts already.
        self.hosts.append(Host(space, workers, self._shown(space)))
        self.note(f"host {space.name}")

    def remove_host(self) -> None:
        """Kill a host's processes and so close their connections; remove its devices and its name."""
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
        """Add a veth pair, sometimes with names and indexes that earlier devices had."""
        ends = self._chance.sample(self.hosts, 2)
        names = [self._free_name(host) for host in ends]
        if not all(names):
            return
        link = Link((ends[0], ends[1]), [str(name) for name in names], next(self._numbers))
        index = ["index", str(self._chance.choice(INDEXES))] if self._chance.random() < 0.5 else []
        peer = ["type", "veth", "peer", "name", link.names[1], "netns", ends[1].space.name]
        try:
            ends[0].space.ip("link", "add", link.names[0], *index, *peer)
        except RuntimeError:  # the index is taken
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
        """Send data over a veth pair, and remove the pair before its counters are read."""
        if link := self._some_link():
            self._talk(link)
            self.unlink(link)

    def unlink(self, link: Link) -> None:
        """Remove a veth pair."""
        self.note(f"unlink {link.number}")
        for host, name in zip(link.ends, link.names, strict=True):
            host.space.ip("link", "set", name, "down")  # no traffic between the last reading and the removal
        last = {self._device(link, side): self._counted(link, side) for side in range(2)}
        link.ends[0].space.ip("link", "del", link.names[0])
        for host in link.ends:
            host.links.remove(link)
        self.check()
        self.find(
            f"{device} was removed: {fault}"
            for device, counted in last.items()
            # In other namespaces the counters are lost with the device.
            if device[0] == self.hosts[0].space.inode
            for fault in self._difference(device, counted)
        )
        for device in last:
            del self._base[device]

    def rename(self) -> None:
        """Rename a device."""
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
        """Send data over a link by a TCP connection."""
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
        """Send data over loopback by a TCP connection."""
        host = self._chance.choice(self.hosts)
        up, down = self._chance.randint(1, 200_000), self._chance.randint(1, 200_000)
        self.note(f"talk within {host.space.name}: {up} up, {down} down")
        self._tcp(*host.workers, "127.0.0.1", up, down)
        self._count(host, up + down, up + down)

    def _tcp(self, client: Worker, server: Worker, address: str, up: int, down: int) -> None:
        """Exchange `up` and `down` bytes over a connection, then close neither, one or both ends."""
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
        """Send datagrams over loopback, from a socket that may close before nettop reads its counters."""
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
        """Kill a process with its open sockets, and start another in its place."""
        host = self._chance.choice(self.hosts)
        side = self._chance.randrange(2)
        self.note(f"kill {host.workers[side].pid} in {host.space.name}")
        host.workers[side].end()
        new = self._lab.worker(host.space, f"host{next(self._names)}")
        host.workers = (new, host.workers[1]) if side == 0 else (host.workers[0], new)

    # --- invariants ------------------------------------------------------------------------------------------

    def note(self, what: str) -> None:
        """Record a step, for the report of a fault."""
        self.done.append(what)

    def find(self, faults: Iterable[str]) -> None:
        """Record faults, with the number of steps so far."""
        self.faults += [f"after {len(self.done)} ({self.done[-1]}): {fault}" for fault in faults]

    def check(self) -> None:
        """Read, and compare nettop's counts with the truth."""
        with suppress(NotInTimeError):
            until(lambda: not self._faults(), "correct sums", SETTLES_S)
            return
        self.find(self._faults())
        for host in self.hosts:  # report each fault once
            host.moved = self._shown(host.space)
        for device, counted in self._devices():
            self._base[device] = self._uncounted(device, counted)

    def _faults(self) -> list[str]:
        """Read; return the counts that nettop has wrong."""
        self.sockets.refresh()
        self.devices.refresh()
        of_hosts = [
            f"{name} of {host.space.name}: {self._shown(host.space)[name]} shown, {host.moved[name]} expected"
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
        """Return each device and the kernel's counts of it."""
        links = {id(link): link for host in self.hosts for link in host.links}.values()
        return [(self._device(link, side), self._counted(link, side)) for link in links for side in range(2)]

    def watch_now(self) -> None:
        """Read until all devices are watched; from then on nettop must count all their traffic."""
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
            f"{name} of {device}: nettop is off by {base - now[name]:+} of {counted[name]}"
            for name, base in self._base[device].items()
            if now[name] != base
        ]

    def _device(self, link: Link, side: int) -> Device:
        return link.ends[side].space.inode, link.names[side]

    def _counted(self, link: Link, side: int) -> Counter[str]:
        """Return the kernel's counts of a device."""
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
    """Connect and close a few hundred times a second, as long as the process lives."""
    while True:
        traffic.storm(memory, "127.0.0.1", 0.005)
        select.select([], [], [], 0.05)


def explore_hosts(chance: random.Random) -> list[str]:
    """Change a world at random during a storm of connections; return nettop's wrong counts."""
    with Lab() as lab:
        home = lab.namespace()
        # nettop counts packets only in its own namespace; elsewhere it reads counters.
        around = ("ip", "netns", "exec", home.name)
        with (
            Running(*JSON, *LATER, "--all") as sockets,
            Running(*JSON, *LATER, "--view", "bandwidth", around=around) as devices,
        ):
            return explored(World(lab, chance, home, sockets, devices), lab, chance)


def explored(world: "World", lab: Lab, chance: random.Random) -> list[str]:
    """Run a world, then end its views; return the wrong counts."""
    try:
        live(world, lab, chance)
    except NotInTimeError as error:
        world.faults.append(str(error))
    for watched in (world.sockets, world.devices):
        status = watched.running.end()
        errors = watched.running.complaints()
        if status or "Traceback" in errors:
            world.faults.append(f"exit status {status}: {errors[-3000:]}")
    history = "\n    ".join(["steps:", *(f"{number} {what}" for number, what in enumerate(world.done, 1))])
    return [*world.faults, history] if world.faults else []


def live(world: World, lab: Lab, chance: random.Random) -> None:
    """Build a small world and apply random actions to it."""
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
