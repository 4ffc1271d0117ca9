// SPDX-License-Identifier: Apache-2.0
// The single-pass policy loss. It has never run on a GPU: it is compiled for sm_80, sm_90 and
// sm_100, and the same source runs on a CPU in the tests, which knows nothing of speed.
#include "cuda/launch.cuh"
#include "cuda/row.cuh"
#include "math/token_objective.h"

namespace rlkern {

__device__ inline TokenResult<float> score(const PolicyLoss& p, int64_t i, float logprob,
                                           float entropy) {
  const double* rest = p.coefficients + kGateCoefficients;
  Objective<float> objective{Gate(p.gate),   Level::token,   Kl(p.kl),       {},
                             float(rest[0]), float(rest[1]), float(rest[2]), float(rest[3]),
                             float(rest[4])};
  for (int k = 0; k < kGateCoefficients; ++k) objective.gate_coef[k] = float(p.coefficients[k]);
  const Token<float> token{logprob,
                           entropy,
                           p.advantage[i],
                           p.weight[i],
                           p.old_logprob ? p.old_logprob[i] : logprob,
                           p.ref_logprob ? p.ref_logprob[i] : 0.0f,
                           p.correction ? p.correction[i] : 1.0f,
                           p.penalty ? p.penalty[i] : 0.0f,
                           p.entropy_weight ? p.entropy_weight[i] : p.weight[i],
                           p.nll_weight ? p.nll_weight[i] : 0.0f,
                           p.ref_logprob != nullptr};
  return token_objective(objective, token);
}

// The first column is the loss: the count is that of the weights.
__device__ inline void store_statistics(const PolicyLoss& p, int64_t i,
                                        const TokenResult<float>& result) {
  p.statistics[i] = result.loss;
  for (int k = 1; k < kSummedMetrics; ++k)
    p.statistics[k * p.call.logits.rows + i] = result.metric[k];
}

// One cluster per row; the gradient's row may be the logits'.
// - reads the row once into shared memory, the token's logit once more per block, and the row's
//   scalars; of a row of weight 0 nothing but the weight
// - writes each element of the gradient once, the token's twice, and the statistics of the row
// - never materialises log-probabilities, probabilities or a one-hot row
template <class S, bool CAPPED>
__global__ void __launch_bounds__(kMostThreads, resident_blocks(CAPPED))
    policy_loss_kernel(const PolicyLoss p) {
  const int64_t i = blockIdx.x / cluster_blocks();
  const Slice<S> slice(p.call.logits, i, cluster_rank(), cluster_blocks());
  S* const grad = p.call.grad.data ? row_of<S>(p.call.grad, i) : nullptr;
  if (p.weight[i] == 0) {
    if (grad) write_zeros(slice, grad);
    return;
  }
  const int64_t token = p.call.token[i];
  const Temper<CAPPED> temper(p.call, i);
  const float own_x = token_logit(slice.row, token, p.call.logits.vocab);
  slice.read();
  const Stat row = row_statistics(slice_statistics<false>(slice, temper));
  if (threadIdx.x == 0) {
    const float logprob = token_logprob_of(row, temper, own_x);
    const TokenResult<float> result = score(p, i, logprob, entropy_of(row));
    if (cluster_rank() == 0) store_statistics(p, i, result);
    share_slope(row, temper, own_x, logprob, result.grad_logprob, result.grad_entropy, 0.0f);
  }
  cluster_sync();  // no block writes its gradient, or leaves, before all have read what it has
  if (grad) write_gradient(slice, grad, temper, token);
}

constexpr int kSumThreads = 256;

// One block per column of statistics; a fixed order and no atomics: two runs, the same bits.
// - reads its column where rows count, and the weights
// - writes one sum: the loss or a metric; two blocks also the count and the ratio's bounds
// - never materialises anything
__global__ void __launch_bounds__(kSumThreads) sum_statistics(const PolicyLoss p) {
  const auto add = [](float x, float y) { return x + y; };
  const int64_t rows = p.call.logits.rows;
  const float* column = p.statistics + blockIdx.x * rows;
  float sum = 0, count = 0, low = INFINITY, high = -INFINITY;
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) {
    if (p.weight[i] == 0) continue;
    sum += column[i];
    count += 1;
    low = -larger(-low, -column[i]);
    high = larger(high, column[i]);
  }
  const auto most = [](float x, float y) { return larger(x, y); };
  sum = block_join(sum, add);
  count = block_join(count, add);
  low = -block_join(-low, most);
  high = block_join(high, most);
  if (threadIdx.x != 0) return;
  *(blockIdx.x == 0 ? p.loss : p.metrics + blockIdx.x) = sum;
  if (blockIdx.x == 0) p.metrics[kCount] = count;
  if (blockIdx.x != kRatio) return;
  p.metrics[kRatioMin] = low;
  p.metrics[kRatioMax] = high;
}

}  // namespace rlkern

extern "C" int rlkern_cuda_policy_loss(const rlkern::PolicyLoss* p) {
  using namespace rlkern;
  const int error = with_dtype(p->call.logits.dtype, [&](auto type) {
    using S = typename decltype(type)::Element;
    return launch_rows<S>(
        p->call.softcap ? policy_loss_kernel<S, true> : policy_loss_kernel<S, false>, *p, false);
  });
  Device device;
  if (const int failed = error ? error : open_device(p->call.device, &device)) return failed;
  return launch(sum_statistics, *p, dim3(kSummedMetrics), 1, kSumThreads, kBlockBytes,
                p->call.stream);
}
