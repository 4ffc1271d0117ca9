// SPDX-License-Identifier: Apache-2.0
// Ratio levels: the C++ home of rlkern/backends/eager/levels.py. A sequence is summed first
// (Ratio), then every token of it is asked for its share of the gradient.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace rlkern {

// The order is that of LEVELS in the reference.
enum class Level : int { token, sequence, sequence_token, product, clipped_sequence };
constexpr Level kLastLevel = Level::clipped_sequence;

// A token's own log ratio as its level takes it into the sequence's, and where a clip holds it.
template <class T>
struct OwnRatio {
  T log_ratio;
  bool clip_low, clip_high;
};

template <class T>
RLKERN_HD OwnRatio<T> own_ratio(Level level, T log_ratio, T advantage, T low, T high) {
  if (level == Level::clipped_sequence) {
    if (advantage >= 0 && log_ratio > high) return {high, false, true};
    if (!(advantage >= 0) && log_ratio < -low) return {-low, true, false};
  }
  return {log_ratio, false, false};
}

// The sequence's log ratio from the sum over its tokens; 64 bits, as a sum of thousands needs.
RLKERN_HD double sequence_ratio(Level level, double sum, int64_t tokens) {
  return level == Level::product ? sum : sum / double(tokens > 0 ? tokens : 1);
}

// ∂(the sequence's log ratio)/∂(log π of this token); sequence_token's gradient is its own alone.
template <class T>
RLKERN_HD double share_of_gradient(Level level, const OwnRatio<T>& own, int64_t tokens) {
  if (level == Level::product) return 1;
  return own.clip_low || own.clip_high ? 0 : 1.0 / double(tokens);
}

// What a gate sees of a log ratio: within [low, high]. A NaN is on neither side.
template <class T>
RLKERN_HD T clamped(T log_ratio, T low, T high) {
  return log_ratio < low ? low : (log_ratio > high ? high : log_ratio);
}

}  // namespace rlkern
