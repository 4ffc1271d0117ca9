// SPDX-License-Identifier: Apache-2.0
// One row's token under the objective: what is read for it, its result, and where that is kept.
#pragma once

#include "cuda/arguments.h"
#include "cuda/machine.cuh"
#include "math/token_objective.h"

namespace rlkern {

__device__ inline Token<float> token_of(const PolicyLoss& p, unsigned i) {
  const float weight = p.weight[i];
  return {0,
          0,
          p.advantage[i],
          weight,
          p.old_logprob ? p.old_logprob[i] : NAN,  // which stands for the token's own
          p.ref_logprob ? p.ref_logprob[i] : 0.0f,
          p.correction ? p.correction[i] : 1.0f,
          p.penalty ? p.penalty[i] : 0.0f,
          p.entropy_weight ? p.entropy_weight[i] : weight,
          p.nll_weight ? p.nll_weight[i] : 0.0f,
          p.ref_logprob != nullptr};
}

__device__ inline TokenResult<float> score(const PolicyLoss& p, const Token<float>& token) {
  const double* rest = p.coefficients + kGateCoefficients;
  Objective<float> objective{Gate(p.gate),   Level::token,   Kl(p.kl),       {},
                             float(rest[0]), float(rest[1]), float(rest[2]), float(rest[3]),
                             float(rest[4])};
  for (int k = 0; k < kGateCoefficients; ++k) objective.gate_coef[k] = float(p.coefficients[k]);
  return token_objective(objective, token);
}

// The first column is the loss: the count is that of the weights.
__device__ inline void store_statistics(const PolicyLoss& p, unsigned i,
                                        const TokenResult<float>& result) {
  p.statistics[i] = result.loss;
  for (int k = 1; k < kSummedMetrics; ++k)
    p.statistics[k * p.call.logits.rows + i] = result.metric[k];
}

}  // namespace rlkern
