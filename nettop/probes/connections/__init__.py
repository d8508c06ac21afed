# SPDX-License-Identifier: Apache-2.0
"""The connections lens: the socket table, and what happens to connections between two of its readings."""

from nettop.probes.connections.probe import make_probe

__all__ = ["make_probe"]
