# SPDX-License-Identifier: Apache-2.0
"""Totals since serving started: series for Prometheus, and traffic of interfaces."""
