# SPDX-License-Identifier: Apache-2.0
"""rlkern inside other trainers; `make test-integrations` runs these."""
