# SPDX-License-Identifier: Apache-2.0
"""Diagnosis of what works on this host: facts, hooks, and a self-test that compares nettop with known traffic."""
