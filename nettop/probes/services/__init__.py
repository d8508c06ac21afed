# SPDX-License-Identifier: Apache-2.0
"""The services lens: how long requests wait for their responses."""

from nettop.probes.services.probe import make_probe

__all__ = ["make_probe"]
