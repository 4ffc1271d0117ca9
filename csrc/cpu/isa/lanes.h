// SPDX-License-Identifier: Apache-2.0
// What AVX2 and the baseline both do lane by lane, or by the compiler's vector extension.
#pragma once

#include "cpu/isa/vectors.h"

namespace rlkern::RLKERN_ISA {

RLKERN_INLINE void store(bfloat16* p, Vec x) {
  const UintVec bits = bit_cast<UintVec>(x);
  const UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // as to_bfloat16 does
  const HalfVec half = __builtin_convertvector(rounded, HalfVec);
  std::memcpy(p, &half, sizeof(half));
}

template <class S>
RLKERN_INLINE Vec load_head(const S* p, int64_t n) {
  Vec x = splat(-__builtin_inff());
  for (int64_t i = 0; i < n; ++i) x[i] = to_float(p[i]);
  return x;
}

constexpr float kLowest = -126.0f;

// y·2^n by adding n to y's exponent.
RLKERN_INLINE Vec times_power(Vec y, Vec n, Vec t) {
  const IntVec exponent = __builtin_convertvector(n, IntVec) << 23;
  return t <= kLowest ? Vec{} : bit_cast<Vec>(bit_cast<IntVec>(y) + exponent);
}

}  // namespace rlkern::RLKERN_ISA
