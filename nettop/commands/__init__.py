# SPDX-License-Identifier: Apache-2.0
"""The subcommands: each parses its options, builds its settings and starts a frontend."""
