// SPDX-License-Identifier: Apache-2.0
// What the compiler's vector extension cannot express well, for AVX-512.
#pragma once

#include <immintrin.h>

#include "cpu/isa/vectors.h"

namespace rlkern::RLKERN_ISA {

RLKERN_INLINE __m512 to_native(Vec x) { return bit_cast<__m512>(x); }
RLKERN_INLINE __m512d to_native(DoubleVec x) { return bit_cast<__m512d>(x); }
RLKERN_INLINE Vec from_native(__m512 x) { return bit_cast<Vec>(x); }
RLKERN_INLINE Vec from_native(__m512i bits) { return bit_cast<Vec>(bits); }
RLKERN_INLINE DoubleVec from_native(__m512d x) { return bit_cast<DoubleVec>(x); }

RLKERN_INLINE __m256i load_16_bits(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

RLKERN_INLINE Vec maximum(Vec a, Vec b) {
  return from_native(_mm512_max_ps(to_native(a), to_native(b)));
}

RLKERN_INLINE float horizontal_max(Vec x) { return _mm512_reduce_max_ps(to_native(x)); }

RLKERN_INLINE float horizontal_sum(Vec x) { return _mm512_reduce_add_ps(to_native(x)); }

RLKERN_INLINE Vec load(const bfloat16* p) {
  return from_native(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_16_bits(p)), 16));
}

#if defined(__AVX512BF16__)
RLKERN_INLINE void store(bfloat16* p, Vec x) {
  const __m256bh half = _mm512_cvtneps_pbh(to_native(x));
  std::memcpy(p, &half, sizeof(half));
}
#else
RLKERN_INLINE void store(bfloat16* p, Vec x) {
  const UintVec bits = bit_cast<UintVec>(x);
  const UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // as to_bfloat16 does
  const HalfVec half = __builtin_convertvector(rounded, HalfVec);
  std::memcpy(p, &half, sizeof(half));
}
#endif

RLKERN_INLINE Vec load(const float16* p) { return from_native(_mm512_cvtph_ps(load_16_bits(p))); }

RLKERN_INLINE void store(float16* p, Vec x) {
  const __m256i half = _mm512_cvtps_ph(to_native(x), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &half, sizeof(half));
}

RLKERN_INLINE Vec head_of(Vec x, __mmask16 head) {
  return from_native(_mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), head, to_native(x)));
}

RLKERN_INLINE __mmask16 first(int64_t n) { return __mmask16((1u << n) - 1); }

RLKERN_INLINE Vec load_head(const float* p, int64_t n) {
  return from_native(_mm512_mask_loadu_ps(_mm512_set1_ps(-__builtin_inff()), first(n), p));
}

template <class S>
RLKERN_INLINE Vec load_head(const S* p, int64_t n) {
  S buffer[kLanes];
  const __m256i half = _mm256_maskz_loadu_epi16(first(n), p);
  std::memcpy(buffer, &half, sizeof(buffer));
  return head_of(load(buffer), first(n));
}

RLKERN_INLINE void store_head(float* p, Vec x, int64_t n) {
  _mm512_mask_storeu_ps(p, first(n), to_native(x));
}

template <class S>
RLKERN_INLINE void store_head(S* p, Vec x, int64_t n) {
  S buffer[kLanes];
  store(buffer, x);
  _mm256_mask_storeu_epi16(p, first(n), load_16_bits(buffer));
}

template <class T>
RLKERN_INLINE void stream(T* p, Vector<T> x) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bit_cast<__m512i>(x));
}

constexpr float kLowest = -160.0f;

RLKERN_INLINE Vec fraction_of(Vec t) {
  constexpr int kFloor = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  return from_native(_mm512_reduce_ps(to_native(t), kFloor));
}

// The lanes beyond a row's end, bounded, are left out: where a scaling underflows the processor
// takes a hundred cycles.
RLKERN_INLINE Vec times_power_of_floor(Vec y, Vec t) {
  const __mmask16 remains = _mm512_cmp_ps_mask(to_native(t), _mm512_set1_ps(kLowest), _CMP_NLE_UQ);
  return from_native(_mm512_maskz_scalef_ps(remains, to_native(y), to_native(t)));
}

RLKERN_INLINE Vec load_flags(const uint8_t* flags, float) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(flags));
  return from_native(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
}

RLKERN_INLINE DoubleVec lower_doubles(Vec x) {
  return from_native(_mm512_cvtps_pd(_mm512_castps512_ps256(to_native(x))));
}

RLKERN_INLINE DoubleVec upper_doubles(Vec x) {
  return from_native(_mm512_cvtps_pd(_mm512_extractf32x8_ps(to_native(x), 1)));
}

}  // namespace rlkern::RLKERN_ISA
