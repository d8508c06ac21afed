# SPDX-License-Identifier: Apache-2.0
"""Decoders of sFlow, NetFlow and IPFIX, for many datagrams at a time."""
