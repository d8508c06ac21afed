# SPDX-License-Identifier: Apache-2.0
"""Formats of a view's rows for programs: JSON, JSON Lines and CSV."""
