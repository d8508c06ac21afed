# SPDX-License-Identifier: Apache-2.0
"""The host's power meters, as Linux's powercap shows them (Documentation/power/powercap/powercap.rst).

A meter is a zone in sysfs that counts the energy of a part of the host. Those that are told add up to what the
processors and their memory take, and nothing of it comes twice:

- `package-0` is a whole processor, so its subzones `core` and `uncore`, parts of it by the documentation, are not told;
- `dram` is the memory at a processor: a subzone too, but a counter beside the package's and not within it
  (rapl_package_register_powercap in drivers/powercap/intel_rapl_common.c, head of arch/x86/events/rapl.c);
- `psys` is the whole machine, processors and all, where it has such a counter, so it is not told;
- `intel-rapl-mmio` counts the packages of `intel-rapl` once more, so it is told only where that has none of the name.

Processors of AMD have zones of `intel-rapl` too, since Linux 5.11.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nettop.snapshots.safe_text import safe_text

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"package-\d+(-die-\d+)?")
_MEMORY = "dram"
_NUMBER_BYTES = 32

_kept: dict[Path, int] = {}
"""Counters that were opened with the right to, by path."""


@dataclass(frozen=True, slots=True)
class Meter:
    """A zone: `package-0`, or `package-0 dram` for the memory at it. Its counter begins at 0 again behind `range_uj`
    microjoules."""

    name: str
    path: Path
    range_uj: int


def find_meters(root: Path = POWERCAP) -> tuple[Meter, ...]:
    """The meters of this host, each name once; none where there are none, or where they are hidden."""
    found: dict[str, Meter] = {}
    for zone in _zones(root):
        with suppress(OSError, ValueError):
            meter = _meter(zone)
            if meter is not None:
                found.setdefault(meter.name, meter)
    return tuple(found.values())


@contextmanager
def open_meters(root: Path = POWERCAP) -> Iterator[None]:
    """Open the counters now, for whoever makes a Power until this is left; what is open takes no privilege.

    Whoever may not open them goes on without.
    """
    for meter in find_meters(root):
        with suppress(OSError):
            _kept[meter.path] = _open(meter.path)
    try:
        yield
    finally:
        while _kept:
            os.close(_kept.popitem()[1])


class Power:
    """What meters have counted since this was made.

    Only root may open the counters, since Linux 5.10 (CVE-2020-8694: they tell what others compute; the file's mode is
    set by create_power_zone_common_attributes in drivers/powercap/powercap_sys.c). They are opened here at once,
    unless `open_meters` did that, and to read them takes no privilege then. `refused` says which cannot be read, and
    why.

    Who reads less often than a counter turns misses turns: one of 2^32 steps of 61 µJ takes 11 minutes at 400 W.
    """

    def __init__(self, meters: Iterable[Meter]) -> None:
        self.refused: dict[str, str] = {}
        self._counters: dict[str, _Counter] = {}
        for meter in meters:
            try:
                self._counters[meter.name] = _Counter(meter)
            except (OSError, ValueError) as error:
                self.refused[meter.name] = _why(error)

    def read(self) -> dict[str, int]:
        """Microjoules by the meters' names. What does not answer is left out: a processor may be switched off."""
        found: dict[str, int] = {}
        for name, counter in self._counters.items():
            with suppress(OSError, ValueError):
                found[name] = counter.advance()
        return found

    def close(self) -> None:
        """Let go of the counters; a second call does nothing."""
        while self._counters:
            self._counters.popitem()[1].close()


def why_no_power(root: Path = POWERCAP) -> str:
    """Why nothing is told of the host's power, for the screen; empty where a meter can be read."""
    meters, zones = find_meters(root), _zones(root)
    if not meters and zones and not any(zone.exists() for zone in zones):
        return f"this host's power meters are hidden ({root} leads nowhere, as in a container)"
    if not meters:
        return f"this host has no power meter ({root})"
    power = Power(meters)
    power.close()
    if len(power.refused) < len(meters):
        return ""
    return f"this host's power meters cannot be read: {', '.join(dict.fromkeys(power.refused.values()))}"


class _Counter:
    """An open counter, and what it has counted since it was opened."""

    def __init__(self, meter: Meter) -> None:
        """Open it. Raises OSError where that is refused, ValueError where it tells no number."""
        self._range_uj = meter.range_uj
        self._total_uj = 0
        self._descriptor = os.dup(_kept[meter.path]) if meter.path in _kept else _open(meter.path)
        try:
            self._last_uj = self._energy_uj()
        except BaseException:
            self.close()
            raise

    def advance(self) -> int:
        """Microjoules since it was opened. Raises OSError or ValueError where it does not answer this time."""
        now_uj = self._energy_uj()
        self._total_uj += (now_uj - self._last_uj) % self._range_uj
        self._last_uj = now_uj
        return self._total_uj

    def close(self) -> None:
        os.close(self._descriptor)

    def _energy_uj(self) -> int:
        return int(os.pread(self._descriptor, _NUMBER_BYTES, 0))


def _open(zone: Path) -> int:
    """The counter of a zone, for pread(2). Raises OSError."""
    return os.open(zone / "energy_uj", os.O_RDONLY | os.O_CLOEXEC)


def _zones(root: Path) -> list[Path]:
    """The zones and, behind each, its subzones (`intel-rapl:0`, `intel-rapl:0:1`: dev_set_name in
    drivers/powercap/powercap_sys.c), all of `intel-rapl` before those of `intel-rapl-mmio`."""
    try:
        names = os.listdir(root)
    except OSError:
        return []
    return [root / name for name in sorted(names, key=lambda name: name.split(":")) if ":" in name]


def _meter(zone: Path) -> Meter | None:
    """The meter that a zone is; None where it is none that is told. Raises OSError or ValueError where it cannot be
    read."""
    name = _name(zone)
    range_uj = int(_text(zone / "max_energy_range_uj")) if name else 0
    return Meter(name, zone, range_uj) if range_uj > 0 else None


def _name(zone: Path) -> str:
    """What the meter of a zone is called; empty where it is none that is told. Raises OSError."""
    name = _text(zone / "name")
    if name == _MEMORY:
        package = zone.with_name(zone.name.rpartition(":")[0])
        return f"{_text(package / 'name')} {name}"
    return name if _PACKAGE.fullmatch(name) else ""


def _text(path: Path) -> str:
    return safe_text(path.read_text(errors="replace").strip())


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, PermissionError):
        return "only root may"
    return getattr(error, "strerror", None) or "it tells no number"
