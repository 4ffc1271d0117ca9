// SPDX-License-Identifier: Apache-2.0
// Every KL estimator and its derivative in log π: the C++ home of rlkern/backends/eager/kl.py.
#pragma once

#include <cmath>

#include "math/exponential.h"
#include "math/host_device.h"

namespace rlkern {

// The order is that of KL_ESTIMATORS in the reference.
enum class Kl : int {
  k1,
  k2,
  k3,
  absolute,
  k1_straight_through,
  k3_straight_through,
  importance_k1,
  importance_k3,
  level_k3
};
constexpr Kl kLastKl = Kl::level_k3;

template <class T>
struct Dual {
  T value, slope;
};

template <class T>
RLKERN_HD Dual<T> kl_k1(T d) {
  return {d, T(1)};
}

template <class T>
RLKERN_HD Dual<T> kl_k2(T d) {
  return {T(0.5) * d * d, d};
}

// exp(−d) − 1 + d by expm1: the two large terms cancel for small d.
template <class T>
RLKERN_HD Dual<T> kl_k3(T d) {
  const T e = exp_minus_one(-d);
  return {e + d, -e};
}

// r·d: both factors depend on log π.
template <class T>
RLKERN_HD Dual<T> kl_importance_k1(T log_ratio, T d) {
  const T ratio = std::exp(log_ratio);
  return {ratio * d, ratio * (d + 1)};
}

// r·k3 and its slope while r is a constant. Far below the reference r and exp(−d) are multiplied as
// one power: r may be 0 and k3 infinite.
template <class T>
RLKERN_HD Dual<T> kl_level_k3(T log_ratio, T d) {
  if (d < -1) {
    const T power = std::exp(log_ratio - d), e = std::exp(d);
    return {power * (1 - e * (1 - d)), power * (e - 1)};
  }
  const T ratio = std::exp(log_ratio);
  return {ratio * kl_k3(d).value, ratio * kl_k3(d).slope};
}

// Of the token's own r the slope is r·(k3 + 1 − exp(−d)) = r·d: added up, the exponentials would
// take d with them.
template <class T>
RLKERN_HD Dual<T> kl_importance_k3(T log_ratio, T d) {
  return {kl_level_k3(log_ratio, d).value, std::exp(log_ratio) * d};
}

// d = log π − log π_ref; log_ratio = log π − log π_old, of level_k3 what the gate sees of it, in
// which the slope is not.
template <class T>
RLKERN_HD Dual<T> kl_divergence(Kl kind, T d, T log_ratio) {
  switch (kind) {
    case Kl::k1:
      return kl_k1(d);
    case Kl::k2:
      return kl_k2(d);
    case Kl::k3:
      return kl_k3(d);
    case Kl::absolute:
      return {std::fabs(d), T(d > 0) - T(d < 0)};
    case Kl::k1_straight_through:
      return {d, d};
    case Kl::k3_straight_through:
      return {kl_k3(d).value, d};
    case Kl::importance_k1:
      return kl_importance_k1(log_ratio, d);
    case Kl::importance_k3:
      return kl_importance_k3(log_ratio, d);
    case Kl::level_k3:
      return kl_level_k3(log_ratio, d);
  }
  return {};
}

// An estimator with its derivatives in log π and in the log ratio that the gate sees.
template <class T>
struct KlTerm {
  T value, slope, ratio_slope;
};

// Within ±bound: beyond it the slopes are 0, unless they are another estimator's (straight
// through). own is the token's log ratio, seen the gate's.
template <class T>
RLKERN_HD KlTerm<T> kl_term(Kl kind, T d, T own, T seen, T bound) {
  const bool of_level = kind == Kl::level_k3;
  const Dual<T> kl = kl_divergence(kind, d, of_level ? seen : own);
  if (!(std::fabs(kl.value) > bound)) return {kl.value, kl.slope, of_level ? kl.value : T(0)};
  const bool straight = kind == Kl::k1_straight_through || kind == Kl::k3_straight_through;
  return {kl.value > 0 ? bound : -bound, straight ? kl.slope : T(0), T(0)};
}

}  // namespace rlkern
