# SPDX-License-Identifier: Apache-2.0
"""Which queue of a network device interrupts each CPU most, from /proc/interrupts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nettop.kernel.host.facts import Host
from nettop.kernel.host.proc_files import read_text
from nettop.snapshots.arrays import Array

_NETWORK_CLASS = "0x02"
"""First byte of the class of network controllers (PCI Code and ID Assignment Specification, 1.3)."""


class DeviceQueue(NamedTuple):
    """An interrupt of a network device, and the name that its driver gave it, which tells the queue."""

    irq: int
    name: str


class Interrupts:
    """Compares two readings of /proc/interrupts: since boot, another queue may have interrupted a CPU most."""

    def __init__(self, host: Host) -> None:
        self._proc, self._pci = host.proc, host.root / "sys/bus/pci/devices"
        self._last: Mapping[DeviceQueue, Array] = {}

    def forget(self) -> None:
        """Forget the last reading."""
        self._last = {}

    def busiest(self) -> Mapping[int, DeviceQueue]:
        """Read, and return by CPU the queue with the most interrupts there since the last reading.

        A CPU without any is left out, as are devices that are not on a PCI bus. Nothing after `forget`.
        """
        header, *lines = read_text(self._proc / "interrupts").splitlines() or [""]
        cpus = [int(name.removeprefix("CPU")) for name in header.split()]
        last, self._last = self._last, dict(_counts(lines, len(cpus), _network_irqs(self._pci)))
        queues = [queue for queue, counts in self._last.items() if len(last.get(queue, ())) == len(counts)]
        if not queues:
            return {}
        since = np.stack([self._last[queue] - last[queue] for queue in queues])
        return {
            cpu: queues[at]
            for cpu, at, most in zip(cpus, since.argmax(0).tolist(), since.max(0).tolist(), strict=True)
            if most > 0
        }


def _network_irqs(pci: Path) -> frozenset[str]:
    """Return the numbers of the interrupts of network devices, in whatever namespace their interfaces are."""
    devices = [path.parent for path in pci.glob("*/class") if read_text(path).startswith(_NETWORK_CLASS)]
    return frozenset(irq.name for device in devices for irq in device.glob("msi_irqs/*"))


def _counts(lines: list[str], cpus: int, irqs: frozenset[str]) -> Iterator[tuple[DeviceQueue, Array]]:
    for line in lines:
        irq, _, rest = line.strip().partition(":")
        if irq in irqs and len(words := rest.split()) > cpus:
            yield DeviceQueue(int(irq), words[-1]), np.array(words[:cpus], np.int64)
