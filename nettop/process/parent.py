# SPDX-License-Identifier: Apache-2.0
"""Ending together with the process that started this one, also when that was killed."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def signal_at_exit_of_parent(number: int) -> None:
    """Have the kernel send this process a signal once the thread that started it has ended (prctl(2)).

    If that has ended already, there is no signal: compare os.getppid() afterwards.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
