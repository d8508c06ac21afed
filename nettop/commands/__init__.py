# SPDX-License-Identifier: Apache-2.0
"""The subcommands: each reads its own words, builds its settings, and hands over to a frontend."""
