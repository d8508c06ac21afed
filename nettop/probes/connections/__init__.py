# SPDX-License-Identifier: Apache-2.0
"""The connections lens: the socket table, and connection events between two readings of it."""

from nettop.probes.connections.probe import make_probe

__all__ = ["make_probe"]
