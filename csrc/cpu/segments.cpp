// SPDX-License-Identifier: Apache-2.0
#include "cpu/segments.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace rlkern {

extern const ScanIsa scans_baseline, scans_avx2, scans_avx512, scans_avx512_bf16;

static const ScanIsa& chosen_scans() {
  static const ScanIsa& chosen = [&]() -> const ScanIsa& {
    const char* name = chosen_isa().name;
#if RLKERN_HAVE_AVX512_BF16
    if (std::strcmp(name, scans_avx512_bf16.name) == 0) return scans_avx512_bf16;
#endif
#if RLKERN_HAVE_AVX512
    if (std::strcmp(name, scans_avx512.name) == 0) return scans_avx512;
#endif
#if RLKERN_HAVE_AVX2
    if (std::strcmp(name, scans_avx2.name) == 0) return scans_avx2;
#endif
    return scans_baseline;
  }();
  return chosen;
}

template <>
const ScanKernels<float>& scan_kernels() {
  return chosen_scans().of_float;
}

template <>
const ScanKernels<double>& scan_kernels() {
  return chosen_scans().of_double;
}

void check_bounds(const char* op, const Sequences& all, int64_t steps) {
  if (!all.bounds) return;
  bool ascends = all.bounds[0] == 0 && all.bounds[all.count] == steps;
  for (int64_t i = 0; i < all.count; ++i) ascends &= all.bounds[i] <= all.bounds[i + 1];
  if (ascends) return;
  throw std::invalid_argument(std::string(op) +
                              ": cu_seqlens must rise from 0 to the number of rows " +
                              std::to_string(steps) + ", got " + std::to_string(all.bounds[0]) +
                              " … " + std::to_string(all.bounds[all.count]));
}

}  // namespace rlkern
