// SPDX-License-Identifier: Apache-2.0
#include "cpu/group_advantage.h"

#include <cmath>

namespace rlkern {

template <class T>
void group_advantage(int64_t n, const T* reward, const int64_t* order, const int64_t* offset,
                     AdvantageKind kind, double eps, int64_t ddof, T* advantage) {
  for (int64_t g = 0; g < n; ++g) {
    const int64_t begin = offset[g], end = offset[g + 1];
    double sum = 0, squares = 0;
    int64_t count = 0;
    for (int64_t k = begin; k < end; ++k) {
      const double r = reward[order[k]];
      if (!std::isnan(r)) sum += r, ++count;
    }
    const double mean = count ? sum / count : 0;
    for (int64_t k = begin; k < end; ++k) {
      const double r = reward[order[k]];
      if (!std::isnan(r)) squares += (r - mean) * (r - mean);
    }
    double factor = 1;
    if (kind == AdvantageKind::normalized) {
      const double deviation = std::sqrt(squares / std::max<int64_t>(count - ddof, 1)) + eps;
      factor = deviation > 0 ? 1 / deviation : 0;
    } else if (kind == AdvantageKind::leave_one_out) {
      factor = double(count) / std::max<int64_t>(count - 1, 1);
    }
    for (int64_t k = begin; k < end; ++k) {
      const double r = reward[order[k]];
      advantage[order[k]] = std::isnan(r) || count < 2 ? T(0) : T((r - mean) * factor);
    }
  }
}

template void group_advantage(int64_t, const float*, const int64_t*, const int64_t*, AdvantageKind,
                              double, int64_t, float*);
template void group_advantage(int64_t, const double*, const int64_t*, const int64_t*, AdvantageKind,
                              double, int64_t, double*);

}  // namespace rlkern
