// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, with RLKERN_ISA its name. Two sweeps of one row; the row stays
// in the L2 cache between them, so memory sees one read and one write.
#include "cpu/kernels.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/simd.h"

namespace rlkern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class S>
RLKERN_INLINE float block_max(const S* x, int64_t n) {
  Vec a = splat(-kInfinity), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a = maximum(a, load(x + i));
    b = maximum(b, load(x + i + kLanes));
    c = maximum(c, load(x + i + 2 * kLanes));
    d = maximum(d, load(x + i + 3 * kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) a = maximum(a, load(x + i));
  if (i < n) a = maximum(a, load_head(x + i, n - i));
  return horizontal_max(maximum(maximum(a, b), maximum(c, d)));
}

RLKERN_INLINE Vec accumulate(Vec u, Vec& sum, Vec& weighted_sum) {
  u = bounded(u);
  const Vec e = exponential<5>(u);
  sum += e;
  weighted_sum += e * u;
  return e;
}

struct BlockSums {
  double sum, weighted_sum;
};

// KEEP: leaves the exponentials in kept, which may be x.
template <bool KEEP, class S>
RLKERN_INLINE BlockSums block_sums(const S* x, int64_t n, float max, float inv_temperature,
                                   float* kept) {
  Vec s[4] = {}, t[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      const Vec u = (load(x + i + k * kLanes) - max) * inv_temperature;
      const Vec e = accumulate(u, s[k], t[k]);
      if (KEEP) store(kept + i + k * kLanes, e);
    }
  }
  for (; i + kLanes <= n; i += kLanes) {
    const Vec e = accumulate((load(x + i) - max) * inv_temperature, s[0], t[0]);
    if (KEEP) store(kept + i, e);
  }
  if (i < n) {
    const Vec e = accumulate((load_head(x + i, n - i) - max) * inv_temperature, s[1], t[1]);
    if (KEEP) store_head(kept + i, e, n - i);
  }
  return {horizontal_sum((s[0] + s[1]) + (s[2] + s[3])),
          horizontal_sum((t[0] + t[1]) + (t[2] + t[3]))};
}

template <bool KEEP, class S>
RLKERN_INLINE RowSums sweep_sums(const Row& row, float* kept, float* block_max_of) {
  const S* x = static_cast<const S*>(row.logits);
  const float inv_temperature = float(row.inv_temperature);
  float max = -kInfinity;
  double sum = 0, weighted_sum = 0;
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    const int64_t n = std::min(kBlock, row.vocab - begin);
    const float larger = block_max(x + begin, n);
    if (larger > max) {
      if (sum > 0) {
        const double shift = (double(max) - larger) * row.inv_temperature, factor = std::exp(shift);
        weighted_sum = factor * (weighted_sum + shift * sum);
        sum *= factor;
      }
      max = larger;
    }
    // A row that is −inf so far has no maximum to subtract; its sums are 0 (or NaN if it holds
    // one).
    const float shift = max == -kInfinity ? 0.0f : max;
    const BlockSums block =
        block_sums<KEEP>(x + begin, n, shift, inv_temperature, KEEP ? kept + begin : nullptr);
    if (KEEP) block_max_of[begin / kBlock] = max;
    sum += block.sum;
    weighted_sum += block.weighted_sum;
  }
  if (max == -kInfinity) sum = std::numeric_limits<double>::quiet_NaN();
  return {max, sum, weighted_sum};
}

template <class S>
RowSums row_sums(const Row& row) {
  return sweep_sums<false, S>(row, nullptr, nullptr);
}

template <class S>
RowSums row_sums_kept(const Row& row, float* kept, float* block_max_of) {
  return sweep_sums<true, S>(row, kept, block_max_of);
}

template <class S>
RLKERN_INLINE void store_one(S* p, float x) {
  store_head(p, splat(x), 1);
}

template <class S>
constexpr int gradient_degree() {
  return sizeof(S) == 4 ? 5 : 4;
}

// LINEAR: dz = p·(a + b·u); otherwise b is 0 and dz = p·a.
template <class S, bool LINEAR>
RLKERN_INLINE Vec slope(Vec x, float max, float inv_temperature, float a, float b) {
  const Vec u = bounded((x - max) * inv_temperature);
  const Vec e = exponential<gradient_degree<S>()>(u);
  return LINEAR ? e * (u * b + a) : e * a;
}

RLKERN_INLINE void announce(const char* ahead, int64_t offset, int64_t bytes) {
  constexpr int64_t kLine = 64;
  if (ahead == nullptr) return;
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(ahead + offset + i, 0, 2);
}

template <class S, bool LINEAR>
RLKERN_INLINE void sweep_gradient(const Row& row, S* grad, float max, float a, float b) {
  const S* x = static_cast<const S*>(row.logits);
  const char* ahead = static_cast<const char*>(row.ahead);
  const float inv_temperature = float(row.inv_temperature);
  constexpr int64_t kStep = 4 * kLanes;
  int64_t i = 0;
  for (; i + kStep <= row.vocab; i += kStep) {
    announce(ahead, i * sizeof(S), kStep * sizeof(S));
    for (int k = 0; k < 4; ++k) {
      store(grad + i + k * kLanes,
            slope<S, LINEAR>(load(x + i + k * kLanes), max, inv_temperature, a, b));
    }
  }
  for (; i + kLanes <= row.vocab; i += kLanes) {
    store(grad + i, slope<S, LINEAR>(load(x + i), max, inv_temperature, a, b));
  }
  if (i < row.vocab) {
    const Vec g = slope<S, LINEAR>(load_head(x + i, row.vocab - i), max, inv_temperature, a, b);
    store_head(grad + i, g, row.vocab - i);
  }
}

template <class S>
void row_gradient(const Row& row, const RowSums& sums, const RowSlope& slope, int64_t token,
                  void* grad) {
  S* g = static_cast<S*>(grad);
  const double scale = row.inv_temperature / sums.sum;
  const float a = float(slope.a * scale), b = float(slope.b * scale), max = float(sums.max);
  if (b == 0) {
    sweep_gradient<S, false>(row, g, max, a, b);
  } else {
    sweep_gradient<S, true>(row, g, max, a, b);
  }
  store_one(g + token, float(slope.token * row.inv_temperature));
}

template <class S>
void row_gradient_kept(const Row& row, const RowSums& sums, const RowSlope& slope, int64_t token,
                       const float* kept, const float* block_max_of, void* grad) {
  S* g = static_cast<S*>(grad);
  const char* ahead = static_cast<const char*>(row.ahead);
  const double scale = slope.a * row.inv_temperature / sums.sum;
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, row.vocab);
    const double shift = (double(block_max_of[begin / kBlock]) - sums.max) * row.inv_temperature;
    const float factor = float(scale * std::exp(shift));
    int64_t i = begin;
    for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
      announce(ahead, i * sizeof(S), 4 * kLanes * sizeof(S));
      for (int k = 0; k < 4; ++k) store(g + i + k * kLanes, load(kept + i + k * kLanes) * factor);
    }
    for (; i + kLanes <= end; i += kLanes) store(g + i, load(kept + i) * factor);
    if (i < end) store_head(g + i, load_head(kept + i, end - i) * factor, end - i);
  }
  store_one(g + token, float(slope.token * row.inv_temperature));
}

RowSums row_sums_float64(const Row& row) {
  const double* x = static_cast<const double*>(row.logits);
  double max = -std::numeric_limits<double>::infinity(), sum = 0, weighted_sum = 0;
  for (int64_t i = 0; i < row.vocab; ++i) max = std::max(max, x[i]);
  for (int64_t i = 0; i < row.vocab; ++i) {
    const double u = (x[i] - max) * row.inv_temperature, e = std::exp(u);
    sum += e;
    if (e != 0) weighted_sum += e * u;
  }
  return {max, sum, weighted_sum};
}

void row_gradient_float64(const Row& row, const RowSums& sums, const RowSlope& slope, int64_t token,
                          void* grad) {
  const double* x = static_cast<const double*>(row.logits);
  double* g = static_cast<double*>(grad);
  for (int64_t i = 0; i < row.vocab; ++i) {
    const double u = (x[i] - sums.max) * row.inv_temperature, p = std::exp(u) / sums.sum;
    const double rate = slope.b == 0 || p == 0 ? slope.a : slope.a + slope.b * u;
    g[i] = p * rate * row.inv_temperature;
  }
  g[token] = slope.token * row.inv_temperature;
}

}  // namespace

#define RLKERN_JOIN(a, b) a##b
#define RLKERN_ISA_SYMBOL(name) RLKERN_JOIN(isa_, name)
#define RLKERN_QUOTE(x) #x
#define RLKERN_STRING(x) RLKERN_QUOTE(x)

extern const Isa RLKERN_ISA_SYMBOL(RLKERN_ISA);
const Isa RLKERN_ISA_SYMBOL(RLKERN_ISA) = {
    RLKERN_STRING(RLKERN_ISA),
    {
        {row_sums<float>, row_gradient<float>, row_sums_kept<float>, row_gradient_kept<float>},
        {row_sums<bfloat16>, row_gradient<bfloat16>, row_sums_kept<bfloat16>,
         row_gradient_kept<bfloat16>},
        {row_sums<float16>, row_gradient<float16>, row_sums_kept<float16>,
         row_gradient_kept<float16>},
        {row_sums_float64, row_gradient_float64, nullptr, nullptr},
    },
};

}  // namespace rlkern
