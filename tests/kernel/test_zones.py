# SPDX-License-Identifier: Apache-2.0
"""Sockets of one link among several: link-local addresses, and sockets bound to a device."""

import socket
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from nettop.kernel.net.links import read_links
from nettop.probes.connections.probe import Connections
from nettop.query.filter import parse_filter
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.snapshot import Frame
from tests.options import source_options

from .lab import Lab, Namespace, ip
from .traffic import V6, Memory

pytestmark = pytest.mark.kernel

LINKS = ("lan1", "lan2")


def two_links(lab: Lab) -> Namespace:
    """Return a namespace with two links and the address fe80::1 on each."""
    home = lab.namespace()
    for link in LINKS:
        ip("-n", home.name, "link", "add", link, "type", "veth", "peer", "name", f"{link}-far")
        ip("-n", home.name, "address", "add", "fe80::1/64", "dev", link, "nodad")
        for end in (link, f"{link}-far"):
            ip("-n", home.name, "link", "set", end, "up")
    return home


def open_on_links(memory: Memory) -> None:
    """Open on each link a socket to fe80::2, and one bound to the device alone; and one to its own host."""
    for link in LINKS:
        index = socket.if_nametoindex(link)
        memory["to", link] = near = socket.socket(V6, socket.SOCK_DGRAM)
        near.bind(("fe80::1", 40000, 0, index))
        near.connect(("fe80::2", 7500, 0, index))
        memory["bound", link] = bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        bound.bind(("0.0.0.0", 68))
    memory["plain"] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    memory["plain"].bind(("127.0.0.1", 69))


def links_here(_: Memory) -> dict[str, int | None]:
    """Return the speeds of the worker's links."""
    return {link.name: link.negotiated().speed for link in read_links()}


@pytest.mark.walks
@pytest.mark.parametrize("sockets", ["iter/task_file", "sock_diag + /proc"])
@pytest.mark.since("5.12", "there are no iterators of sockets")
def test_sockets_of_two_links_differ(lab: Lab, sockets: str) -> None:
    """Each socket shows its device, as in ss; a filter on the device passes only its sockets."""
    home = two_links(lab)
    lab.worker(home, "local").call(open_on_links)
    with closing(Connections()) as probe:
        probe.configure(source_options(mechanisms={"sockets": sockets}))
        probe.start()
        snapshot = probe.read(time.monotonic_ns())
    query = replace(text_query(SOCKETS), all_rows=True)
    rows = View(Frame(snapshot), query)
    here = np.flatnonzero(rows.raw("netns") == home.inode)

    def passing(text: str) -> list[tuple[str, str]]:
        mask = parse_filter(SOCKETS, text).mask(rows)
        at = here[mask[here]]
        return sorted(zip(rows.values("local", at), rows.values("remote", at), strict=True))

    near = {link: (f"[fe80::1]%{link}:40000", f"[fe80::2]%{link}:7500") for link in LINKS}
    bound = {link: (f"0.0.0.0%{link}:68", "0.0.0.0:*") for link in LINKS}
    plain = ("127.0.0.1:69", "0.0.0.0:*")
    assert passing("protocol=udp") == sorted([*near.values(), *bound.values(), plain])
    for link in LINKS:
        one = [near[link]]
        for text in (f"fe80::2%{link}", f"[fe80::2%{link}]:7500", f"[fe80::2]%{link}:7500", f"remote=fe80::2%{link}",
                     f"remote_address=fe80::2%{link}", f"address=fe80::1%{link}"):  # fmt: skip
            assert passing(text) == one, text
        assert passing(f"0.0.0.0%{link}:68") == [bound[link]]
        assert passing(f"device={link}") == sorted([near[link], bound[link]])
    assert passing("fe80::2") == passing("fe80::/10") == sorted(near.values())


def test_the_speed_of_a_link_is_asked_for_in_its_namespace(lab: Lab) -> None:
    """/sys stays the host's in a network namespace that is merely entered. A veth's speed is made up."""
    home = two_links(lab)
    for link in LINKS:
        ip("-n", home.name, "link", "add", f"over-{link}", "link", link, "type", "macvlan")
    ip("-n", home.name, "link", "set", "over-lan1", "up")
    speeds = lab.worker(home, "speed").call(links_here)
    assert speeds == {"over-lan1": 1_250_000_000} | dict.fromkeys(speeds.keys() - {"over-lan1"})
    assert speeds.keys() >= {*LINKS, "over-lan2", "lo"}
