# SPDX-License-Identifier: Apache-2.0
"""Self-test traffic: processes and network namespaces that move known numbers of bytes."""
