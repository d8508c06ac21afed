# SPDX-License-Identifier: Apache-2.0
"""Where flows come from: exporters' datagrams, packets of an interface or of the firewall, and conntrack's events."""
