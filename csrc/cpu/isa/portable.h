// SPDX-License-Identifier: Apache-2.0
// What the other headers have intrinsics for, by the compiler's vector extension: for any
// processor.
#pragma once

#include "cpu/isa/lanes.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace rlkern::RLKERN_ISA {

#if defined(__SSE2__)
RLKERN_INLINE Vec maximum(Vec a, Vec b) {
  return bit_cast<Vec>(_mm_max_ps(bit_cast<__m128>(a), bit_cast<__m128>(b)));
}
#else
RLKERN_INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
#endif

RLKERN_INLINE float horizontal_max(Vec x) {
  float result = x[0];
  for (int i = 1; i < kLanes; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

RLKERN_INLINE float horizontal_sum(Vec x) {
  float result = x[0];
  for (int i = 1; i < kLanes; ++i) result += x[i];
  return result;
}

RLKERN_INLINE Vec load(const bfloat16* p) {
  HalfVec half;
  std::memcpy(&half, p, sizeof(half));
  return bit_cast<Vec>(__builtin_convertvector(half, UintVec) << 16);
}

RLKERN_INLINE Vec load(const float16* p) {
  Vec x;
  for (int i = 0; i < kLanes; ++i) x[i] = to_float(p[i]);
  return x;
}

RLKERN_INLINE void store(float16* p, Vec x) {
  for (int i = 0; i < kLanes; ++i) p[i] = to_float16(x[i]);
}

template <class S>
RLKERN_INLINE void store_head(S* p, Vec x, int64_t n) {
  S buffer[kLanes];
  store(buffer, x);
  std::memcpy(p, buffer, n * sizeof(S));
}

template <class T>
RLKERN_INLINE void stream(T* p, Vector<T> x) {
  store(p, x);
}

RLKERN_INLINE Vec floor_of(Vec t) {
  const Vec nearest = t + kRoundsToWhole - kRoundsToWhole;
  return nearest > t ? nearest - 1.0f : nearest;
}

RLKERN_INLINE Vec fraction_of(Vec t) { return t - floor_of(t); }

RLKERN_INLINE Vec times_power_of_floor(Vec y, Vec t) { return times_power(y, floor_of(t), t); }

RLKERN_INLINE Vec load_flags(const uint8_t* flags, float) {
  return Vec{float(flags[0]), float(flags[1]), float(flags[2]), float(flags[3])};
}

RLKERN_INLINE DoubleVec lower_doubles(Vec x) { return DoubleVec{x[0], x[1]}; }

RLKERN_INLINE DoubleVec upper_doubles(Vec x) { return DoubleVec{x[2], x[3]}; }

}  // namespace rlkern::RLKERN_ISA
