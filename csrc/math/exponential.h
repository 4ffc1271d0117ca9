// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "math/host_device.h"

namespace rlkern {

// e^x and e^x − 1.
template <class T>
struct Exponential {
  T whole, minus_one;
};

RLKERN_HD Exponential<double> exponential(double x) { return {std::exp(x), std::expm1(x)}; }

// Of a float. The host's C library has a quick exponential of float64, whose digits are left where
// the 1 cancels, and no quick expm1 of float32.
RLKERN_HD Exponential<float> exponential(float x) {
#ifdef __CUDA_ARCH__
  return {std::exp(x), std::expm1(x)};
#else
  const double wide = x, whole = std::exp(wide);
  return {float(whole), float(std::fabs(x) < 1e-5f ? wide * (1 + 0.5 * wide) : whole - 1)};
#endif
}

template <class T>
RLKERN_HD T exp_minus_one(T x) {
  return exponential(x).minus_one;
}

}  // namespace rlkern
