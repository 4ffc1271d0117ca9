// SPDX-License-Identifier: Apache-2.0
// Losses of a value estimate and their derivatives: the C++ home of the formulas defined in
// rlkern/backends/eager/value_loss.py. Of a number, or of vectors of them lane by lane: V is
// either, T the number.
#pragma once

#include "math/host_device.h"

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
template <class V>
struct Penalised {
  V value, slope;
};

template <Penalty kind, class V, class T>
RLKERN_HD Penalised<V> penalise(V error, T delta) {
  const V square = error * error;
  if (kind == Penalty::square) return {square, error + error};
  const V half_square = T(0.5) * error * error;
  if (kind == Penalty::half_square) return {half_square, error};
  const V zero = {}, width = zero + delta;
  const V size = error < zero ? -error : error, tangent = error < zero ? -width : width;
  const auto beyond = size > width;  // false for NaN, which shows in value and slope
  const V line = width * (size - T(0.5) * width);
  return {beyond ? line : half_square, beyond ? tangent : error};
}

// The value brought to within clip of the old one; NaN if either is.
template <class V, class T>
RLKERN_HD V near_old(V value, V old_value, T clip) {
  const V low = old_value - clip, high = old_value + clip;
  const V raised = value < low ? low : value;
  const V near = raised > high ? high : raised;
  return old_value == old_value ? near : old_value;
}

// What is lost, by the penalties of the value and of the value near the old one, and where the clip
// decides. `moved` is where the two values differ, false where one is NaN: that shows in both.
template <ClipRule rule, class V, class Where>
RLKERN_HD Penalised<V> chosen_term(Penalised<V> free, Penalised<V> held, Where moved,
                                   Where* clipped) {
  const V zero = {};
  // Larger only where the clip moved the estimate, so that the slope there is 0.
  *clipped = rule == ClipRule::clipped ? moved : held.value > free.value;
  if (rule == ClipRule::clipped) return {held.value, moved ? zero : held.slope};
  const auto real = held.value == held.value;
  const V slope = real ? free.slope : held.slope;
  return {*clipped ? held.value : real ? free.value : held.value, *clipped ? zero : slope};
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
