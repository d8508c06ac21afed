# SPDX-License-Identifier: Apache-2.0
"""What a collector of flows answers over HTTP: queries, as ClickHouse does, and what it does itself."""
