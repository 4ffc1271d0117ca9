// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "math/host_device.h"

namespace rlkern {

RLKERN_HD double exp_minus_one(double x) { return std::expm1(x); }

// e^x − 1 of a float. The host's C library has a quick exponential of float64, whose digits are
// left where the 1 cancels, and no quick expm1 of float32.
RLKERN_HD float exp_minus_one(float x) {
#ifdef __CUDA_ARCH__
  return std::expm1(x);
#else
  const double wide = x;
  return float(std::fabs(x) < 1e-5f ? wide * (1 + 0.5 * wide) : std::exp(wide) - 1);
#endif
}

}  // namespace rlkern
