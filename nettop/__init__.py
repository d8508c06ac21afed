# SPDX-License-Identifier: Apache-2.0
"""nettop: who is using the network, how well, and at what cost."""

__version__ = "0.1.0"
