# SPDX-License-Identifier: Apache-2.0
"""What every command that trains shares: settings, run folders, logs, displays and plots."""
