# SPDX-License-Identifier: Apache-2.0
"""Why tests may be skipped where the whole check runs. Any other reason fails it, as nothing would have been tested."""

from __future__ import annotations

import re
from collections.abc import Iterable

ONLY_HERE = "EXPECTED_SKIPS_ONLY"
"""The environment variable that has pytest fail where a test is skipped for another reason."""

REASONS = {
    r"^this kernel has no (vlan|qinq|gre|ipip|sit|ip6tnl|geneve) device": "it is built without; others have them",
    r"^unowned: the kernel refuses it": "a machine may forbid the walk over socket storage; a virtual machine has it",
    r"^(walk|iter/task_file): the kernel refuses": "helpers may refuse sockets of descriptors; elsewhere not",
    r"^routes: the kernel refuses it": "no functions can be hooked; in a virtual machine they can",
    r"\b(fexit|fentry|kretprobe|kprobe)/": "no functions can be hooked; in a virtual machine they can",
    r"^this kernel lets no program see (UDP's reads|who sends)": "as above",
    r"CONFIG_IRQ_TIME_ACCOUNTING": "few kernels are built with it",
    r"^needs node and npm": "Debian's are hundreds of packages, and only types and schemas are checked by them",
    r"^mounts file systems, which takes root$": "where a user runs the pure tests; as root they do not skip it",
    r"^capabilities held in a user namespace load no BPF programs$": "on any kernel",
}
"""What they say, and why that is accepted."""


def unexpected(reasons: Iterable[str]) -> list[str]:
    """The reasons that are in no list."""
    return sorted({reason for reason in reasons if not any(re.search(known, reason) for known in REASONS)})
