# SPDX-License-Identifier: Apache-2.0
"""The REST API: tables, the stream, traffic, health, and their OpenAPI description."""
