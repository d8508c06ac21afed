# SPDX-License-Identifier: Apache-2.0
"""Probes: one module or package per lens, found by the lens's name."""
