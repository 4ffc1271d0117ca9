// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace rlkern {

template <class T>
void reverse_scan(int64_t rows, int64_t time, const T* bias, const T* decay, T* x, int threads);

}  // namespace rlkern
