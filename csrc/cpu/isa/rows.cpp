// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, RLKERN_ISA. Two sweeps of one row; the row stays in the L2
// cache between them, so memory sees one read and one write.
#include <cmath>
#include <type_traits>

#include "cpu/isa/row_sums.h"

namespace rlkern::RLKERN_ISA {
namespace {

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
