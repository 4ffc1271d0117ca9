// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace rlkern {

enum class AdvantageKind : int { normalized, centered, leave_one_out };

template <class T>
void group_advantage(int64_t n, const T* reward, const int64_t* order, const int64_t* offset,
                     AdvantageKind kind, double eps, int64_t ddof, T* advantage);

}  // namespace rlkern
