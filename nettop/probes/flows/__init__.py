# SPDX-License-Identifier: Apache-2.0
"""The flows lens: reads what the collector of flows says of itself."""

from nettop.probes.flows.probe import make_probe

__all__ = ["make_probe"]
