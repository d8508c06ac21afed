# SPDX-License-Identifier: Apache-2.0
"""The CPU lens: samples of what CPUs do inside the network stack."""

from nettop.probes.cpu.probe import make_probe

__all__ = ["make_probe"]
