// SPDX-License-Identifier: Apache-2.0
// The 16-bit floats, one at a time. Whole vectors are converted in cpu/isa.
#pragma once

#include <cstdint>
#include <cstring>

// Inlined without exception: a copy out of line would be one symbol in the objects of several
// instruction sets.
#define RLKERN_INLINE static inline __attribute__((always_inline))
#define RLKERN_INLINE_MEMBER inline __attribute__((always_inline))

namespace rlkern {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class To, class From>
RLKERN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
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

// To the nearest, ties to even. A NaN stays one: rounding could only carry it to an infinity if its
// low half were set, and the NaNs of arithmetic on 16-bit logits have theirs empty.
RLKERN_INLINE bfloat16 to_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
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

}  // namespace rlkern
