// SPDX-License-Identifier: Apache-2.0
#include "cpu/reverse_scan.h"

#include "cpu/rows.h"

namespace rlkern {

template <class T>
void reverse_scan(int64_t rows, int64_t time, const T* bias, const T* decay, T* x, int threads) {
  // The recurrence waits for each product: rows side by side keep the processor busy meanwhile.
  constexpr int64_t kSide = 8;
  const int64_t bundles = (rows + kSide - 1) / kSide;
  parallel(bundles, kSide * time, threads, [&](int64_t begin, int64_t end) {
    for (int64_t bundle = begin; bundle < end; ++bundle) {
      const int64_t first = bundle * kSide, count = std::min(kSide, rows - first);
      T carry[kSide] = {};
      for (int64_t t = time - 1; t >= 0; --t) {
        for (int64_t k = 0; k < count; ++k) {
          const int64_t i = (first + k) * time + t;
          // A decay of 0 cuts the recurrence, also from values that are not finite.
          carry[k] = decay[i] == 0 ? bias[i] : bias[i] + decay[i] * carry[k];
          x[i] = carry[k];
        }
      }
    }
  });
}

template void reverse_scan(int64_t, int64_t, const float*, const float*, float*, int);
template void reverse_scan(int64_t, int64_t, const double*, const double*, double*, int);

}  // namespace rlkern
