# SPDX-License-Identifier: Apache-2.0
"""Decodes sFlow, NetFlow and IPFIX, many datagrams at a time."""
