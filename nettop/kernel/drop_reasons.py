# SPDX-License-Identifier: Apache-2.0
"""What the running kernel reports of dropped packets: the arguments of kfree_skb, and the names of its reasons.

The numbers differ between kernels, so the names come from BTF.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

from nettop.kernel.btf import Btf, MissingInKernel

NO_REASON = (1 << 32) - 1
"""A number that no reason has."""

_SUBSYSTEM_SHIFT = 16
_HAS_REASON, _HAS_RECEIVER = 3, 4


@dataclass(frozen=True)
class DropReasons:
    """How many arguments the tracepoint kfree_skb has, and the names of reasons and subsystems by their numbers.

    From Linux 5.17 on it has a reason, from 6.11 on the receiving socket. The upper half of a reason is the
    subsystem that it belongs to, 0 for the core (include/net/dropreason.h); the other subsystems' reasons have no
    names in BTF.
    """

    arguments: int
    core: Mapping[int, str] = field(default_factory=dict)
    subsystems: Mapping[int, str] = field(default_factory=dict)

    @property
    def has_reasons(self) -> bool:
        """Whether the kernel gives a reason."""
        return self.arguments >= _HAS_REASON

    @property
    def has_receiver(self) -> bool:
        """Whether the kernel gives the receiving socket."""
        return self.arguments >= _HAS_RECEIVER

    def number(self, name: str) -> int:
        """The number of a reason of the core; NO_REASON where this kernel lacks it."""
        return next((number for number, known in self.core.items() if known == name), NO_REASON)

    def name(self, number: int) -> str | None:
        """The name of a reason, `NETFILTER_DROP`; the subsystem and number of one without, `OPENVSWITCH 3`.

        None where the kernel gives no reasons.
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
    """The reasons of the running kernel. Raises MissingInKernel where BTF does not describe the tracepoint."""
    with closing(Btf()) as btf:
        return DropReasons(
            btf.arguments("kfree_skb"),
            _names(btf, "skb_drop_reason", "SKB_DROP_REASON_", "SKB_"),
            _names(btf, "skb_drop_reason_subsys", "SKB_DROP_REASON_SUBSYS_"),
        )


def _names(btf: Btf, enum: str, *prefixes: str) -> dict[int, str]:
    """The enum's names without these prefixes; none where the kernel lacks the enum."""
    try:
        names = btf.enumerators(enum)
    except MissingInKernel:
        return {}
    return {number: _without_prefix(name, prefixes) for number, name in names.items()}


def _without_prefix(name: str, prefixes: tuple[str, ...]) -> str:
    """Return the name without the first of the prefixes that it has: SKB_DROP_REASON_SKB_CSUM is SKB_CSUM."""
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return name.removeprefix(prefix)
