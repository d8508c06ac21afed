# SPDX-License-Identifier: Apache-2.0
"""Drop reasons of the running kernel: the arguments of the tracepoint kfree_skb and the names of reasons.

The numbers differ between kernels, so the names come from BTF.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

from nettop.kernel.bpf.btf import Btf, MissingInKernel

NO_REASON = (1 << 32) - 1
"""Number used where there is no reason."""

_SUBSYSTEM_SHIFT = 16
_HAS_REASON, _HAS_RECEIVER = 3, 4


@dataclass(frozen=True)
class DropReasons:
    """The number of arguments of the tracepoint kfree_skb, and the names of reasons and subsystems by number.

    The tracepoint passes a reason since Linux 5.17, and the receiving socket since 6.11. The upper half of a reason is
    its subsystem, 0 for the core (include/net/dropreason.h); BTF has no names for the other subsystems' reasons.
    """

    arguments: int
    core: Mapping[int, str] = field(default_factory=dict)
    subsystems: Mapping[int, str] = field(default_factory=dict)

    @property
    def has_reasons(self) -> bool:
        """Whether the kernel reports a reason."""
        return self.arguments >= _HAS_REASON

    @property
    def has_receiver(self) -> bool:
        """Whether the kernel reports the receiving socket."""
        return self.arguments >= _HAS_RECEIVER

    def number(self, name: str) -> int:
        """Return the number of a core reason; NO_REASON if this kernel lacks it."""
        return next((number for number, known in self.core.items() if known == name), NO_REASON)

    def name(self, number: int) -> str | None:
        """Return a reason's name (`NETFILTER_DROP`), or its subsystem and number if it has none (`OPENVSWITCH 3`).

        Return None if the kernel reports no reasons.
        """
        if not self.has_reasons:
            return None
        if number in self.core:
            return self.core[number]
        subsystem, rest = number >> _SUBSYSTEM_SHIFT, number & (1 << _SUBSYSTEM_SHIFT) - 1
        if not subsystem:
            return str(rest)
        return f"{self.subsystems.get(subsystem, f'subsystem {subsystem}')} {rest}"


def read_drop_reasons() -> DropReasons:
    """Read the running kernel's reasons. Raise MissingInKernel if BTF does not describe the tracepoint."""
    with closing(Btf()) as btf:
        return DropReasons(
            btf.arguments("kfree_skb"),
            _names(btf, "skb_drop_reason", "SKB_DROP_REASON_", "SKB_"),
            _names(btf, "skb_drop_reason_subsys", "SKB_DROP_REASON_SUBSYS_"),
        )


def _names(btf: Btf, enum: str, *prefixes: str) -> dict[int, str]:
    """Return the enum's names without the first matching prefix: SKB_DROP_REASON_SKB_CSUM becomes SKB_CSUM.

    Return none if the kernel lacks the enum.
    """
    try:
        names = btf.enumerators(enum)
    except MissingInKernel:
        return {}
    return {number: re.sub(rf"\A(?:{'|'.join(prefixes)})", "", name) for number, name in names.items()}
