# SPDX-License-Identifier: Apache-2.0
"""nettop: who is using the network, how well, and at what cost."""

__version__ = "0.1.0"


def version_of_build() -> str:
    """Return the version, with the label by which the installer and the packages tell builds of it apart."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        _, plus, label = version("nettop").partition("+")
    except PackageNotFoundError:
        return __version__
    return f"{__version__}{plus}{label}"
