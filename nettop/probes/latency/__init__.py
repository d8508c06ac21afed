# SPDX-License-Identifier: Apache-2.0
"""The latency lens: where packets wait, and for how long."""

from nettop.probes.latency.probe import make_probe

__all__ = ["make_probe"]
