# SPDX-License-Identifier: Apache-2.0
"""Lookup of a lens's probe by name."""

from __future__ import annotations

from typing import Any

from nettop.errors import Unsupported, UsageError
from nettop.snapshots import lens_part, lenses
from nettop.snapshots.source import Source


def probe_of(lens: str, host: Any = None) -> Source:
    """Create the probe of a lens by its module's `make_probe`. Probes of the same `host` share its resources.

    Probe modules are imported only here, so that a frontend never loads the kernel package.
    """
    if lens not in {known.id for known in lenses()}:
        raise UsageError(f"there is no lens {lens!r}", "run nettop --help for the list")
    module = lens_part(lens, "probe")
    if module is None:
        raise Unsupported(f"lens {lens!r} has no probe")
    source: Source = module.make_probe(host)
    return source
