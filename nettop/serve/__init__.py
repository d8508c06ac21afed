# SPDX-License-Identifier: Apache-2.0
"""The web frontend: metrics for Prometheus, a REST API, a stream of events and a dashboard."""
