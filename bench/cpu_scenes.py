# SPDX-License-Identifier: Apache-2.0
"""Generate traffic with a known cost profile, in scenes.

Each scene has its own network namespaces.
"""

import contextlib
from collections.abc import Iterator

from traffic import B6, A, B, Namespace, Traffic, neighbours

TRACKED = """
table ip bench {
  chain forward {
    type filter hook forward priority 0;
    ct state established,new accept
    drop
  }
}
"""

FAR = "10.79.1.2"
"""Address of the end behind a router."""


def tcp(traffic: Traffic) -> None:
    """Send TCP between neighbours, in packets of up to 64 KiB."""
    traffic.stream(*neighbours(traffic), B)


def tcp_of_ipv6(traffic: Traffic) -> None:
    """Send TCP over IPv6 between neighbours."""
    traffic.stream(*neighbours(traffic), B6)


def udp(traffic: Traffic) -> None:
    """Send a flood of small datagrams between neighbours."""
    traffic.flood(*neighbours(traffic), B)


def routed(traffic: Traffic) -> tuple[Namespace, Namespace, Namespace]:
    """Create two hosts with a router between them."""
    near, router, far = traffic.namespace(), traffic.namespace(), traffic.namespace()
    traffic.connect(near, router, "va", "ra")
    traffic.connect(router, far, "rb", "vb")
    near.ip(f"addr add {A}/24 dev va")
    router.ip(f"addr add {B}/24 dev ra")
    router.ip("addr add 10.79.1.1/24 dev rb")
    far.ip(f"addr add {FAR}/24 dev vb")
    near.ip(f"route add default via {B}")
    far.ip("route add default via 10.79.1.1")
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    return near, router, far


def forwarding(traffic: Traffic) -> None:
    """Send a flood through a router."""
    near, _, far = routed(traffic)
    traffic.flood(near, far, FAR)


def conntrack(traffic: Traffic) -> None:
    """Send a flood through a router with connection tracking."""
    near, router, far = routed(traffic)
    router.run("nft", "-f", "-", text=TRACKED)
    traffic.flood(near, far, FAR)


def bridge(traffic: Traffic) -> None:
    """Send a flood between two ports of a bridge."""
    near, middle, far = traffic.namespace(), traffic.namespace(), traffic.namespace()
    middle.ip("link add name br0 type bridge")
    middle.ip("link set br0 up")
    for host, device, port, address in ((near, "va", "pa", A), (far, "vb", "pb", B)):
        traffic.connect(host, middle, device, port)
        middle.ip(f"link set {port} master br0")
        host.ip(f"addr add {address}/24 dev {device}")
    traffic.flood(near, far, B)


def vxlan(traffic: Traffic) -> None:
    """Send a flood through a tunnel between neighbours."""
    near, far = neighbours(traffic)
    for host, device, peer, address in ((near, "va", B, "10.80.0.1"), (far, "vb", A, "10.80.0.2")):
        host.ip(f"link add vx type vxlan id 79 remote {peer} dstport 4789 dev {device}")
        host.ip(f"addr add {address}/24 dev vx")
        host.ip("link set vx up")
    traffic.flood(near, far, "10.80.0.2")


def gro(traffic: Traffic) -> None:
    """Send TCP between neighbours as single segments, which the receiver merges."""
    near, far = neighbours(traffic)
    near.run("ethtool", "-K", "va", "tso", "off", "gso", "off")
    far.run("ethtool", "-K", "vb", "gro", "on")
    traffic.stream(near, far, B)


SCENES = {
    "tcp": tcp,
    "tcp6": tcp_of_ipv6,
    "udp": udp,
    "forwarding": forwarding,
    "conntrack": conntrack,
    "bridge": bridge,
    "vxlan": vxlan,
    "gro": gro,
}


@contextlib.contextmanager
def traffic_of(name: str) -> Iterator[None]:
    """Run the traffic of a scene inside the `with` block."""
    with Traffic() as traffic:
        SCENES[name](traffic)
        yield
