// SPDX-License-Identifier: Apache-2.0
// Losses of a value estimate and their derivatives: the C++ home of the formulas defined in
// rlkern/backends/eager/value_loss.py. No torch headers; host and device.
#pragma once

#include <cmath>

#ifndef RLKERN_HD
#ifdef __CUDACC__
#define RLKERN_HD __host__ __device__ inline
#else
#define RLKERN_HD inline
#endif
#endif

namespace rlkern {

// The order is that of VALUE_KINDS in the reference.
enum class ValueKind : int {
  squared,
  full_squared,
  huber,
  clipped,
  full_clipped,
  clipped_huber,
  clipped_only
};
constexpr int kValueKinds = 7;
enum class Penalty : int { half_square, square, huber };
enum class ClipRule : int { free, larger, clipped };

RLKERN_HD constexpr Penalty penalty_of(ValueKind kind) {
  switch (kind) {
    case ValueKind::squared:
    case ValueKind::clipped:
      return Penalty::half_square;
    case ValueKind::huber:
    case ValueKind::clipped_huber:
      return Penalty::huber;
    default:
      return Penalty::square;
  }
}

RLKERN_HD constexpr ClipRule clip_rule_of(ValueKind kind) {
  switch (kind) {
    case ValueKind::clipped:
    case ValueKind::full_clipped:
    case ValueKind::clipped_huber:
      return ClipRule::larger;
    case ValueKind::clipped_only:
      return ClipRule::clipped;
    default:
      return ClipRule::free;
  }
}

// A penalty of an error and its derivative in the error.
template <class T>
struct Penalised {
  T value, slope;
};

template <Penalty kind, class T>
RLKERN_HD Penalised<T> penalise(T error, T delta) {
  if (kind == Penalty::half_square) return {T(0.5) * error * error, error};
  if (kind == Penalty::square) return {error * error, 2 * error};
  const T size = std::abs(error), tangent = std::copysign(delta, error);
  const bool beyond = size > delta;  // false for NaN, which shows in value and slope
  const T square = T(0.5) * error * error, line = delta * (size - T(0.5) * delta);
  return {beyond ? line : square, beyond ? tangent : error};
}

template <class T>
struct ValueTerm {
  T value, slope;
  bool clipped;
};

// The value brought to within clip of the old one.
template <class T>
RLKERN_HD T near_old(T value, T old_value, T clip) {
  const T low = old_value - clip, high = old_value + clip;
  const T raised = value < low ? low : value;
  return raised > high ? high : raised;
}

// What is lost, from the penalties of the value and of the value near the old one.
template <ClipRule rule, class T>
RLKERN_HD ValueTerm<T> chosen_term(Penalised<T> free, Penalised<T> held, bool moved) {
  if (rule == ClipRule::free) return {free.value, free.slope, false};
  if (rule == ClipRule::clipped) return {held.value, moved ? T(0) : held.slope, moved};
  // Larger only where the clip moved the estimate, so that the slope there is 0.
  const bool clipped = held.value > free.value;
  return {clipped ? held.value : free.value, clipped ? T(0) : free.slope, clipped};
}

// The order is that of VALUE_METRICS in the reference.
enum ValueMetric : int {
  kValueCount,
  kValueValue,
  kValueTarget,
  kValueError,
  kValueErrorSquare,
  kValueTargetSquare,
  kValueClipped,
  kValueMetrics
};

}  // namespace rlkern
