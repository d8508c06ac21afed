# SPDX-License-Identifier: Apache-2.0
"""The network as the kernel shows it without BPF: netlink, sockets, network namespaces."""
