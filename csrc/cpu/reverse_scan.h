// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/segments.h"

namespace rlkern {

template <class T>
void reverse_scan(const Sequences& sequences, const ScanRows<T>& rows, int threads);

}  // namespace rlkern
