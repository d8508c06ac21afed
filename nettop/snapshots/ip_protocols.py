# SPDX-License-Identifier: Apache-2.0
"""Names of IP protocols."""

from __future__ import annotations

IP_PROTOCOLS = {
    0: "hopopt", 1: "icmp", 2: "igmp", 4: "ipip", 6: "tcp", 17: "udp", 33: "dccp", 41: "ipv6", 43: "ipv6-route",
    44: "ipv6-frag", 47: "gre", 50: "esp", 51: "ah", 58: "icmpv6", 60: "ipv6-opts", 89: "ospf", 103: "pim",
    112: "vrrp", 132: "sctp", 136: "udplite",
}  # fmt: skip
"""Names by number, as in /etc/protocols."""
