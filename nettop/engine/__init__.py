# SPDX-License-Identifier: Apache-2.0
"""The session, the sampler and the bus between sources and frontends."""
