# SPDX-License-Identifier: Apache-2.0
"""Enrichment of flows from files: AS, country, and names of networks and interfaces."""
