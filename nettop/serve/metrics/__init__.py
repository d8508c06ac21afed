# SPDX-License-Identifier: Apache-2.0
"""What is counted since serving began, as series with names for Prometheus, and as totals of interfaces."""
