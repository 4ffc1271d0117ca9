// SPDX-License-Identifier: Apache-2.0
// Vectors of float32 for whatever instruction set this object is compiled for. Arithmetic is the
// compiler's vector extension; only what it cannot express well is an intrinsic, in one header per
// set. Each of them has
//   maximum(a, b)         the larger lane by lane; b where either is NaN
//   horizontal_max, horizontal_sum
//   load, store           of 16-bit floats; stores round to the nearest, ties to even
//   load_head(p, n)       the first n < kLanes elements, the rest −inf: as if the row went on with
//                         tokens of probability 0
//   store_head(p, x, n)
//   stream(p, x)          a store past the caches, to an aligned place, where there is one
//   kLowest               where 2^t is 0 in float32 (with subnormals flushed where no instruction
//                         scales to them)
//   fraction_of(t)        t less the largest whole number up to t
//   times_power_of_floor(y, t)  y times 2 to the largest whole number up to t
//   load_flags(p, T)      1 where a byte is 1, else 0 (the compiler would convert one by one)
//   lower_doubles(x), upper_doubles(x)  either half in float64
#pragma once

#if defined(__AVX512F__)
#include "cpu/isa/avx512.h"
#elif defined(__AVX2__)
#include "cpu/isa/avx2.h"
#else
#include "cpu/isa/portable.h"
#endif

namespace rlkern::RLKERN_ISA {

RLKERN_INLINE DoubleVec load_flags(const uint8_t* flags, double) {
  DoubleVec x = {};
  for (int i = 0; i < kWidth<double>; ++i) x[i] = flags[i];
  return x;
}

// t, with −inf replaced by a number whose power is 0: 0·t is then 0 and not NaN. NaN stays.
RLKERN_INLINE Vec bounded(Vec t) { return maximum(splat(kLowest), t); }

// 2^t for bounded t ≤ 0, and exactly 1 at 0: a token of probability 1 has log-probability 0.
// Relative error under 2e-7 with DEGREE 5 and 3e-6 with DEGREE 4, which is enough where the result
// is rounded to 16 bits. Coefficients: iteratively reweighted least squares on [0, 1), constant
// term fixed.
template <int DEGREE>
RLKERN_INLINE Vec power_of_two(Vec t) {
  const Vec r = fraction_of(t);
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
  return times_power_of_floor(y, t);
}

// tanh(y) = m / (m + 2), m = e^{2y} − 1 = 2^n·(2^r − 1) + (2^n − 1) with whole n: relative error
// under 2e-7, also near 0, where e^{2y} − 1 would cancel. Coefficients as above, on [−½, ½].
RLKERN_INLINE Vec tangent(Vec y) {
  constexpr float kTwoLog2E = 2.88539008f, kSaturated = 40.0f;
  Vec t = maximum(splat(-kSaturated), y * kTwoLog2E);
  t = t > kSaturated ? splat(kSaturated) : t;
  const Vec n = t + kRoundsToWhole - kRoundsToWhole, r = t - n;
  Vec q = r * 0x1.4308fap-13f + 0x1.5f07b4p-10f;
  q = q * r + 0x1.3b2ba0p-7f;
  q = q * r + 0x1.c6af6ep-5f;
  q = q * r + 0x1.ebfbdep-3f;
  q = q * r + 0x1.62e430p-1f;
  const Vec s = bit_cast<Vec>((__builtin_convertvector(n, IntVec) + 127) << 23);
  const Vec m = s * (q * r) + (s - 1.0f);
  return m / (m + 2.0f);
}

}  // namespace rlkern::RLKERN_ISA
