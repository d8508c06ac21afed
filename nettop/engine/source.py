# SPDX-License-Identifier: Apache-2.0
"""Finds the probe of a lens by its name."""

from __future__ import annotations

import importlib

from nettop.errors import Unsupported, UsageError
from nettop.snapshots import lenses
from nettop.snapshots.source import Source


def probe_of(lens: str) -> Source:
    """A new probe of the lens: what `make_probe` of the module with its name gives.

    The probe's module is imported here and nowhere else, so that a frontend never loads the kernel package.
    """
    if lens not in {known.id for known in lenses()}:
        raise UsageError(f"there is no lens {lens!r}", "nettop --help lists them")
    try:
        module = importlib.import_module(f"nettop.probes.{lens}")
    except ModuleNotFoundError as error:
        if error.name != f"nettop.probes.{lens}":
            raise
        raise Unsupported(f"lens {lens!r} has no probe: {error}") from error
    source: Source = module.make_probe()
    return source
