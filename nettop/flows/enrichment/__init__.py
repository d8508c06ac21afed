# SPDX-License-Identifier: Apache-2.0
"""What files know of a flow's addresses and interfaces: AS, country, names of networks and of interfaces."""
