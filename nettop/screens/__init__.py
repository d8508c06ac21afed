# SPDX-License-Identifier: Apache-2.0
"""The terminal screens: one per table, found by lens and table names, in a shared frame."""
