# SPDX-License-Identifier: Apache-2.0
"""The table of protocols: where the packets of each protocol and family wait."""

from __future__ import annotations

from nettop.screens.latency.histograms import LatencyHistograms


class ProtocolsScreen(LatencyHistograms):
    """A row for each protocol and family; below them the chosen one as a histogram."""

    about = "where the packets of each protocol and version of IP wait, the chosen ones as a histogram"
    named_by = ("stage", "protocol", "family")


SCREEN = ProtocolsScreen
