# SPDX-License-Identifier: Apache-2.0
"""Which information elements give which column: IANA's registry of IPFIX, which continues the fields of NetFlow v9.

https://www.iana.org/assignments/ipfix and RFC 3954, section 8. An element of an enterprise is another one, whatever its
number is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

IANA, CISCO = 0, 9
REVERSE = 29305
"""The enterprise of the elements that count the other direction of a biflow (RFC 5103)."""
VARIABLE = 0xFFFF
"""The length of a field whose records say how long it is (RFC 7011, section 7)."""

Element = tuple[int, int]
"""Enterprise and number."""


class Form(Enum):
    """How the bytes of an element become the value of a column."""

    NUMBER = "number"
    ADDRESS = "address"
    MPLS = "mpls"
    """A label of 20 bits, before the traffic class and the bottom of the stack."""
    ICMP_TYPE = "icmp type"
    """The upper byte of type and code; where that is 0, all of it."""
    ICMP_CODE = "icmp code"
    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"
    NTP = "ntp"
    """Seconds since 1900, and their fractions in 2⁻³² (RFC 7011, sections 6.1.9 and 6.1.10)."""
    BEFORE_EXPORT_US = "before export"
    """Microseconds before the export time of the message."""
    UPTIME_MS = "uptime"
    """Milliseconds since the exporter's start."""


@dataclass(frozen=True, slots=True)
class Given:
    """An element that gives a column."""

    number: int
    form: Form = Form.NUMBER


def _any_of(*numbers: int, form: Form = Form.NUMBER) -> tuple[Given, ...]:
    return tuple(Given(number, form) for number in numbers)


def _time(
    uptime: int, seconds: int, milliseconds: int, ntp: tuple[int, int], delta: int
) -> tuple[Given, ...]:
    return (
        *_any_of(milliseconds, form=Form.MILLISECONDS),
        *_any_of(*ntp, form=Form.NTP),
        *_any_of(seconds, form=Form.SECONDS),
        *_any_of(delta, form=Form.BEFORE_EXPORT_US),
        *_any_of(uptime, form=Form.UPTIME_MS),
        # What happened at one moment: events of NAT and firewalls, and sampled packets.
        *_any_of(323, form=Form.MILLISECONDS),
        *_any_of(324, 325, form=Form.NTP),
        *_any_of(322, form=Form.SECONDS),
    )


# fmt: off
GIVEN_BY: dict[str, tuple[Given, ...]] = {
    # Of whom a relay has it: that of RFC 7119, and what relays had before there was one.
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
"""The column's elements: the first of them that a record has gives its value."""
# fmt: on
DURATIONS = {(IANA, 161): 1, (IANA, 162): 1000}
"""flowDurationMilliseconds and flowDurationMicroseconds, and how many of each are a millisecond."""
INITIATOR = {"bytes": (IANA, 231), "packets": (IANA, 298)}
RESPONDER = {"bytes": (IANA, 232), "packets": (IANA, 299)}
IN = {"bytes": (IANA, 1), "packets": (IANA, 2)}
BOTH = tuple((IANA, number) for number in (1, 85, 352, 2, 86))
"""What may count initiator, responder or both, where a record counts each of them, too."""
OUT = {"bytes": (IANA, 23), "packets": (IANA, 24)}
"""OUT_BYTES and OUT_PKTS of NetFlow 9, where IPFIX has the same packets as IN, after a middlebox has changed them."""
NTOP = 35632
"""The enterprise of nProbe, whose IPFIX has OUT of NetFlow 9."""
FIREWALL_EVENT, CONNECTION = (IANA, 233), (IANA, 148)

DOMAIN = (IANA, 149)
"""observationDomainId: the domain that options are of, where it is not that of their message."""
SYSTEM_INIT = (IANA, 160)
"""systemInitTimeMilliseconds: what uptimes of IPFIX count from."""
UPTIMES = (IANA, 22), (IANA, 21)
"""flowStartSysUpTime and flowEndSysUpTime."""
FRAME, IP_PACKET = (IANA, 315), (IANA, 313)
"""A sampled packet, from its link layer's header on or from its IP header on."""
_OF_CISCO = {
    # Of connections, by client and server: addresses, ports, and bytes from the IP header on.
    12236: 8, 12237: 12, 12238: 27, 12239: 28, 12240: 7, 12241: 11, 8338: 231, 8337: 232,
    # Of an ASA before 8.4(5): addresses and ports after translation, and the event.
    7233: 225, 7234: 226, 7235: 227, 7236: 228, 7237: 233,
}  # fmt: skip
SAME_AS: dict[Element, Element] = {
    element: (IANA, same)
    for number, same in _OF_CISCO.items()
    for element in ((CISCO, number), (IANA, 0x8000 | number))
}
"""Elements of Cisco that mean the same as one of IANA; NetFlow 9, without enterprises, adds 32768 to their number."""
BASIC_LIST, SUBTEMPLATE_LIST, SUBTEMPLATE_MULTI_LIST = (IANA, 291), (IANA, 292), (IANA, 293)
LISTS = (BASIC_LIST, SUBTEMPLATE_LIST, SUBTEMPLATE_MULTI_LIST)
