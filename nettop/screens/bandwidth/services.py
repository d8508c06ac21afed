# SPDX-License-Identifier: Apache-2.0
"""The table of services."""

from nettop.screens.bandwidth.protocols import SCREEN

__all__ = ["SCREEN"]
