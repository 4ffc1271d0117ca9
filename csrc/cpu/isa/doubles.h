// SPDX-License-Identifier: Apache-2.0
// A vector's elements in float64, for sums.
#pragma once

#include "cpu/isa/simd.h"

namespace rlkern::RLKERN_ISA {

// How many vectors of float64 hold one vector's elements.
template <class T>
constexpr int kDoubles = kWidth<T> / kWidth<double>;

// What a comparison leaves: −1 where it is so. Added up, these count.
template <class T>
using Flags = decltype(Vector<T>{} != Vector<T>{});

RLKERN_INLINE void to_doubles(Vec x, DoubleVec* out) {
  out[0] = lower_doubles(x);
  out[1] = upper_doubles(x);
}

RLKERN_INLINE void to_doubles(DoubleVec x, DoubleVec* out) { out[0] = x; }

}  // namespace rlkern::RLKERN_ISA
