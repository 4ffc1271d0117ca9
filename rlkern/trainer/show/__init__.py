# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a run: terminal, plots and the numbers of a step."""
