# SPDX-License-Identifier: Apache-2.0
"""Loading of programs for network interfaces, which needs CAP_NET_ADMIN. Attaching them needs no capability.

One thread keeps that capability for lenses opened after the other threads have dropped it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from nettop.kernel.bpf.program import Loader
from nettop.kernel.host import privileges
from nettop.kernel.host.facts import Host


@contextmanager
def open_net_loader(host: Host) -> Iterator[None]:
    """Start the privileged thread now, for loaders created inside this context."""
    host.kept.net_loader = thread = ThreadPoolExecutor(1, "net-loader")
    thread.submit(privileges.keep_only, privileges.for_loading(privileges.LOADING_NET)).result()
    try:
        yield
    finally:
        host.kept.net_loader = None
        thread.shutdown()


def net_loader(host: Host) -> Loader:
    """Return a loader for these programs: a child of the thread of `open_net_loader`, or else of the calling thread.

    Raises PermissionMissing without the necessary capabilities.
    """

    def loader() -> Loader:
        host.require_capabilities(privileges.LOADING_NET, "programs for network interfaces")
        return Loader()

    return loader() if host.kept.net_loader is None else host.kept.net_loader.submit(loader).result()
