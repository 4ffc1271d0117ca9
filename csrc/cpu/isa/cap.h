// SPDX-License-Identifier: Apache-2.0
// A logit as the row's softmax takes it: as it is, or capped.
#pragma once

#include <cmath>

#include "cpu/isa/simd.h"

namespace rlkern::RLKERN_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();

struct Uncapped {
  explicit Uncapped(double) {}
  Vec operator()(Vec x) const { return x; }
};

struct Capped {
  float cap, inverse;
  explicit Capped(double softcap) : cap(float(softcap)), inverse(float(1 / softcap)) {}
  // Also of the −inf beyond a row's end: what has no probability keeps none.
  Vec operator()(Vec x) const { return x == -kInfinity ? x : cap * tangent(x * inverse); }
};

[[maybe_unused]] double capped(double x, double softcap) {
  const bool banned = x == -__builtin_inf();
  return softcap == 0 || banned ? x : softcap * std::tanh(x / softcap);
}

}  // namespace
}  // namespace rlkern::RLKERN_ISA
