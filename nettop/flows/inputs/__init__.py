# SPDX-License-Identifier: Apache-2.0
"""Sources of flows: exporters' datagrams, packets of an interface or the firewall, and conntrack events."""
