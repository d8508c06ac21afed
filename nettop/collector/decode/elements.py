# SPDX-License-Identifier: Apache-2.0
"""Information elements and the columns they fill: IANA's IPFIX registry, which continues the field types of NetFlow v9.

https://www.iana.org/assignments/ipfix and RFC 3954, section 8. An enterprise's elements have a number space of their
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

IANA, CISCO = 0, 9
REVERSE = 29305
"""Enterprise number of elements that count the reverse direction of a biflow (RFC 5103)."""
VARIABLE = 0xFFFF
"""Length of a field that carries its length in each record (RFC 7011, section 7)."""

Element = tuple[int, int]
"""Enterprise and element number."""


class Form(Enum):
    """Conversions from an element's bytes to a column value."""

    NUMBER = "number"
    ADDRESS = "address"
    MPLS = "mpls"
    """A 20-bit label, before the traffic class and the bottom-of-stack bit."""
    ICMP_TYPE = "icmp type"
    """The upper byte of type and code; if that is 0, the whole number."""
    ICMP_CODE = "icmp code"
    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"
    NTP = "ntp"
    """Seconds since 1900, and fractions in units of 2⁻³² s (RFC 7011, sections 6.1.9 and 6.1.10)."""
    BEFORE_EXPORT_US = "before export"
    """Microseconds before the message's export time."""
    UPTIME_MS = "uptime"
    """Milliseconds since the exporter started."""


@dataclass(frozen=True, slots=True)
class SourceElement:
    """An element that fills a column."""

    number: int
    form: Form = Form.NUMBER


def _any_of(*numbers: int, form: Form = Form.NUMBER) -> tuple[SourceElement, ...]:
    return tuple(SourceElement(number, form) for number in numbers)


def _time(
    uptime: int, seconds: int, milliseconds: int, ntp: tuple[int, int], delta: int
) -> tuple[SourceElement, ...]:
    return (
        *_any_of(milliseconds, form=Form.MILLISECONDS),
        *_any_of(*ntp, form=Form.NTP),
        *_any_of(seconds, form=Form.SECONDS),
        *_any_of(delta, form=Form.BEFORE_EXPORT_US),
        *_any_of(uptime, form=Form.UPTIME_MS),
        # Events at one instant: NAT and firewall events, and sampled packets.
        *_any_of(323, form=Form.MILLISECONDS),
        *_any_of(324, 325, form=Form.NTP),
        *_any_of(322, form=Form.SECONDS),
    )


# fmt: off
ELEMENTS_OF: dict[str, tuple[SourceElement, ...]] = {
    # The original exporter behind a relay: RFC 7119's elements, then those relays used before it.
    "exporter": _any_of(403, 404, 130, 131, form=Form.ADDRESS),
    "start": _time(22, 150, 152, (154, 156), 158),
    "end": _time(21, 151, 153, (155, 157), 159),
    "bytes": _any_of(1, 85, 352, 353, 312, 231, 23),
    "packets": _any_of(2, 86, 298, 24),
    "direction": _any_of(61),
    "src": _any_of(8, 27, form=Form.ADDRESS),
    "dst": _any_of(12, 28, form=Form.ADDRESS),
    "etype": _any_of(256),
    "protocol": _any_of(4),
    "src_port": _any_of(7, 180, 182),
    "dst_port": _any_of(11, 181, 183),
    "tcp_flags": _any_of(6),
    "icmp_type": (*_any_of(176, 178), *_any_of(32, 139, form=Form.ICMP_TYPE)),
    "icmp_code": (*_any_of(177, 179), *_any_of(32, 139, form=Form.ICMP_CODE)),
    "tos": _any_of(5),
    "ttl": _any_of(192, 52),
    "flow_label": _any_of(31),
    "fragment_id": _any_of(54),
    "fragment_offset": _any_of(88),
    "in_if": _any_of(10, 252),
    "out_if": _any_of(14, 253),
    "src_mac": _any_of(56, 81),
    "dst_mac": _any_of(80, 57),
    "src_vlan": _any_of(58, 243),
    "dst_vlan": _any_of(59, 254),
    "customer_vlan": _any_of(245),
    "in_vrf": _any_of(234),
    "out_vrf": _any_of(235),
    "mpls_label_1": _any_of(70, form=Form.MPLS),
    "mpls_label_2": _any_of(71, form=Form.MPLS),
    "mpls_label_3": _any_of(72, form=Form.MPLS),
    "src_as": _any_of(16),
    "dst_as": _any_of(17),
    "src_prefix": _any_of(9, 29),
    "dst_prefix": _any_of(13, 30),
    "next_hop": _any_of(18, 63, 15, 62, form=Form.ADDRESS),
    "next_hop_as": _any_of(128),
    "nat_src": _any_of(225, 281, form=Form.ADDRESS),
    "nat_dst": _any_of(226, 282, form=Form.ADDRESS),
    "nat_src_port": _any_of(227),
    "nat_dst_port": _any_of(228),
    "forwarding_status": _any_of(89),
    "event": _any_of(233, 230),
    "end_reason": _any_of(136),
}
"""Elements of each column; the first one present in a record wins."""
# fmt: on
DURATIONS = {(IANA, 161): 1, (IANA, 162): 1000}
"""flowDurationMilliseconds and flowDurationMicroseconds, with their units per millisecond."""
INITIATOR = {"bytes": (IANA, 231), "packets": (IANA, 298)}
RESPONDER = {"bytes": (IANA, 232), "packets": (IANA, 299)}
IN = {"bytes": (IANA, 1), "packets": (IANA, 2)}
TOTALS = tuple((IANA, number) for number in (1, 85, 352, 2, 86))
"""Totals that may cover initiator, responder or both, in records that also count each of them."""
OUT = {"bytes": (IANA, 23), "packets": (IANA, 24)}
"""OUT_BYTES and OUT_PKTS of NetFlow v9. IPFIX counts the same packets as IN here, after a middlebox changed them."""
NTOP = 35632
"""Enterprise number of ntop: nProbe's IPFIX uses OUT as NetFlow v9 does."""
FIREWALL_EVENT, CONNECTION = (IANA, 233), (IANA, 148)

DOMAIN = (IANA, 149)
"""observationDomainId: the domain that options apply to, if not the message's own."""
SYSTEM_INIT = (IANA, 160)
"""systemInitTimeMilliseconds: the reference of IPFIX uptimes."""
UPTIMES = (IANA, 22), (IANA, 21)
"""flowStartSysUpTime and flowEndSysUpTime."""
FRAME, IP_PACKET = (IANA, 315), (IANA, 313)
"""A sampled packet, starting at its link-layer header or at its IP header."""
_CISCO_ELEMENTS = {
    # Connections by client and server: addresses, ports, and bytes counted from the IP header on.
    12236: 8, 12237: 12, 12238: 27, 12239: 28, 12240: 7, 12241: 11, 8338: 231, 8337: 232,
    # From an ASA before 8.4(5): translated addresses and ports, and the event.
    7233: 225, 7234: 226, 7235: 227, 7236: 228, 7237: 233,
}  # fmt: skip
SAME_AS: dict[Element, Element] = {
    element: (IANA, same)
    for number, same in _CISCO_ELEMENTS.items()
    for element in ((CISCO, number), (IANA, 0x8000 | number))
}
"""Cisco elements equivalent to one of IANA. NetFlow v9 has no enterprises and adds 32768 to the number instead."""
BASIC_LIST, SUBTEMPLATE_LIST, SUBTEMPLATE_MULTI_LIST = (IANA, 291), (IANA, 292), (IANA, 293)
LISTS = (BASIC_LIST, SUBTEMPLATE_LIST, SUBTEMPLATE_MULTI_LIST)
