# SPDX-License-Identifier: Apache-2.0
"""The findings lens: what is wrong, who, since when and why."""

from nettop.probes.findings.probe import make_probe

__all__ = ["make_probe"]
