// SPDX-License-Identifier: Apache-2.0
// What the compiler's vector extension cannot express well, for AVX2 with FMA and F16C.
#pragma once

#include <immintrin.h>

#include "cpu/isa/lanes.h"

namespace rlkern::RLKERN_ISA {

RLKERN_INLINE __m256 to_native(Vec x) { return bit_cast<__m256>(x); }
RLKERN_INLINE Vec from_native(__m256 x) { return bit_cast<Vec>(x); }
RLKERN_INLINE Vec from_native(__m256i bits) { return bit_cast<Vec>(bits); }
RLKERN_INLINE DoubleVec from_native(__m256d x) { return bit_cast<DoubleVec>(x); }

RLKERN_INLINE __m128i load_16_bits(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}

RLKERN_INLINE Vec maximum(Vec a, Vec b) {
  return from_native(_mm256_max_ps(to_native(a), to_native(b)));
}

// By halves: a chain over the lanes would take longer than the sweep of a small row.
RLKERN_INLINE float horizontal_max(Vec x) {
  const __m128 four =
      _mm_max_ps(_mm256_castps256_ps128(to_native(x)), _mm256_extractf128_ps(to_native(x), 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

RLKERN_INLINE float horizontal_sum(Vec x) {
  const __m128 four =
      _mm_add_ps(_mm256_castps256_ps128(to_native(x)), _mm256_extractf128_ps(to_native(x), 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

RLKERN_INLINE Vec load(const bfloat16* p) {
  return from_native(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16_bits(p)), 16));
}

RLKERN_INLINE Vec load(const float16* p) { return from_native(_mm256_cvtph_ps(load_16_bits(p))); }

RLKERN_INLINE void store(float16* p, Vec x) {
  const __m128i half = _mm256_cvtps_ph(to_native(x), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &half, sizeof(half));
}

// The first n lanes.
RLKERN_INLINE __m256i first(int64_t n) {
  alignas(64) static constexpr int32_t kOnes[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kOnes + kLanes - n));
}

RLKERN_INLINE Vec load_head(const float* p, int64_t n) {
  const __m256 rest = _mm256_set1_ps(-__builtin_inff()), head = _mm256_castsi256_ps(first(n));
  return from_native(_mm256_blendv_ps(rest, _mm256_maskload_ps(p, first(n)), head));
}

RLKERN_INLINE void store_head(float* p, Vec x, int64_t n) {
  _mm256_maskstore_ps(p, first(n), to_native(x));
}

template <class S>
RLKERN_INLINE void store_head(S* p, Vec x, int64_t n) {
  S buffer[kLanes];
  store(buffer, x);
  std::memcpy(p, buffer, n * sizeof(S));
}

template <class T>
RLKERN_INLINE void stream(T* p, Vector<T> x) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(x));
}

RLKERN_INLINE Vec floor_of(Vec t) { return from_native(_mm256_floor_ps(to_native(t))); }

RLKERN_INLINE Vec fraction_of(Vec t) { return t - floor_of(t); }

RLKERN_INLINE Vec times_power_of_floor(Vec y, Vec t) { return times_power(y, floor_of(t), t); }

RLKERN_INLINE Vec load_flags(const uint8_t* flags, float) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(flags));
  return from_native(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
}

RLKERN_INLINE DoubleVec lower_doubles(Vec x) {
  return from_native(_mm256_cvtps_pd(_mm256_castps256_ps128(to_native(x))));
}

RLKERN_INLINE DoubleVec upper_doubles(Vec x) {
  return from_native(_mm256_cvtps_pd(_mm256_extractf128_ps(to_native(x), 1)));
}

}  // namespace rlkern::RLKERN_ISA
