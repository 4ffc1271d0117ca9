// SPDX-License-Identifier: Apache-2.0
// Tokens of weight 0 are not read; their gradients are 0.
#include "cpu/token_objective.h"

#include <algorithm>
#include <limits>

namespace rlkern {
namespace {

// Scores the tokens [begin, end) of one sequence, whose ratio their gate shares.
template <class T>
void score_sequence(int64_t begin, int64_t end, const T* logprob, const T* entropy,
                    const TokenRows<T>& rows, const Objective<T>& o,
                    std::vector<TokenResult<T>>& results, T* grad_logprob) {
  double sum = 0, slope = 0;
  int64_t tokens = 0;
  const auto own_of = [&](const Token<T>& x) {
    return own_ratio(o.level, x.log_ratio(), x.advantage, o.gate_coef[0], o.gate_coef[1]);
  };
  for (int64_t i = begin; i < end; ++i) {
    if (!rows.counts(i)) continue;
    sum += own_of(rows.at(i, logprob[i], entropy[i])).log_ratio;
    ++tokens;
  }
  const T shared = T(sequence_ratio(o.level, sum, tokens));
  const size_t first = results.size();
  for (int64_t i = begin; i < end; ++i) {
    if (!rows.counts(i)) continue;
    const Token<T> x = rows.at(i, logprob[i], entropy[i]);
    OwnRatio<T> ratio = own_of(x);
    ratio.log_ratio = shared;
    results.push_back(score_token(o, x, ratio));
    slope += results.back().grad_ratio;
  }
  size_t k = first;
  for (int64_t i = begin; i < end; ++i) {
    if (!rows.counts(i)) continue;
    const TokenResult<T>& r = results[k++];
    const OwnRatio<T> own = own_of(rows.at(i, logprob[i], entropy[i]));
    const T through_ratio = o.level == Level::sequence_token
                                ? r.grad_ratio
                                : T(slope * share_of_gradient(o.level, own, tokens));
    grad_logprob[i] = r.grad_logprob + through_ratio;
  }
}

}  // namespace

template <class T>
void sum_results(const TokenResult<T>* results, size_t count, T* loss, T* metrics) {
  double total = 0, sums[kSummedMetrics] = {};
  T smallest = std::numeric_limits<T>::infinity(), largest = -smallest;
  for (size_t i = 0; i < count; ++i) {
    const TokenResult<T>& r = results[i];
    total += r.loss;
    for (int m = 0; m < kSummedMetrics; ++m) sums[m] += r.metric[m];
    const T ratio = r.metric[kRatio];
    if (ratio < smallest || ratio != ratio) smallest = ratio;  // once NaN, no ratio is smaller
    if (ratio > largest || ratio != ratio) largest = ratio;
  }
  *loss = T(total);
  for (int m = 0; m < kSummedMetrics; ++m) metrics[m] = T(sums[m]);
  metrics[kRatioMin] = smallest;
  metrics[kRatioMax] = largest;
}

template <class T>
void token_objective(const Sequences& sequences, const T* logprob, const T* entropy,
                     const TokenRows<T>& rows, const Objective<T>& objective, T* loss, T* metrics,
                     T* grad_logprob, T* grad_entropy) {
  std::vector<TokenResult<T>> results;
  results.reserve(sequences.steps());
  for (int64_t s = 0; s < sequences.count; ++s) {
    const int64_t begin = sequences.begin(s), end = sequences.end(s);
    for (int64_t i = begin; i < end; ++i) {
      grad_logprob[i] = 0;
      grad_entropy[i] = rows.counts(i) ? -objective.entropy_coef * rows.of_entropy(i) : T(0);
    }
    if (objective.level != Level::token) {
      score_sequence(begin, end, logprob, entropy, rows, objective, results, grad_logprob);
      continue;
    }
    for (int64_t i = begin; i < end; ++i) {
      if (!rows.counts(i)) continue;
      results.push_back(token_objective(objective, rows.at(i, logprob[i], entropy[i])));
      grad_logprob[i] = results.back().grad_logprob;
    }
  }
  sum_results(results.data(), results.size(), loss, metrics);
}

#define RLKERN_INSTANTIATE(T)                                                              \
  template void sum_results(const TokenResult<T>*, size_t, T*, T*);                        \
  template void token_objective(const Sequences&, const T*, const T*, const TokenRows<T>&, \
                                const Objective<T>&, T*, T*, T*, T*);
RLKERN_INSTANTIATE(float)
RLKERN_INSTANTIATE(double)

}  // namespace rlkern
