// SPDX-License-Identifier: Apache-2.0
#include "cpu/value_loss.h"

#include <cstring>

#include "cpu/rows.h"

namespace rlkern {

extern const ValueIsa values_baseline, values_avx2, values_avx512, values_avx512_bf16;

namespace {

const ValueIsa& chosen_values() {
  static const ValueIsa& chosen = []() -> const ValueIsa& {
    const char* name = chosen_isa().name;
#if RLKERN_HAVE_AVX512_BF16
    if (std::strcmp(name, values_avx512_bf16.name) == 0) return values_avx512_bf16;
#endif
#if RLKERN_HAVE_AVX512
    if (std::strcmp(name, values_avx512.name) == 0) return values_avx512;
#endif
#if RLKERN_HAVE_AVX2
    if (std::strcmp(name, values_avx2.name) == 0) return values_avx2;
#endif
    return values_baseline;
  }();
  return chosen;
}

template <class T>
void sweep(const ValueKernels<T>& kernels, ValueKind kind, const ValueLossArguments<T>& a,
           int threads) {
  std::vector<ValueSums> blocks((a.n + kValueBlock - 1) / kValueBlock);
  parallel(blocks.size(), kValueBlock, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i * kValueBlock, end = std::min(a.n, begin + kValueBlock);
      blocks[i] = kernels.block[int(kind)](a, begin, end);
    }
  });
  write_sums(blocks, a.loss, a.metrics);
}

}  // namespace

template <>
void value_loss(ValueKind kind, const ValueLossArguments<float>& a, int threads) {
  sweep(chosen_values().of_float, kind, a, threads);
}

template <>
void value_loss(ValueKind kind, const ValueLossArguments<double>& a, int threads) {
  sweep(chosen_values().of_double, kind, a, threads);
}

}  // namespace rlkern
