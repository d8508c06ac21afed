# SPDX-License-Identifier: Apache-2.0
"""What screens are made of: the table, one-line bars, the pane of details, and their colours."""
