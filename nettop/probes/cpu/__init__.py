# SPDX-License-Identifier: Apache-2.0
"""The CPU lens: hooks at the entry points of the network stack, and samples of what CPUs do inside it."""

from nettop.probes.cpu.probe import make_probe

__all__ = ["make_probe"]
