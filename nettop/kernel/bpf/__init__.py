# SPDX-License-Identifier: Apache-2.0
"""BPF programs, and the maps, rings and iterators that nettop reads."""
