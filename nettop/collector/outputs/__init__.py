# SPDX-License-Identifier: Apache-2.0
"""Destinations of flows besides the store."""
