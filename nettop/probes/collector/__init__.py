# SPDX-License-Identifier: Apache-2.0
"""The collector lens: the flow collector's report on itself."""

from nettop.probes.collector.probe import make_probe

__all__ = ["make_probe"]
