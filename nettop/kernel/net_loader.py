# SPDX-License-Identifier: Apache-2.0
"""Loading programs for network interfaces, which takes CAP_NET_ADMIN. Attaching what is loaded takes no capability.

One thread keeps that capability for lenses that are opened when the others have dropped it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from nettop.kernel import privileges
from nettop.kernel.facts import Host
from nettop.kernel.program import Loader

_opened: list[ThreadPoolExecutor] = []


@contextmanager
def open_net_loader() -> Iterator[None]:
    """Start the thread now, for the loaders that are made before this is left."""
    thread = ThreadPoolExecutor(1, "net-loader")
    thread.submit(privileges.keep_only, privileges.for_loading(privileges.LOADING_NET)).result()
    _opened.append(thread)
    try:
        yield
    finally:
        _opened.pop().shutdown()


def net_loader() -> Loader:
    """Return a loader that may load such programs: a child of that thread, or of the calling one where there
    is none.

    Raises PermissionMissing without the capabilities that it takes.
    """
    return _opened[0].submit(_loader).result() if _opened else _loader()


def _loader() -> Loader:
    Host().require_capabilities(privileges.LOADING_NET, "programs for network interfaces")
    return Loader()
