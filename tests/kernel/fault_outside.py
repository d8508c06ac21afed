# SPDX-License-Identifier: Apache-2.0
"""Hosts outside of this machine: packets written by hand, and a host that a program plays behind a tun device.

Unlike a process in another namespace, such a host has no sockets that nettop could see.
"""

import fcntl
import os
import socket
import struct
import threading
from dataclasses import dataclass, field

from .fault_programs import Address, every
from .traffic import Memory

FIN, SYN, ACK = 1, 2, 16
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
FIRST = 1000
"""The sequence number with which the outside host begins each connection."""


@dataclass(frozen=True)
class Segment:
    """A TCP segment over IPv4."""

    source: Address
    target: Address
    flags: int
    sequence: int = 0
    acknowledged: int = 0
    window: int = 64240
    length: int = 0

    def packet(self) -> bytes:
        """Return the packet, without data; a SYN has a maximum segment size of 1460 bytes."""
        ends = socket.inet_aton(self.source[0]) + socket.inet_aton(self.target[0])
        ports, numbers = (self.source[1], self.target[1]), (self.sequence, self.acknowledged)
        options = struct.pack("!BBH", 2, 4, 1460) if self.flags & SYN else b""
        size = 20 + len(options)
        head = struct.pack("!2H2I2BH", *ports, *numbers, size << 2, self.flags, self.window)
        total = checksum(ends + struct.pack("!2H", socket.IPPROTO_TCP, size) + head + options)
        first = struct.pack("!BBHHHBB", 0x45, 0, 20 + size, 0, 0, 64, socket.IPPROTO_TCP)
        last = struct.pack("!2H", total, 0) + options
        return first + struct.pack("!H", checksum(first + ends)) + ends + head + last


def checksum(data: bytes) -> int:
    """Return the checksum of IP and TCP."""
    words: tuple[int, ...] = struct.unpack(f"!{len(data) // 2}H", data)
    return 0xFFFF - sum(words) % 0xFFFF


def parsed(packet: bytes) -> Segment | None:
    """Parse a packet; None if it is no TCP over IPv4."""
    if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return None
    hosts = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    start = (packet[0] & 15) * 4
    ports = struct.unpack("!2H", packet[start : start + 4])
    sequence, acknowledged, offset, flags, window = struct.unpack("!2I2BH", packet[start + 4 : start + 16])
    length = len(packet) - start - (offset >> 4) * 4
    return Segment((hosts[0], ports[0]), (hosts[1], ports[1]), flags, sequence, acknowledged, window, length)


def open_tunnel(memory: Memory, device: str) -> None:
    """Create a tun device."""
    memory["tunnel"] = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(memory["tunnel"], TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))


def play_nobody(memory: Memory) -> None:
    """Answer nothing."""
    ignore(memory["tunnel"])


def flood_syns(memory: Memory, target: Address, addresses: int, per_s: int) -> None:
    """Send SYNs from that many addresses of 198.18.0.0/24, each from another port, and ignore the responses."""
    threading.Thread(target=ignore, args=(memory["tunnel"],), daemon=True).start()
    for number in every(1 / per_s):
        source = f"198.18.0.{number % addresses + 1}", 1024 + number % 60000
        os.write(memory["tunnel"], Segment(source, target, SYN, number * 7919 % 2**32).packet())


def ignore(tunnel: int) -> None:
    """Read what arrives, and do nothing."""
    while True:
        os.read(tunnel, 65536)


def swallow(memory: Memory) -> None:
    """Read what arrives at the tun device, and do nothing."""
    ignore(memory["tunnel"])


def read_tunnel_slowly(memory: Memory, seconds: float) -> None:
    """Read one packet from the tun device at this pace."""
    for _ in every(seconds):
        os.read(memory["tunnel"], 2048)


@dataclass
class OutsideHost:
    """A host that accepts each connection and never reads; it has room for `room` bytes of a connection.

    After `lives_for` bytes of a connection the host is gone and answers nothing more.
    """

    room: int
    lives_for: int | None = None
    received: dict[Address, int] = field(default_factory=dict)
    first: dict[Address, int] = field(default_factory=dict)

    def answer(self, segment: Segment) -> Segment | None:
        """Return the response to a segment, if there is one."""
        peer = segment.source
        if segment.flags & SYN:
            self.received[peer], self.first[peer] = 0, segment.sequence + 1
            return self.reply(segment, SYN | ACK, FIRST)
        due = (self.first[peer] + self.received[peer]) % 2**32
        if segment.sequence == due and segment.length <= self.room - self.received[peer]:
            self.received[peer] += segment.length
        if self.lives_for is not None and self.received[peer] >= self.lives_for:
            return None
        return self.reply(segment, ACK, FIRST + 1) if segment.length or segment.sequence != due else None

    def reply(self, segment: Segment, flags: int, sequence: int) -> Segment:
        """Return a segment that acknowledges what was received, with the room that is left as its window."""
        peer = segment.source
        due = (self.first[peer] + self.received[peer]) % 2**32
        return Segment(segment.target, peer, flags, sequence, due, self.room - self.received[peer])


def play_host(memory: Memory, host: OutsideHost) -> None:
    """Answer what arrives at the tun device as this host does."""
    while True:
        segment = parsed(os.read(memory["tunnel"], 65536))
        if segment and (answer := host.answer(segment)):
            os.write(memory["tunnel"], answer.packet())
