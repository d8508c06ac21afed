# SPDX-License-Identifier: Apache-2.0
"""Lenses of other packages, which declare an entry point of the group `nettop.lenses`.

The entry point `softnet = "nettop_softnet"` names a package with the lens's `LENS`, and the parts of the lens as its
modules. docs/internals/add-a-lens.md describes them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from nettop.snapshots.schema import Lens

GROUP = "nettop.lenses"
_OWN_PARTS = {
    "probe": "nettop.probes.{}",
    "self_test": "nettop.probes.{}.self_test",
    "screen": "nettop.screens.{}",
    "output": "nettop.output.{}",
}
"""Modules of nettop's own lenses, by part; `{}` is the lens's id."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A package that declares a lens. `lens` is None if it cannot be used, for the reason `problem`."""

    name: str
    package: str
    distribution: str
    version: str
    lens: Lens | None = None
    problem: str = ""

    @property
    def remedy(self) -> str:
        """The remedy for the problem."""
        return f"upgrade or uninstall {self.distribution}"


def find_plugins(own: Sequence[Lens]) -> list[Plugin]:
    """Return the other packages that declare lenses, sorted by name; `own` are nettop's lenses."""
    if not _has_any():
        return []
    from importlib.metadata import entry_points

    lenses, found = list(own), []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        assert point.dist is not None  # None only for entry points built by hand
        plugin = _load(Plugin(point.name, point.value, point.dist.name, point.dist.version), lenses)
        found.append(plugin)
        lenses += [plugin.lens] if plugin.lens else []
    return found


def import_part(lens: str, name: str, package: str | None) -> ModuleType | None:
    """Import a part of a lens, or return None if the lens has no such part.

    `name` is `probe`, `self_test`, `screen` or `output`; `package` is None for nettop's own lenses.
    """
    module = _OWN_PARTS[name].format(lens) if package is None else f"{package}.{name}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A parent may be absent too.
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            return None
        raise


def _has_any() -> bool:
    """Return whether an installed package has the group: this is much faster than importing importlib.metadata."""
    marker = f"[{GROUP}]"
    for folder in sys.path:
        for path in Path(folder or ".").glob("*.dist-info/entry_points.txt"):
            if marker in path.read_text(encoding="utf-8", errors="replace"):
                return True
    return False


def _load(plugin: Plugin, others: Sequence[Lens]) -> Plugin:
    """Import the declaration. Any error in it is the plug-in's own, and must not stop nettop."""
    try:
        lens = importlib.import_module(plugin.package).LENS
    except Exception as error:  # noqa: BLE001 - another package's code
        return replace(plugin, problem=f"{plugin.package} cannot be imported: {error!r}")
    if not isinstance(lens, Lens) or lens.id != plugin.name:
        return replace(plugin, problem=f"{plugin.package}.LENS is not a lens with the id {plugin.name!r}")
    if lens.id in {other.id for other in others}:
        return replace(plugin, problem="another lens has the same id")
    taken = {option.flag for other in others for option in other.options}
    for option in lens.options:
        if option.flag in taken:
            return replace(plugin, problem=f"another lens has the option {option.flag}")
    free = [digit for digit in (lens.digit, *"123456789") if digit not in {other.digit for other in others}]
    if not free:
        return replace(plugin, problem="every digit key has a lens")
    return replace(plugin, lens=replace(lens, digit=free[0]))
