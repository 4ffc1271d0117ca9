// SPDX-License-Identifier: Apache-2.0
#include "cpu/reverse_scan.h"

#include "bindings/sequences.h"

namespace rlkern {

static void bind_reverse_scan(const Tensor& bias, const Tensor& decay, const Tensor& cu_seqlens,
                              const Tensor& x, int threads) {
  const Sequences all = sequences(bias, cu_seqlens);
  const int64_t n = bias.count();
  with_accumulator(bias.is_double(), [&](auto zero) {
    using T = decltype(zero);
    check_bounds("reverse_scan", all, n);
    reverse_scan<T>(all,
                    {bias.elements<T>("bias", n), decay.elements<T>("decay", n),
                     x.elements<T>("x", n), exceeds_caches(n * sizeof(T))},
                    threads);
  });
}

RLKERN_BINDINGS(m) {
  define(m, "reverse_scan", bind_reverse_scan, "bias", "decay", "cu_seqlens", "x", "threads");
}

}  // namespace rlkern
