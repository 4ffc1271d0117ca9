# SPDX-License-Identifier: Apache-2.0
"""Files of one's own: read, understood by their columns, split, and put into tokens."""
