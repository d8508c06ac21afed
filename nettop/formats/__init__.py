# SPDX-License-Identifier: Apache-2.0
"""Rows of a view as text for programs: JSON Lines and CSV."""
