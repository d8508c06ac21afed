# SPDX-License-Identifier: Apache-2.0
"""ICMP type and code, which exporters without a field for them put into the destination port."""

from __future__ import annotations

import numpy as np

from nettop.flows.columns import ICMP_PROTOCOLS
from nettop.snapshots.arrays import Array

_IS_ICMP = np.isin(np.arange(256), ICMP_PROTOCOLS)
"""Mask over protocol numbers: those with ICMP types and codes."""


def icmp_in_port(protocol: Array, dst_port: Array) -> tuple[Array, Array]:
    """Return the ICMP type and code of each flow, 0 for other protocols."""
    return type_and_code(np.where(_IS_ICMP[protocol], dst_port, 0))


def type_and_code(number: Array) -> tuple[Array, Array]:
    """Split combined numbers into ICMP type and code.

    The type is the upper byte. If that is 0, the whole number is the type: type 0 has no code but 0, and Cisco and
    Procera routers send such numbers.
    """
    upper, lower = number // 256, number % 256
    return np.where(upper > 0, upper, lower), np.where(upper > 0, lower, 0)
