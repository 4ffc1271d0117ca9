// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, RLKERN_ISA. One read of a sequence and its mask.
#include "cpu/isa.h"
#include "cpu/isa/doubles.h"

namespace rlkern::RLKERN_ISA {
namespace {

constexpr int kSums = 8;

// Where the mask counts.
template <class T>
RLKERN_INLINE auto counts(const bool* mask) {
  return load_flags(reinterpret_cast<const uint8_t*>(mask), T{}) != Vector<T>{};
}

template <class T>
MaskedSum sum(const T* x, const bool* mask, int64_t n) {
  constexpr int kStep = kWidth<T> < kSums ? kSums : kWidth<T>, kWide = kWidth<double>;
  DoubleVec sums[kSums / kWide] = {};
  Flags<T> counted = {};
  int64_t j = 0;
  for (; j + kStep <= n; j += kStep) {
    for (int i = 0; i < kStep; i += kWidth<T>) {
      const auto here = counts<T>(mask + j + i);
      DoubleVec parts[kDoubles<T>];
      to_doubles(here ? load(x + j + i) : Vector<T>{}, parts);
      for (int k = 0; k < kDoubles<T>; ++k) sums[(i / kWide + k) % (kSums / kWide)] += parts[k];
      counted += here;
    }
  }
  double lane[kSums];
  for (int k = 0; k < kSums; k += kWide) store(lane + k, sums[k / kWide]);
  int64_t count = 0;
  for (int k = 0; k < kWidth<T>; ++k) count -= counted[k];
  for (int k = 0; j < n; ++j, ++k) {
    lane[k % kSums] += mask[j] ? double(x[j]) : 0.0;
    count += mask[j];
  }
  return {((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7])),
          count};
}

template <class T>
void spread(T x, const bool* mask, int64_t n, T* out) {
  const Vector<T> everywhere = splat(x);
  int64_t j = 0;
  for (; j + kWidth<T> <= n; j += kWidth<T>) {
    store(out + j, counts<T>(mask + j) ? everywhere : Vector<T>{});
  }
  for (; j < n; ++j) out[j] = mask[j] ? x : T(0);
}

}  // namespace

const PerType<SegmentKernels> segment_kernels = {{sum<float>, spread<float>},
                                                 {sum<double>, spread<double>}};

}  // namespace rlkern::RLKERN_ISA
