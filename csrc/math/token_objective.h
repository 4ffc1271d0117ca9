// SPDX-License-Identifier: Apache-2.0
// The token objective and its derivatives: the C++ home of the formulas defined in
// rlkern/reference/token_objective.py. No torch headers; host and device.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define RLKERN_HD __host__ __device__ inline
#else
#define RLKERN_HD inline
#endif

namespace rlkern {

// The order is that of GATES and KL_ESTIMATORS in the reference.
enum class Gate : int { reinforce, ppo_clip };
enum class Kl : int { k1, k2, k3 };

// A value and its derivative in log π.
template <class T>
struct Dual {
  T value, slope;
};

// −A·log π
template <class T>
RLKERN_HD Dual<T> reinforce(T logprob, T advantage) {
  return {-advantage * logprob, -advantage};
}

// −min(r·A, clip(r, 1 − low, 1 + high)·A): where the clip is the smaller, the slope is 0.
template <class T>
RLKERN_HD Dual<T> ppo_clip(T ratio, T advantage, T low, T high) {
  const T clipped = ratio < 1 - low ? 1 - low : (ratio > 1 + high ? 1 + high : ratio);
  const T surrogate = ratio * advantage, bound = clipped * advantage;
  if (bound < surrogate) return {-bound, T(0)};
  return {-surrogate, -surrogate};
}

template <class T>
RLKERN_HD Dual<T> kl_k1(T difference) {
  return {difference, T(1)};
}

template <class T>
RLKERN_HD Dual<T> kl_k2(T difference) {
  return {T(0.5) * difference * difference, difference};
}

// exp(−d) − 1 + d by expm1: the two large terms cancel for small d.
template <class T>
RLKERN_HD Dual<T> kl_k3(T difference) {
  const T e = std::expm1(-difference);
  return {e + difference, -e};
}

template <class T>
RLKERN_HD Dual<T> kl_divergence(Kl kind, T difference) {
  switch (kind) {
    case Kl::k1:
      return kl_k1(difference);
    case Kl::k2:
      return kl_k2(difference);
    default:
      return kl_k3(difference);
  }
}

template <class T>
struct Objective {
  Gate gate;
  T low, high;  // gate coefficients
  Kl kl;
  T kl_coef, entropy_coef;
};

// One counted token. Without an old policy old_logprob is logprob itself, without a reference
// has_ref is false.
template <class T>
struct Token {
  T logprob, entropy, advantage, weight, old_logprob, ref_logprob;
  bool has_ref;
};

// The order is that of METRICS in the reference.
enum Metric : int {
  kCount,
  kLogprob,
  kEntropy,
  kKl,
  kOldKl,
  kRatio,
  kClipLow,
  kClipHigh,
  kRatioMin,
  kRatioMax
};
constexpr int kSummedMetrics = 8, kMetrics = 10;

template <class T>
struct TokenResult {
  T loss, grad_logprob, grad_entropy;  // weighted
  T metric[kSummedMetrics];
};

template <class T>
RLKERN_HD TokenResult<T> token_objective(const Objective<T>& o, const Token<T>& x) {
  const T log_ratio = x.logprob - x.old_logprob, ratio = std::exp(log_ratio);
  const Dual<T> gate = o.gate == Gate::reinforce ? reinforce(x.logprob, x.advantage)
                                                 : ppo_clip(ratio, x.advantage, o.low, o.high);
  const Dual<T> kl = x.has_ref ? kl_divergence(o.kl, x.logprob - x.ref_logprob) : Dual<T>{0, 0};
  TokenResult<T> r;
  r.loss = x.weight * (gate.value + o.kl_coef * kl.value - o.entropy_coef * x.entropy);
  r.grad_logprob = x.weight * (gate.slope + o.kl_coef * kl.slope);
  r.grad_entropy = -x.weight * o.entropy_coef;
  r.metric[kCount] = 1;
  r.metric[kLogprob] = x.logprob;
  r.metric[kEntropy] = x.entropy;
  r.metric[kKl] = kl.value;
  r.metric[kOldKl] = kl_k3(log_ratio).value;
  r.metric[kRatio] = ratio;
  r.metric[kClipLow] = ratio < 1 - o.low && x.advantage < 0;
  r.metric[kClipHigh] = ratio > 1 + o.high && x.advantage > 0;
  return r;
}

}  // namespace rlkern
