# SPDX-License-Identifier: Apache-2.0
"""Sampled kernel stacks, as the CPU lens's frontends show and export them: windows, trees, and file formats."""
