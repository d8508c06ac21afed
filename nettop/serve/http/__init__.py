# SPDX-License-Identifier: Apache-2.0
"""HTTP itself: sockets, connections and their limits, TLS, tokens, and the loop around an application."""
