// SPDX-License-Identifier: Apache-2.0
// Every gate and its derivatives: the C++ home of the formulas defined in
// rlkern/backends/eager/gates.py.
#pragma once

#include <cmath>

#include "math/host_device.h"

namespace rlkern {

// The order is that of GATES in the reference.
enum class Gate : int {
  reinforce,
  importance,
  ppo_clip,
  dual_clip,
  cispo,
  sapo,
  dppo_tv,
  dppo_kl,
  dro,
  vespo,
  topr,
  regression,
  prime_ipo,
  cfpo,
  dft
};
constexpr Gate kLastGate = Gate::dft;
constexpr int kGateCoefficients = 4;

// What a gate makes of a token: its loss, the derivatives in log π and in the log ratio, and
// whether a clip holds it.
template <class T>
struct Gated {
  T loss, slope, ratio_slope;
  bool clip_low, clip_high;
};

// −w·A·log π with a constant weight w
template <class T>
RLKERN_HD Gated<T> weighted_logprob(T weight, T logprob, T advantage, bool low, bool high) {
  return {-weight * advantage * logprob, -weight * advantage, T(0), low, high};
}

// r·A, and 0 for A = 0 also where r has overflowed.
template <class T>
RLKERN_HD T surrogate(T ratio, T advantage) {
  return advantage == 0 && std::isinf(ratio) ? T(0) : ratio * advantage;
}

// −min(r·A, clip(r, 1 − low, 1 + high)·A): where the clip is the smaller, the slope is 0.
template <class T>
RLKERN_HD Gated<T> ppo_clip(T ratio, T advantage, T low, T high) {
  const T raised = ratio < 1 - low ? 1 - low : ratio,
          clipped = raised > 1 + high ? 1 + high : raised;
  const T free = surrogate(ratio, advantage), bound = clipped * advantage;
  const bool is_low = ratio < 1 - low && advantage < 0, is_high = ratio > 1 + high && advantage > 0;
  return {-(bound < free ? bound : free), T(0), bound < free ? T(0) : -free, is_low, is_high};
}

template <class T>
RLKERN_HD Gated<T> dual_clip(T ratio, T advantage, T low, T high, T cap) {
  Gated<T> g = ppo_clip(ratio, advantage, low, high);
  const T bound = -cap * advantage;
  if (advantage < 0 && bound < g.loss) g = {bound, T(0), T(0), g.clip_low, true};
  return g;
}

template <class T>
RLKERN_HD Gated<T> cispo(T logprob, T ratio, T advantage, T low, T high) {
  const bool is_low = ratio < 1 - low, is_high = ratio > 1 + high;
  const T weight = is_low ? 1 - low : (is_high ? 1 + high : ratio);
  return weighted_logprob(weight, logprob, advantage, is_low, is_high);
}

// −A·(4/τ)·σ(τ·(r − 1))
template <class T>
RLKERN_HD Gated<T> sapo(T ratio, T advantage, T tau_positive, T tau_negative) {
  const T tau = advantage > 0 ? tau_positive : tau_negative;
  const T sigmoid = 1 / (1 + std::exp(-tau * (ratio - 1)));
  // σ(−x) and not 1 − σ(x), which has no digits left where σ(x) is almost 1.
  const T flank = sigmoid / (1 + std::exp(tau * (ratio - 1)));
  // r·σ(x)·σ(−x) with r = inf is 0·inf: the gate is flat there.
  return {-advantage * (4 / tau) * sigmoid, T(0),
          flank == 0 ? T(0) : -advantage * 4 * ratio * flank, false, false};
}

template <class T>
RLKERN_HD Gated<T> dppo(T logprob, T ratio, T advantage, T cap, bool too_low, bool too_high) {
  const bool held = advantage > 0 ? too_high : too_low;
  return weighted_logprob(held ? T(0) : (ratio > cap ? cap : ratio), logprob, advantage,
                          too_low && !(advantage > 0), too_high && advantage > 0);
}

// p − p_old
template <class T>
RLKERN_HD T probability_change(T logprob, T log_ratio) {
  return std::exp(logprob) - std::exp(logprob - log_ratio);
}

template <class T>
RLKERN_HD Gated<T> dppo_tv(T logprob, T log_ratio, T ratio, T advantage, T low, T high, T cap) {
  const T change = probability_change(logprob, log_ratio);
  return dppo(logprob, ratio, advantage, cap, change<-low, change> high);
}

template <class T>
RLKERN_HD Gated<T> dppo_kl(T logprob, T log_ratio, T ratio, T advantage, T low, T high, T cap) {
  const T p = std::exp(logprob), old = std::exp(logprob - log_ratio), eps = T(1e-8);
  const T rest = std::log((1 - old + eps) / (1 - p + eps));
  const T divergence = old * -log_ratio + (1 - old) * rest;
  return dppo(logprob, ratio, advantage, cap,
              divergence > low && p<old, divergence> high && p > old);
}

// W^k·exp(λ·(1 − W)) in logarithms: W may be far from 1.
template <class T>
RLKERN_HD T vespo_weight(T log_ratio, T ratio, T k, T lambda) {
  return std::exp(k * log_ratio + lambda * (1 - ratio));
}

// −r·A where −low ≤ p − p_old ≤ high, else 0; + drift_coef·(log r)² everywhere
template <class T>
RLKERN_HD Gated<T> prime_ipo(T logprob, T log_ratio, T ratio, T advantage, T low, T high,
                             T drift_coef) {
  const T change = probability_change(logprob, log_ratio);
  const bool is_low = change<-low, is_high = change> high;
  const T loss = is_low || is_high ? T(0) : -ratio * advantage;
  return {loss + drift_coef * log_ratio * log_ratio, T(0), loss + 2 * drift_coef * log_ratio,
          is_low, is_high};
}

// −(r·A − |A|/(2·width)·(r − 1)²)
template <class T>
RLKERN_HD Gated<T> cfpo(T ratio, T advantage, T width) {
  if (advantage == 0 && ratio == ratio) return {T(0), T(0), T(0), false, false};
  const T excess = ratio - 1, size = std::fabs(advantage), sign = advantage > 0 ? T(1) : T(-1);
  // One product: where r overflows, its square less itself would be NaN.
  return {size * (excess * (excess / (2 * width) - sign) - sign), T(0),
          ratio * size * (excess / width - sign), false, false};
}

template <class T>
RLKERN_HD Gated<T> apply_gate(Gate gate, const T* c, T logprob, T log_ratio, T ratio, T advantage) {
  switch (gate) {
    case Gate::reinforce:
      return weighted_logprob(T(1), logprob, advantage, false, false);
    case Gate::importance:
      return {-surrogate(ratio, advantage), T(0), -surrogate(ratio, advantage), false, false};
    case Gate::ppo_clip:
      return ppo_clip(ratio, advantage, c[0], c[1]);
    case Gate::dual_clip:
      return dual_clip(ratio, advantage, c[0], c[1], c[2]);
    case Gate::cispo:
      return cispo(logprob, ratio, advantage, c[0], c[1]);
    case Gate::sapo:
      return sapo(ratio, advantage, c[0], c[1]);
    case Gate::dppo_tv:
      return dppo_tv(logprob, log_ratio, ratio, advantage, c[0], c[1], c[2]);
    case Gate::dppo_kl:
      return dppo_kl(logprob, log_ratio, ratio, advantage, c[0], c[1], c[2]);
    case Gate::dro:
      return {-(advantage * logprob - T(0.5) * c[0] * log_ratio * log_ratio), -advantage,
              c[0] * log_ratio, false, false};
    case Gate::vespo: {
      const bool positive = advantage >= 0;
      const T k = positive ? c[0] : c[2], lambda = positive ? c[1] : c[3];
      return weighted_logprob(vespo_weight(log_ratio, ratio, k, lambda), logprob, advantage, false,
                              false);
    }
    case Gate::topr: {
      const bool held = !(advantage > 0) && ratio > 1;
      return weighted_logprob(advantage > 0 || held ? T(1) : ratio, logprob, advantage, false,
                              held);
    }
    case Gate::regression: {
      const T rest = c[0] * log_ratio - advantage;
      return {rest * rest, T(0), 2 * c[0] * rest, false, false};
    }
    case Gate::prime_ipo:
      return prime_ipo(logprob, log_ratio, ratio, advantage, c[0], c[1], c[2]);
    case Gate::cfpo:
      return cfpo(ratio, advantage, c[0]);
    case Gate::dft:
      return weighted_logprob(std::exp(logprob), logprob, advantage, false, false);
  }
  return {};
}

}  // namespace rlkern
