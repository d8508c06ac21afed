# SPDX-License-Identifier: Apache-2.0
"""nettop shows who uses the network, how well, and at what cost.

import nettop

with nettop.open("connections") as lens:
    for frame in lens:
        for row in frame.rows(columns=("process", "bytes_received_per_s"), filter="established"):
            print(row)
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would take longer than all else before nettop.process.priority
if TYPE_CHECKING:
    from typing import Any

    from nettop.api import open  # noqa: A004 - nettop.open
    from nettop.errors import NettopError

__all__ = ["NettopError", "__version__", "open"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import the API on first use, so that `nettop --help` does not wait for numpy."""
    import importlib

    home = {"open": "nettop.api", "NettopError": "nettop.errors"}.get(name)
    if home is not None:
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def version_of_build() -> str:
    """Return the version, with the label that distinguishes builds in the installer and the packages."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        _, plus, label = version("nettop").partition("+")
    except PackageNotFoundError:
        return __version__
    return f"{__version__}{plus}{label}"
