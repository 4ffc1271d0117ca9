// SPDX-License-Identifier: Apache-2.0
// The token objective and its derivatives: the C++ home of
// rlkern/backends/eager/token_objective.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "math/exponential.h"
#include "math/gates.h"
#include "math/host_device.h"
#include "math/kl.h"
#include "math/levels.h"

namespace rlkern {

template <class T>
struct Objective {
  Gate gate;
  Level level;
  Kl kl;
  T gate_coef[kGateCoefficients];
  T kl_coef, entropy_coef, log_ratio_min, log_ratio_max, kl_max;
};

// One counted token. Without an old policy old_logprob is logprob itself, without a reference
// has_ref is false, without a correction it is 1, without an entropy_weight it is the weight.
template <class T>
struct Token {
  T logprob, entropy, advantage, weight, old_logprob, ref_logprob, correction;
  T penalty, entropy_weight, nll_weight;
  bool has_ref;

  // 0 where nobody knows what the old policy said: NaN.
  RLKERN_HD T log_ratio() const {
    return logprob - (old_logprob != old_logprob ? logprob : old_logprob);
  }
};

// The order is that of METRICS in the reference.
enum Metric : int {
  kCount,
  kLogprob,
  kEntropy,
  kKl,
  kKl1,
  kKl2,
  kKl3,
  kOldKl,
  kOldKl1,
  kRatio,
  kClipLow,
  kClipHigh,
  kCorrection,
  kRatioMin,
  kRatioMax
};
constexpr int kSummedMetrics = 13, kMetrics = 15;

// All weighted but the metrics. grad_ratio is the derivative in the log ratio that the level made;
// whose log π that depends on is the level's to say.
template <class T>
struct TokenResult {
  T loss, grad_logprob, grad_ratio, grad_entropy;
  T metric[kSummedMetrics];
};

// factor·x, and 0 for a factor of 0 also where x is infinite or NaN: it drops the term.
template <class T>
RLKERN_HD T scaled_term(T factor, T x) {
  return factor == 0 ? T(0) : factor * x;
}

// gate_ratio: the log ratio that the level makes of this token's, or of its sequence's.
template <class T>
RLKERN_HD TokenResult<T> score_token(const Objective<T>& o, const Token<T>& x,
                                     const OwnRatio<T>& gate_ratio) {
  const T log_ratio = x.log_ratio(), difference = x.logprob - x.ref_logprob;
  const T seen = clamped(gate_ratio.log_ratio, o.log_ratio_min, o.log_ratio_max);
  const bool beyond = seen < gate_ratio.log_ratio || seen > gate_ratio.log_ratio;
  // Of its own ratio a token has the power anyway, in the old policy's KL.
  const T ratio = seen == log_ratio ? exponential(log_ratio).whole : std::exp(seen);
  const Gated<T> gate = apply_gate(o.gate, o.gate_coef, x.logprob, seen, ratio, x.advantage);
  KlTerm<T> kl = {0, 0, 0};
  T k3 = 0;
  if (x.has_ref) {  // k3 first: where the term is k3 too, the compiler takes it from here
    k3 = kl_k3(difference).value;
    kl = kl_term(o.kl, difference, log_ratio, seen, o.kl_max);
  }
  // Where there is no weight, an infinite factor is 0 too.
  const T penalty = x.penalty != 0 ? x.penalty * std::fabs(log_ratio) : T(0);
  const T penalty_slope = x.penalty * (T(log_ratio > 0) - T(log_ratio < 0));
  const T nll = x.nll_weight != 0 ? x.nll_weight * x.logprob : T(0);
  TokenResult<T> r;
  r.loss = x.weight *
               (scaled_term(x.correction, gate.loss) + scaled_term(o.kl_coef, kl.value) + penalty) -
           o.entropy_coef * x.entropy_weight * x.entropy - nll;
  r.grad_logprob = x.weight * (scaled_term(x.correction, gate.slope) +
                               scaled_term(o.kl_coef, kl.slope) + penalty_slope) -
                   x.nll_weight;
  const T ratio_slope =
      scaled_term(x.correction, gate.ratio_slope) + scaled_term(o.kl_coef, kl.ratio_slope);
  r.grad_ratio = beyond ? T(0) : x.weight * ratio_slope;
  r.grad_entropy = -o.entropy_coef * x.entropy_weight;
  r.metric[kCount] = 1;
  r.metric[kLogprob] = x.logprob;
  r.metric[kEntropy] = x.entropy;
  r.metric[kKl] = kl.value;
  r.metric[kKl1] = x.has_ref ? kl_k1(difference).value : T(0);
  r.metric[kKl2] = x.has_ref ? kl_k2(difference).value : T(0);
  r.metric[kKl3] = k3;
  r.metric[kOldKl] = kl_k3(-log_ratio).value;  // the old policy drew the token: KL(π_old‖π)
  r.metric[kOldKl1] = -log_ratio;
  r.metric[kRatio] = ratio;
  r.metric[kClipLow] = gate.clip_low || gate_ratio.clip_low;
  r.metric[kClipHigh] = gate.clip_high || gate_ratio.clip_high;
  r.metric[kCorrection] = x.correction;
  return r;
}

// Level token: the gate's ratio is the token's own, so its derivative is one in log π.
template <class T>
RLKERN_HD TokenResult<T> token_objective(const Objective<T>& o, const Token<T>& x) {
  TokenResult<T> r = score_token(o, x, OwnRatio<T>{x.log_ratio(), false, false});
  r.grad_logprob += r.grad_ratio;
  return r;
}

}  // namespace rlkern
