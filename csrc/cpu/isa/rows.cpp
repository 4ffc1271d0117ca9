// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, RLKERN_ISA. Two sweeps of one row; the row stays in the L2
// cache between them, so memory sees one read and one write.
#include <cmath>
#include <type_traits>

#include "cpu/isa.h"
#include "cpu/isa/cap.h"

namespace rlkern::RLKERN_ISA {
namespace {

// The sweeps count in powers of two: t = u / ln 2. What leaves them is natural again.
constexpr double kLn2 = 0.693147180559945309;

// How far ahead of its loads a sweep asks for memory. The processor's own prefetching stops at the
// end of a page, and with arithmetic between the loads it does not run far enough ahead.
constexpr int64_t kAhead = 4096;

template <int kLocality>
RLKERN_INLINE void prefetch(const char* p, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(p + i, 0, kLocality);
}

template <class S>
RLKERN_INLINE void prefetch_ahead_of(const S* x, int64_t n) {
  prefetch<3>(reinterpret_cast<const char*>(x) + kAhead, n * int64_t(sizeof(S)));
}

template <class S>
RLKERN_INLINE float block_max(const S* x, int64_t n) {
  Vec a = splat(-kInfinity), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    prefetch_ahead_of(x + i, 4 * kLanes);
    a = maximum(a, load(x + i));
    b = maximum(b, load(x + i + kLanes));
    c = maximum(c, load(x + i + 2 * kLanes));
    d = maximum(d, load(x + i + 3 * kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) a = maximum(a, load(x + i));
  if (i < n) a = maximum(a, load_head(x + i, n - i));
  return horizontal_max(maximum(maximum(a, b), maximum(c, d)));
}

// What a sweep for sums does with the exponentials.
enum class Exponentials { dropped, stashed };

struct BlockSums {
  double sum, weighted_sum, square_sum;
  float max;  // of the logits, not capped
};

// Partial sums side by side: as many as AVX2 has registers for; elsewhere as many as accuracy asks.
constexpr int kParts = kLanes == 8 ? 2 : 4;

// One group of a block's partial sums, in registers. Who stashes needs no squares.
template <Exponentials exponentials>
struct Partial {
  Vec sum{}, weighted_sum{}, square_sum{};

  RLKERN_INLINE_MEMBER Vec add(Vec t) {
    t = bounded(t);
    const Vec e = power_of_two<5>(t);
    sum += e;
    weighted_sum += e * t;
    if (exponentials == Exponentials::dropped) square_sum += e * e;
    return e;
  }
};

// The stash may be x. inv_temperature_log2 is inv_temperature / ln 2.
template <Exponentials exponentials, class S, class Cap>
RLKERN_INLINE BlockSums block_sums(const S* x, int64_t n, float max, float inv_temperature_log2,
                                   Cap cap, float* stash) {
  constexpr bool kStash = exponentials == Exponentials::stashed;
  constexpr int kStep = kParts * kLanes;
  using Part = Partial<exponentials>;
  Part part[kParts];
  Vec largest = splat(-kInfinity);
  const auto add = [&](int k, Vec z) {
    largest = maximum(largest, z);
    return part[k].add((cap(z) - max) * inv_temperature_log2);
  };
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    prefetch_ahead_of(x + i, kStep);
    for (int k = 0; k < kParts; ++k) {
      const Vec e = add(k, load(x + i + k * kLanes));
      if (kStash) store(stash + i + k * kLanes, e);
    }
  }
  for (; i + kLanes <= n; i += kLanes) {
    const Vec e = add(0, load(x + i));
    if (kStash) store(stash + i, e);
  }
  if (i < n) {
    const Vec e = add(1, load_head(x + i, n - i));
    if (kStash) store_head(stash + i, e, n - i);
  }
  const auto total = [&](Vec Part::* field) {
    Vec sum = part[0].*field + part[1].*field;
    for (int k = 2; k < kParts; k += 2) sum += part[k].*field + part[k + 1].*field;
    return horizontal_sum(sum);
  };
  return {total(&Part::sum), kLn2 * total(&Part::weighted_sum),
          kStash ? 0 : total(&Part::square_sum), horizontal_max(largest)};
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
template <Exponentials exponentials, class S, class Cap>
RLKERN_INLINE RowSums sweep_sums(const Row& row, Cap cap, float* stash, float* block_max_of) {
  constexpr bool kStash = exponentials == Exponentials::stashed;
  const S* x = static_cast<const S*>(row.logits);
  const bool overwrites = static_cast<const void*>(stash) == row.logits;
  const float inv_temperature_log2 = float(row.inv_temperature / kLn2);
  const auto raised = [&](float raw) { return cap(splat(raw))[0]; };
  Running so_far;
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    const int64_t rest = row.vocab - begin, n = rest < kBlock ? rest : kBlock;
    float* kept = kStash ? stash + begin : nullptr;
    const auto sums = [&]() __attribute__((always_inline)) {
      return block_sums<exponentials>(x + begin, n, so_far.shift(), inv_temperature_log2, cap,
                                      kept);
    };
    if (begin == 0 || overwrites) {
      const float larger = raised(block_max(x + begin, n));
      if (larger > so_far.max) so_far.raise(larger, row.inv_temperature);
    }
    BlockSums block = sums();
    const float larger = raised(block.max);
    if (larger > so_far.max && !overwrites) {
      so_far.raise(larger, row.inv_temperature);
      block = sums();
    }
    if (kStash) block_max_of[begin / kBlock] = so_far.max;
    so_far.add(block);
  }
  if (so_far.max == -kInfinity) so_far.sum = __builtin_nan("");
  return {so_far.max, so_far.sum, so_far.weighted_sum, so_far.square_sum};
}

// The same of an uncapped row that leaves a part of one vector free, to the bit: what the sweep
// adds beside it is 0.
template <Exponentials exponentials, class S>
RLKERN_INLINE RowSums short_sums(const Row& row, float* stash, float* block_max_of) {
  const Vec x = load_head(static_cast<const S*>(row.logits), row.vocab);
  const float max = horizontal_max(maximum(x, splat(-kInfinity)));
  Partial<exponentials> part;
  const bool banned = max == -kInfinity;  // all of it
  const Vec e = part.add((x - (banned ? 0.0f : max)) * float(row.inv_temperature / kLn2));
  if (exponentials == Exponentials::stashed) {
    store_head(stash, e, row.vocab);
    *block_max_of = max;
  }
  return {max, banned ? __builtin_nan("") : horizontal_sum(part.sum),
          kLn2 * horizontal_sum(part.weighted_sum), horizontal_sum(part.square_sum)};
}

template <class S>
RowSums row_sums(const Row& row) {
  constexpr Exponentials kDropped = Exponentials::dropped;
  if (row.vocab < kLanes && row.softcap == 0) {
    return short_sums<kDropped, S>(row, nullptr, nullptr);
  }
  if (row.softcap == 0) return sweep_sums<kDropped, S>(row, Uncapped(0), nullptr, nullptr);
  return sweep_sums<kDropped, S>(row, Capped(row.softcap), nullptr, nullptr);
}

template <class S>
RowSums row_sums_stashed(const Row& row, float* stash, float* block_max_of) {
  constexpr Exponentials kStashed = Exponentials::stashed;
  if (row.vocab < kLanes) return short_sums<kStashed, S>(row, stash, block_max_of);
  return sweep_sums<kStashed, S>(row, Uncapped(0), stash, block_max_of);
}

template <class S>
RLKERN_INLINE void store_one(S* p, float x) {
  store_head(p, splat(x), 1);
}

template <class S>
constexpr int gradient_degree() {
  return sizeof(S) == 4 ? 5 : 4;
}

// How a probability's factor in its gradient depends on t: a, or a + b·t.
enum class Factor { constant, linear };

// dz of an element. What the cap takes off is the square of its tangent.
template <class S, Factor factor, class Cap>
struct ElementGradient {
  float max, inv_temperature_log2, a, b;
  Cap cap;

  RLKERN_INLINE_MEMBER Vec operator()(Vec x) const {
    const Vec z = cap(x), t = bounded((z - max) * inv_temperature_log2);
    const Vec e = power_of_two<gradient_degree<S>()>(t);
    const Vec grad = factor == Factor::linear ? e * (t * b + a) : e * a;
    if constexpr (std::is_same_v<Cap, Capped>) {
      const Vec tanh = z * cap.inverse;
      return x == -kInfinity ? Vec{} : grad * (1.0f - tanh * tanh);
    }
    return grad;
  }
};

RLKERN_INLINE void announce(const char* ahead, int64_t offset, int64_t bytes) {
  if (ahead != nullptr) prefetch<2>(ahead + offset, bytes);
}

template <class S, class Gradient>
RLKERN_INLINE void sweep_gradient(const Row& row, S* grad, const Gradient& gradient) {
  const S* x = static_cast<const S*>(row.logits);
  const char* ahead = static_cast<const char*>(row.ahead);
  constexpr int64_t kStep = 4 * kLanes;
  int64_t i = 0;
  for (; i + kStep <= row.vocab; i += kStep) {
    announce(ahead, i * sizeof(S), kStep * sizeof(S));
    for (int k = 0; k < 4; ++k) store(grad + i + k * kLanes, gradient(load(x + i + k * kLanes)));
  }
  for (; i + kLanes <= row.vocab; i += kLanes) store(grad + i, gradient(load(x + i)));
  if (i < row.vocab) {
    store_head(grad + i, gradient(load_head(x + i, row.vocab - i)), row.vocab - i);
  }
}

template <class S>
void row_gradient(const Row& row, const RowSums& sums, const RowSlope& slope, int64_t token,
                  void* grad) {
  S* g = static_cast<S*>(grad);
  const double per_sum = row.inv_temperature / sums.sum;
  const float a = float(slope.a * per_sum), b = float(slope.b * per_sum * kLn2);
  const float max = float(sums.max), inv_temperature_log2 = float(row.inv_temperature / kLn2);
  if (row.softcap != 0) {
    sweep_gradient(row, g,
                   ElementGradient<S, Factor::linear, Capped>{max, inv_temperature_log2, a, b,
                                                              Capped(row.softcap)});
  } else if (b != 0) {
    sweep_gradient(
        row, g,
        ElementGradient<S, Factor::linear, Uncapped>{max, inv_temperature_log2, a, b, Uncapped(0)});
  } else {
    sweep_gradient(row, g,
                   ElementGradient<S, Factor::constant, Uncapped>{max, inv_temperature_log2, a, b,
                                                                  Uncapped(0)});
  }
  if (token >= 0) store_one(g + token, float(slope.token * row.inv_temperature));
}

template <class S>
void row_gradient_stashed(const Row& row, const RowSums& sums, const RowSlope& slope, int64_t token,
                          const float* stash, const float* block_max_of, void* grad) {
  S* g = static_cast<S*>(grad);
  const char* ahead = static_cast<const char*>(row.ahead);
  const double a = slope.a * row.inv_temperature / sums.sum;
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    const int64_t end = begin + kBlock < row.vocab ? begin + kBlock : row.vocab;
    const double shift = (double(block_max_of[begin / kBlock]) - sums.max) * row.inv_temperature;
    const float factor = float(shift == 0 ? a : a * std::exp(shift));
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

RowSums row_sums_float64(const Row& row) {
  const double* x = static_cast<const double*>(row.logits);
  double max = -__builtin_inf();
  double sum = 0, weighted_sum = 0, square_sum = 0;
  for (int64_t i = 0; i < row.vocab; ++i) max = max < x[i] ? x[i] : max;
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
    const double factor = slope.b == 0 || p == 0 ? slope.a : slope.a + slope.b * u;
    g[i] = p == 0 ? 0 : p * factor * row.inv_temperature * (1 - tanh * tanh);
  }
  if (token >= 0) g[token] = slope.token * row.inv_temperature;
}

}  // namespace

const RowKernels row_kernels[kDtypes] = {
    {row_sums<float>, row_gradient<float>, row_sums_stashed<float>, row_gradient_stashed<float>},
    {row_sums<bfloat16>, row_gradient<bfloat16>, row_sums_stashed<bfloat16>,
     row_gradient_stashed<bfloat16>},
    {row_sums<float16>, row_gradient<float16>, row_sums_stashed<float16>,
     row_gradient_stashed<float16>},
    {row_sums_float64, row_gradient_float64, nullptr, nullptr},
};

}  // namespace rlkern::RLKERN_ISA
