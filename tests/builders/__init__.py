# SPDX-License-Identifier: Apache-2.0
"""What several test files build their cases from: sources, recordings, servers, screens."""
