# SPDX-License-Identifier: Apache-2.0
"""The flows lens: the flow collector's report on itself."""

from nettop.probes.flows.probe import make_probe

__all__ = ["make_probe"]
