// SPDX-License-Identifier: Apache-2.0
// One row of logits in numbers, and its gradient. All in coordinates u = z − max z, z = logit /
// temperature: nothing depends on a common offset of the logits.
#pragma once

#include <cmath>

#include "math/exponential.h"
#include "math/host_device.h"

namespace rlkern {

// What one sweep over a row leaves: its largest logit x, Σ exp u, Σ u·exp u and Σ (exp u)².
struct RowSums {
  double max, sum, weighted_sum, square_sum;
};

// The row gradient is dz_j = p_j·(a + b·u_j), but for the token's own element.
struct RowSlope {
  double a, b, token;
};

// ∂/∂z of grad_logprob·log π + grad_entropy·H + grad_lse·lse, where H = log s − t/s, lse = max +
// log s. For the token p − 1 is formed as expm1(log π): near p = 1 the difference would cancel, as
// p formed from p − 1 would near p = 0.
template <class T>
RLKERN_HD RowSlope row_slope(const RowSums& sums, double token_u, T logprob, T grad_logprob,
                             T grad_entropy, T grad_lse) {
  const T rest = grad_lse + grad_entropy * T(sums.weighted_sum / sums.sum);
  const Exponential<T> p = exponential(logprob);
  // A token of probability 0 has u = −inf, and 0·inf is no gradient.
  const T u = std::isinf(token_u) ? T(0) : T(token_u);
  return {rest - grad_logprob, -grad_entropy,
          p.whole * (rest - grad_entropy * u) - grad_logprob * p.minus_one};
}

}  // namespace rlkern
