// SPDX-License-Identifier: Apache-2.0
// Vectors of float32 for whatever instruction set this translation unit is compiled for. Arithmetic
// is the compiler's vector extension; only what it cannot express well is an intrinsic. Everything
// has internal linkage: the same names are compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rlkern {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UintVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

#define RLKERN_INLINE static inline __attribute__((always_inline))
#define RLKERN_INLINE_MEMBER inline __attribute__((always_inline))

template <class To, class From>
RLKERN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

RLKERN_INLINE Vec splat(float x) { return Vec{} + x; }

// The larger lane by lane; b where either is NaN.
RLKERN_INLINE Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

RLKERN_INLINE float horizontal_max(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float result = x[0];
  for (int i = 1; i < kLanes; ++i) result = x[i] > result ? x[i] : result;
  return result;
#endif
}

RLKERN_INLINE float horizontal_sum(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float result = x[0];
  for (int i = 1; i < kLanes; ++i) result += x[i];
  return result;
#endif
}

RLKERN_INLINE Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}

RLKERN_INLINE void store(float* p, Vec x) { std::memcpy(p, &x, sizeof(x)); }

RLKERN_INLINE Vec load(const bfloat16* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  HalfVec half;
  std::memcpy(&half, p, sizeof(half));
  return bit_cast<Vec>(__builtin_convertvector(half, UintVec) << 16);
#endif
}

// To the nearest, ties to even. A NaN stays one: rounding could only carry it to an infinity if its
// low half were set, and the NaNs of arithmetic on 16-bit logits have theirs empty.
RLKERN_INLINE void store(bfloat16* p, Vec x) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh((__m512)x);
  std::memcpy(p, &half, sizeof(half));
#else
  const UintVec bits = bit_cast<UintVec>(x);
  const UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const HalfVec half = __builtin_convertvector(rounded, HalfVec);
  std::memcpy(p, &half, sizeof(half));
#endif
}

RLKERN_INLINE float to_float(float x) { return x; }

RLKERN_INLINE float to_float(bfloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

RLKERN_INLINE float to_float(float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  // Exponents are moved by a product, which also makes subnormals right; inf and NaN keep theirs.
  float magnitude = bit_cast<float>(rest << 13) * 0x1p112f;
  if (rest >= 0x7c00) magnitude = bit_cast<float>((rest << 13) | 0x7f800000u);
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | sign);
}

RLKERN_INLINE float16 to_float16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = (bits >> 16) & 0x8000,
                 rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (rest >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
  if (rest < 0x38800000) {  // subnormal: adding 0.5 lets the hardware round at the right digit
    const float shifted = bit_cast<float>(rest) + 0.5f;
    return {uint16_t(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000))};
  }
  return {uint16_t(sign | ((rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13))};
}

RLKERN_INLINE Vec load(const float16* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec x;
  for (int i = 0; i < kLanes; ++i) x[i] = to_float(p[i]);
  return x;
#endif
}

RLKERN_INLINE void store(float16* p, Vec x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = to_float16(x[i]);
#endif
}

// The first n < kLanes elements, the rest −inf: as if the row went on with tokens of probability 0.
template <class S>
RLKERN_INLINE Vec load_head(const S* p, int64_t n) {
#if defined(__AVX512F__)
  const __mmask16 head = __mmask16((1u << n) - 1);
  if constexpr (sizeof(S) == 4) {
    return (Vec)_mm512_mask_loadu_ps(_mm512_set1_ps(-__builtin_inff()), head, p);
  } else {
    uint16_t buffer[kLanes];
    _mm256_storeu_si256((__m256i*)buffer, _mm256_maskz_loadu_epi16(head, p));
    const Vec x = load(reinterpret_cast<const S*>(buffer));
    return (Vec)_mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), head, (__m512)x);
  }
#else
  Vec x = splat(-__builtin_inff());
  for (int64_t i = 0; i < n; ++i) x[i] = to_float(p[i]);
  return x;
#endif
}

template <class S>
RLKERN_INLINE void store_head(S* p, Vec x, int64_t n) {
  S buffer[kLanes];
  store(buffer, x);
#if defined(__AVX512F__)
  const __mmask16 head = __mmask16((1u << n) - 1);
  if constexpr (sizeof(S) == 4) {
    _mm512_mask_storeu_ps(p, head, (__m512)x);
  } else {
    _mm256_mask_storeu_epi16(p, head, _mm256_loadu_si256((const __m256i*)buffer));
  }
#else
  std::memcpy(p, buffer, n * sizeof(S));
#endif
}

// Where 2^t is 0 in float32 (with subnormals flushed where no instruction scales to them).
#if defined(__AVX512F__)
constexpr float kLowest = -160.0f;
#else
constexpr float kLowest = -126.0f;
#endif

// t, with −inf replaced by a number whose power is 0: 0·t is then 0 and not NaN. NaN stays.
RLKERN_INLINE Vec bounded(Vec t) { return maximum(splat(kLowest), t); }

// The largest whole number up to t.
RLKERN_INLINE Vec floor_of(Vec t) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (Vec)_mm256_floor_ps((__m256)t);
#else
  const Vec nearest = t + 12582912.0f - 12582912.0f;  // 1.5·2²³: the sum rounds to a whole number
  return nearest > t ? nearest - 1.0f : nearest;
#endif
}

// 2^t for bounded t ≤ 0, and exactly 1 at 0: a token of probability 1 has log-probability 0.
// Relative error under 2e-7 with DEGREE 5 and 3e-6 with DEGREE 4, which is enough where the result
// is rounded to 16 bits. Coefficients: iteratively reweighted least squares on [0, 1), constant
// term fixed.
template <int DEGREE>
RLKERN_INLINE Vec power_of_two(Vec t) {
#if defined(__AVX512F__)
  const Vec r = (Vec)_mm512_reduce_ps((__m512)t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
  const Vec n = floor_of(t), r = t - n;
#endif
  Vec y;
  if (DEGREE == 5) {
    y = r * 0x1.e975p-10f + 0x1.277854p-7f;
    y = y * r + 0x1.c91ce6p-5f;
    y = y * r + 0x1.ebdb56p-3f;
    y = y * r + 0x1.62e4bap-1f;
  } else {
    y = r * 0x1.b7f736p-7f + 0x1.abf866p-5f;
    y = y * r + 0x1.ee2452p-3f;
    y = y * r + 0x1.62d6c6p-1f;
  }
  y = y * r + 1.0f;
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)y, (__m512)t);  // by the floor of t
#else
  const IntVec exponent = __builtin_convertvector(n, IntVec) << 23;
  return t <= kLowest ? Vec{} : bit_cast<Vec>(bit_cast<IntVec>(y) + exponent);
#endif
}

// tanh(y) = m / (m + 2), m = e^{2y} − 1 = 2^n·(2^r − 1) + (2^n − 1) with whole n: relative error
// under 2e-7, also near 0, where e^{2y} − 1 would cancel. Coefficients as above, on [−½, ½].
RLKERN_INLINE Vec tangent(Vec y) {
  Vec t = maximum(splat(-40.0f), y * 2.88539008f);
  t = t > 40.0f ? splat(40.0f) : t;
  const Vec n = t + 12582912.0f - 12582912.0f, r = t - n;
  Vec q = r * 0x1.4308fap-13f + 0x1.5f07b4p-10f;
  q = q * r + 0x1.3b2ba0p-7f;
  q = q * r + 0x1.c6af6ep-5f;
  q = q * r + 0x1.ebfbdep-3f;
  q = q * r + 0x1.62e430p-1f;
  const Vec s = bit_cast<Vec>((__builtin_convertvector(n, IntVec) + 127) << 23);
  const Vec m = s * (q * r) + (s - 1.0f);
  return m / (m + 2.0f);
}

}  // namespace
}  // namespace rlkern
