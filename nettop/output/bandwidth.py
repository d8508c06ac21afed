# SPDX-License-Identifier: Apache-2.0
"""Bandwidth in plain output."""

from __future__ import annotations

from nettop.output.lens_output import LensOutput
from nettop.snapshots.bandwidth import NO_INTERFACE

OUTPUT = LensOutput(reported_gaps=(NO_INTERFACE,))
