# SPDX-License-Identifier: Apache-2.0
"""Types and codes of ICMP that exporters put into the destination port, for want of a field."""

from __future__ import annotations

import numpy as np

from nettop.flows.columns import ICMP_PROTOCOLS
from nettop.snapshots.snapshot import Array

_IS_ICMP = np.isin(np.arange(256), ICMP_PROTOCOLS)
"""Of each protocol number, whether it has types and codes."""


def icmp_in_port(protocol: Array, dst_port: Array) -> tuple[Array, Array]:
    """Return the type and the code of each flow, 0 of other protocols."""
    return type_and_code(np.where(_IS_ICMP[protocol], dst_port, 0))


def type_and_code(number: Array) -> tuple[Array, Array]:
    """Return the type and the code that numbers have together.

    The type is the upper byte. Where that is 0 the number is the type alone: type 0 has no other code than 0, and
    routers of Cisco and Procera send such numbers.
    """
    upper, lower = number // 256, number % 256
    return np.where(upper > 0, upper, lower), np.where(upper > 0, lower, 0)
