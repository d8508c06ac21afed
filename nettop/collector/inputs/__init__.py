# SPDX-License-Identifier: Apache-2.0
"""Sources of flows: exporters' datagrams, and packets of an interface."""
