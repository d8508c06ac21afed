# SPDX-License-Identifier: Apache-2.0
"""HTTP endpoints of the flow collector: ClickHouse-compatible queries, its own state, and ingestion."""
