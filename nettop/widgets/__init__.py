# SPDX-License-Identifier: Apache-2.0
"""The widgets of the screens: tables, one-line bars, the details pane, and their colours."""
