# SPDX-License-Identifier: Apache-2.0
"""Plants small faults in rlkern and says which of them no test notices: `make mutants`."""
