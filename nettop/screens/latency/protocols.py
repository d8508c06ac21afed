# SPDX-License-Identifier: Apache-2.0
"""The table of protocols: where packets of each protocol and family wait."""

from __future__ import annotations

from nettop.screens.latency.histograms import LatencyHistograms


class ProtocolsScreen(LatencyHistograms):
    """A row for each stage, protocol and family; below them the selected one's histogram."""

    about = "where packets of each protocol and IP version wait, the selected row as a histogram"
    named_by = ("stage", "protocol", "family")


SCREEN = ProtocolsScreen
