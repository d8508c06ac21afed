# SPDX-License-Identifier: Apache-2.0
"""The terminal screens: one per lens, found by its id, in a frame that they share."""
