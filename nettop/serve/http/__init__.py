# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: sockets, connections and their limits, TLS, tokens, and the event loop."""
