// SPDX-License-Identifier: Apache-2.0
// Reads each counted row once, writes its gradient once; never materialises log-probabilities of
// the vocabulary. Rows of weight 0 are not read.
#include "cpu/policy_loss.h"

#include <cmath>
#include <memory>

namespace rlkern {
namespace {

// How many rows a thread takes through each step together: what a short row waits for, its next
// neighbours do not, and a processor looks some hundred instructions ahead.
template <class T>
int64_t rows_together(const Grid& logits, const Softmax<T>& softmax) {
  constexpr int64_t kRows = 16, kElements = 2048;
  return softmax.keep ? 1 : std::clamp<int64_t>(kElements / logits.vocab, 1, kRows);
}

// A thread's room for the exponentials of rows.
struct Stash {
  int64_t vocab, blocks;
  std::vector<float> scratch, block_max;

  Stash(int64_t vocab, int64_t rows, bool with_scratch)
      : vocab(vocab),
        blocks((vocab + kBlock - 1) / kBlock),
        scratch(with_scratch ? vocab * rows : 0),
        block_max(blocks * rows) {}
};

// A row between its sums and its gradient.
struct SummedRow {
  OpenRow open;
  RowSums sums;
  RowSlope slope;
  float *stash, *block_max;  // stash: or null

  template <class T>
  SummedRow(RowReader<T>& reader, int64_t i, int64_t ahead) : open(reader.open(i, ahead)) {}

  // The k-th of those that share the room; float32 rows stash where their gradient goes.
  void sum(bool may_stash, Stash& room, int64_t k) {
    const RowKernels& kernels = open.kernels();
    stash = nullptr;
    if (!may_stash || !kernels.sums_stashed) {
      sums = kernels.sums(open.row);
      return;
    }
    const bool in_grad = open.dtype == kFloat32;
    stash = in_grad ? static_cast<float*>(open.grad) : room.scratch.data() + k * room.vocab;
    block_max = room.block_max.data() + k * room.blocks;
    sums = kernels.sums_stashed(open.row, stash, block_max);
  }

  template <class T>
  TokenResult<T> score(const Objective<T>& objective, const TokenRows<T>& rows, int64_t i) {
    const double u = open.token_u(sums), log_sum = std::log(sums.sum);
    const T logprob = T(u - log_sum), entropy = T(log_sum - sums.weighted_sum / sums.sum);
    const TokenResult<T> result = token_objective(objective, rows.at(i, logprob, entropy));
    slope = row_slope(sums, u, logprob, result.grad_logprob, result.grad_entropy, T(0));
    slope.token *= open.token_cap_slope();
    return result;
  }

  void write_gradient() const {
    const RowKernels& kernels = open.kernels();
    if (stash) {
      kernels.gradient_stashed(open.row, sums, slope, open.token, stash, block_max, open.grad);
    } else {
      kernels.gradient(open.row, sums, slope, open.token, open.grad);
    }
  }
};

}  // namespace

template <class T>
void policy_loss(const Grid& logits, const int64_t* token, const TokenRows<T>& rows,
                 const Softmax<T>& softmax, const Objective<T>& objective, const Grid* grad_logits,
                 T* loss, T* metrics, int threads) {
  const RowOrder order(logits.rows(), [&](int64_t i) { return rows.counts(i); });
  check_tokens("policy_loss", logits, order.counted, token);
  // Not a vector, which would fill them with zeros first.
  const std::unique_ptr<TokenResult<T>[]> results(new TokenResult<T>[order.counted.size()]);
  const bool may_stash = grad_logits && objective.entropy_coef == 0 && softmax.softcap == 0;
  const int64_t together = rows_together(logits, softmax);
  const auto rows_from = [&](int64_t first, int64_t last) {
    RowReader<T> reader(logits, token, softmax, grad_logits);
    const int64_t longest = std::max(logits.vocab, softmax.keep_width + 1);
    Stash room(longest, together, may_stash && logits.dtype != kFloat32);
    std::vector<SummedRow> summed;
    summed.reserve(together);
    for (int64_t begin = first; begin < last; begin += together) {
      const int64_t end = std::min(begin + together, last);
      summed.clear();
      for (int64_t k = begin; k < end; ++k) {
        summed.emplace_back(reader, order.counted[k], k + 1 < last ? order.counted[k + 1] : -1);
        summed.back().sum(may_stash, room, k - begin);
      }
      for (int64_t k = begin; k < end; ++k) {
        results[k] = summed[k - begin].score(objective, rows, order.counted[k]);
      }
      for (int64_t k = begin; k < end && grad_logits; ++k) {
        summed[k - begin].write_gradient();
        reader.close(order.counted[k]);
      }
    }
  };
  parallel(order.counted.size(), logits.vocab + kRowOverhead, threads, rows_from);
  if (grad_logits) zero_rows(*grad_logits, order.masked, threads);
  sum_results(results.get(), order.counted.size(), loss, metrics);
}

#define RLKERN_INSTANTIATE(T)                                                                    \
  template void policy_loss(const Grid&, const int64_t*, const TokenRows<T>&, const Softmax<T>&, \
                            const Objective<T>&, const Grid*, T*, T*, int);
RLKERN_INSTANTIATE(float)
RLKERN_INSTANTIATE(double)

}  // namespace rlkern
