# SPDX-License-Identifier: Apache-2.0
"""How stacks are exported: folded, for speedscope, and as a flame graph."""
