# SPDX-License-Identifier: Apache-2.0
"""The drops lens: what the kernel dropped, where and why."""

from nettop.probes.drops.probe import make_probe

__all__ = ["make_probe"]
