// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace rlkern {

enum class AdvantageKind : int {
  normalized,
  centered,
  leave_one_out,
  length_weighted,
  max_rl,
  pass_at_k,
  pass_at_k_normalized,
};

// Indices group by group, ids ascending, and where each of the n possible groups begins.
void group_segments(int64_t n, const int64_t* group, int64_t* order, int64_t* offset);

// length is null for the kinds that do not weigh by it.
template <class T>
void group_advantage(int64_t n, const T* reward, const int64_t* order, const int64_t* offset,
                     const T* length, AdvantageKind kind, double eps, int64_t ddof, T* advantage,
                     int threads);

}  // namespace rlkern
