# SPDX-License-Identifier: Apache-2.0
"""The bandwidth lens: programs at XDP, TC and the drivers count the traffic of each interface."""

from nettop.probes.bandwidth.probe import make_probe

__all__ = ["make_probe"]
