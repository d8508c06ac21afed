# SPDX-License-Identifier: Apache-2.0
"""What works on this host and why not: facts, hooks, and a self-test that compares nettop with traffic it makes."""
