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
// The sweeps count in powers of two: t = u / ln 2. What leaves them is natural again.
constexpr double kLn2 = 0.693147180559945309;

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

// A logit as the row's softmax takes it: capped, or as it is.
template <bool CAP>
struct Cap;

template <>
struct Cap<false> {
  explicit Cap(double) {}
  Vec operator()(Vec x) const { return x; }
};

template <>
struct Cap<true> {
  float cap, inverse;
  explicit Cap(double softcap) : cap(float(softcap)), inverse(float(1 / softcap)) {}
  // Also of the −inf beyond a row's end: what has no probability keeps none.
  Vec operator()(Vec x) const { return x == -kInfinity ? x : cap * tangent(x * inverse); }
};

struct BlockSums {
  double sum, weighted_sum, square_sum;
  float max;  // of the logits, not capped
};

// Partial sums side by side: as many as AVX2 has registers for; elsewhere as many as accuracy asks.
constexpr int kParts = kLanes == 8 ? 2 : 4;

// One group of a block's partial sums, in registers.
template <bool SQUARES>
struct Partial {
  Vec sum{}, weighted_sum{}, square_sum{};

  RLKERN_INLINE_MEMBER Vec add(Vec t) {
    t = bounded(t);
    const Vec e = power_of_two<5>(t);
    sum += e;
    weighted_sum += e * t;
    if (SQUARES) square_sum += e * e;
    return e;
  }
};

// STASH: leaves the exponentials in stash, which may be x.
template <bool STASH, bool CAP, class S>
RLKERN_INLINE BlockSums block_sums(const S* x, int64_t n, float max, float rate, Cap<CAP> cap,
                                   float* stash) {
  constexpr int kStep = kParts * kLanes;
  Partial<!STASH> part[kParts];
  Vec largest = splat(-kInfinity);
  const auto add = [&](int k, Vec z) {
    largest = maximum(largest, z);
    return part[k].add((cap(z) - max) * rate);
  };
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    for (int k = 0; k < kParts; ++k) {
      const Vec e = add(k, load(x + i + k * kLanes));
      if (STASH) store(stash + i + k * kLanes, e);
    }
  }
  for (; i + kLanes <= n; i += kLanes) {
    const Vec e = add(0, load(x + i));
    if (STASH) store(stash + i, e);
  }
  if (i < n) {
    const Vec e = add(1, load_head(x + i, n - i));
    if (STASH) store_head(stash + i, e, n - i);
  }
  const auto total = [&](Vec Partial<!STASH>::* field) {
    Vec sum = part[0].*field + part[1].*field;
    for (int k = 2; k < kParts; k += 2) sum += part[k].*field + part[k + 1].*field;
    return horizontal_sum(sum);
  };
  return {total(&Partial<!STASH>::sum), kLn2 * total(&Partial<!STASH>::weighted_sum),
          STASH ? 0 : total(&Partial<!STASH>::square_sum), horizontal_max(largest)};
}

// The sums so far, relative to the largest (capped) logit so far.
struct Running {
  float max = -kInfinity;
  double sum = 0, weighted_sum = 0, square_sum = 0;

  void raise(float larger, double inv_temperature) {
    if (sum > 0) {
      const double shift = (double(max) - larger) * inv_temperature, factor = std::exp(shift);
      weighted_sum = factor * (weighted_sum + shift * sum);
      sum *= factor;
      square_sum *= factor * factor;
    }
    max = larger;
  }

  // A row that is −inf so far has no maximum to subtract; its sums are 0 (or NaN if it holds one).
  float shift() const { return max == -kInfinity ? 0.0f : max; }

  void add(const BlockSums& block) {
    sum += block.sum;
    weighted_sum += block.weighted_sum;
    square_sum += block.square_sum;
  }
};

// Blocks are summed relative to the largest logit before them, and once more where they hold a
// larger one: few do. Where the stash overwrites the logits there is no once more, so their
// maximum comes first.
template <bool STASH, bool CAP, class S>
RLKERN_INLINE RowSums sweep_sums(const Row& row, float* stash, float* block_max_of) {
  const S* x = static_cast<const S*>(row.logits);
  const bool overwrites = static_cast<const void*>(stash) == row.logits;
  const float rate = float(row.inv_temperature / kLn2);
  const Cap<CAP> cap(row.softcap);
  const auto raised = [&](float raw) { return cap(splat(raw))[0]; };
  Running so_far;
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    const int64_t n = std::min(kBlock, row.vocab - begin);
    float* kept = STASH ? stash + begin : nullptr;
    if (begin == 0 || overwrites) {
      const float larger = raised(block_max(x + begin, n));
      if (larger > so_far.max) so_far.raise(larger, row.inv_temperature);
    }
    BlockSums block = block_sums<STASH>(x + begin, n, so_far.shift(), rate, cap, kept);
    const float larger = raised(block.max);
    if (larger > so_far.max && !overwrites) {
      so_far.raise(larger, row.inv_temperature);
      block = block_sums<STASH>(x + begin, n, so_far.shift(), rate, cap, kept);
    }
    if (STASH) block_max_of[begin / kBlock] = so_far.max;
    so_far.add(block);
  }
  if (so_far.max == -kInfinity) so_far.sum = std::numeric_limits<double>::quiet_NaN();
  return {so_far.max, so_far.sum, so_far.weighted_sum, so_far.square_sum};
}

template <class S>
RowSums row_sums(const Row& row) {
  return row.softcap == 0 ? sweep_sums<false, false, S>(row, nullptr, nullptr)
                          : sweep_sums<false, true, S>(row, nullptr, nullptr);
}

template <class S>
RowSums row_sums_stashed(const Row& row, float* stash, float* block_max_of) {
  return sweep_sums<true, false, S>(row, stash, block_max_of);
}

template <class S>
RLKERN_INLINE void store_one(S* p, float x) {
  store_head(p, splat(x), 1);
}

template <class S>
constexpr int gradient_degree() {
  return sizeof(S) == 4 ? 5 : 4;
}

// LINEAR: dz = p·(a + b·t); otherwise b is 0 and dz = p·a. What the cap takes off is the square of
// its tangent.
template <class S, bool LINEAR, bool CAP>
struct Slope {
  float max, rate, a, b;
  Cap<CAP> cap;

  RLKERN_INLINE_MEMBER Vec operator()(Vec x) const {
    const Vec z = cap(x), t = bounded((z - max) * rate);
    const Vec e = power_of_two<gradient_degree<S>()>(t);
    const Vec grad = LINEAR ? e * (t * b + a) : e * a;
    if constexpr (CAP) {
      const Vec tanh = z * cap.inverse;
      return x == -kInfinity ? Vec{} : grad * (1.0f - tanh * tanh);
    }
    return grad;
  }
};

RLKERN_INLINE void announce(const char* ahead, int64_t offset, int64_t bytes) {
  constexpr int64_t kLine = 64;
  if (ahead == nullptr) return;
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(ahead + offset + i, 0, 2);
}

template <class S, bool LINEAR, bool CAP>
RLKERN_INLINE void sweep_gradient(const Row& row, S* grad, float max, float a, float b) {
  const S* x = static_cast<const S*>(row.logits);
  const char* ahead = static_cast<const char*>(row.ahead);
  const float rate = float(row.inv_temperature / kLn2);
  const Slope<S, LINEAR, CAP> slope{max, rate, a, b, Cap<CAP>(row.softcap)};
  constexpr int64_t kStep = 4 * kLanes;
  int64_t i = 0;
  for (; i + kStep <= row.vocab; i += kStep) {
    announce(ahead, i * sizeof(S), kStep * sizeof(S));
    for (int k = 0; k < 4; ++k) store(grad + i + k * kLanes, slope(load(x + i + k * kLanes)));
  }
  for (; i + kLanes <= row.vocab; i += kLanes) store(grad + i, slope(load(x + i)));
  if (i < row.vocab) store_head(grad + i, slope(load_head(x + i, row.vocab - i)), row.vocab - i);
}

template <class S>
void row_gradient(const Row& row, const RowSums& sums, const RowSlope& slope, int64_t token,
                  void* grad) {
  S* g = static_cast<S*>(grad);
  const double scale = row.inv_temperature / sums.sum;
  const float a = float(slope.a * scale), b = float(slope.b * scale * kLn2);
  const float max = float(sums.max);
  if (row.softcap != 0) {
    sweep_gradient<S, true, true>(row, g, max, a, b);
  } else if (b != 0) {
    sweep_gradient<S, true, false>(row, g, max, a, b);
  } else {
    sweep_gradient<S, false, false>(row, g, max, a, b);
  }
  if (token >= 0) store_one(g + token, float(slope.token * row.inv_temperature));
}

template <class S>
void row_gradient_stashed(const Row& row, const RowSums& sums, const RowSlope& slope, int64_t token,
                          const float* stash, const float* block_max_of, void* grad) {
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
      for (int k = 0; k < 4; ++k) store(g + i + k * kLanes, load(stash + i + k * kLanes) * factor);
    }
    for (; i + kLanes <= end; i += kLanes) store(g + i, load(stash + i) * factor);
    if (i < end) store_head(g + i, load_head(stash + i, end - i) * factor, end - i);
  }
  if (token >= 0) store_one(g + token, float(slope.token * row.inv_temperature));
}

double capped(double x, double softcap) {
  const bool banned = x == -std::numeric_limits<double>::infinity();
  return softcap == 0 || banned ? x : softcap * std::tanh(x / softcap);
}

RowSums row_sums_float64(const Row& row) {
  const double* x = static_cast<const double*>(row.logits);
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0, weighted_sum = 0, square_sum = 0;
  for (int64_t i = 0; i < row.vocab; ++i) max = std::max(max, x[i]);
  max = capped(max, row.softcap);
  for (int64_t i = 0; i < row.vocab; ++i) {
    const double u = (capped(x[i], row.softcap) - max) * row.inv_temperature, e = std::exp(u);
    sum += e;
    square_sum += e * e;
    if (e != 0) weighted_sum += e * u;
  }
  return {max, sum, weighted_sum, square_sum};
}

void row_gradient_float64(const Row& row, const RowSums& sums, const RowSlope& slope, int64_t token,
                          void* grad) {
  const double* x = static_cast<const double*>(row.logits);
  double* g = static_cast<double*>(grad);
  for (int64_t i = 0; i < row.vocab; ++i) {
    const double z = capped(x[i], row.softcap), u = (z - sums.max) * row.inv_temperature;
    const double p = std::exp(u) / sums.sum, tanh = row.softcap == 0 ? 0 : z / row.softcap;
    const double rate = slope.b == 0 || p == 0 ? slope.a : slope.a + slope.b * u;
    g[i] = p == 0 ? 0 : p * rate * row.inv_temperature * (1 - tanh * tanh);
  }
  if (token >= 0) g[token] = slope.token * row.inv_temperature;
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
        {row_sums<float>, row_gradient<float>, row_sums_stashed<float>,
         row_gradient_stashed<float>},
        {row_sums<bfloat16>, row_gradient<bfloat16>, row_sums_stashed<bfloat16>,
         row_gradient_stashed<bfloat16>},
        {row_sums<float16>, row_gradient<float16>, row_sums_stashed<float16>,
         row_gradient_stashed<float16>},
        {row_sums_float64, row_gradient_float64, nullptr, nullptr},
    },
};

}  // namespace rlkern
