# SPDX-License-Identifier: Apache-2.0
"""Flows that routers report: received, decoded, enriched and stored."""
