// SPDX-License-Identifier: Apache-2.0
// The single-pass policy loss: a cluster for each row, where they are not long enough for the
// pipeline, no gradient is asked for, or there are no clusters.
#include "cuda/launch.cuh"
#include "cuda/policy_loss_pipeline.cuh"
#include "cuda/policy_loss_score.cuh"
#include "cuda/row.cuh"

namespace rlkern {

// One cluster per row; the gradient's row may be the logits'.
// - reads the row once into shared memory, the token's logit once more per block, and the row's
//   scalars; of a row of weight 0 nothing but the weight
// - writes each element of the gradient once, the token's twice, and the statistics of the row
// - never materialises log-probabilities, probabilities or a one-hot row
template <class S, bool CAPPED>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    policy_loss_kernel(const PolicyLoss p, const int log_blocks) {
  const unsigned i = blockIdx.x >> log_blocks, rank = blockIdx.x - (i << log_blocks);
  const Place place(p.call.logits, i);
  const Slice<S> slice(p.call.logits, place, rank, log_blocks, shared_memory() + kBlockBytes);
  S* const grad = p.call.grad.data ? row_of<S>(p.call.grad, place) : nullptr;
  if (p.weight[i] == 0) {
    if (grad) write_zeros(slice, grad);
    return;
  }
  slice.copy();
  const int64_t token = p.call.token[i];
  const Temper<CAPPED> temper(p.call, i);
  // What comes from afar comes with the row: before a gradient may take its place.
  Token<float> scored = {};
  float own_x = 0;
  if (threadIdx.x == 0) {
    scored = token_of(p, i);
    own_x = token_logit(slice.row, token, p.call.logits.vocab);
  }
  const Stat row = row_statistics<false>(slice, temper, 1 << log_blocks);
  if (threadIdx.x == 0) {
    scored.logprob = token_logprob_of(row, temper, own_x);
    scored.entropy = entropy_of(row);
    const TokenResult<float> result = score(p, scored);
    if (rank == 0) store_statistics(p, i, result);
    share_slope(block_memory(), row, temper, own_x, scored.logprob, result.grad_logprob,
                result.grad_entropy, 0.0f);
  }
  __syncthreads();
  cluster_arrive_relaxed();
  if (grad) write_gradient(slice, block_memory(), grad, temper, token);
  cluster_wait();
}

// One block per column of statistics; a fixed order and no atomics: two runs, the same bits.
// - reads its column, which counts where rows do, and the weights
// - writes one sum: the loss or a metric; two blocks also the count and the ratio's bounds
// - never materialises anything
__global__ void __launch_bounds__(kThreads) sum_statistics(const PolicyLoss p) {
  const int64_t rows = p.call.logits.rows;
  const float* column = p.statistics + blockIdx.x * rows;
  float sum = 0, count = 0, low = INFINITY, high = -INFINITY;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < rows; i += kThreads) {
    const bool counts = p.weight[i] != 0;
    const float x = column[i];
    sum += counts ? x : 0.0f;
    count += counts;
    low = counts ? -larger(-low, -x) : low;
    high = counts ? larger(high, x) : high;
  }
  Block* const block = block_memory();
  leave_of_warps(block, 0, sum, Add());
  leave_of_warps(block, 1, count, Add());
  leave_of_warps(block, 2, -low, Larger());
  leave_of_warps(block, 3, high, Larger());
  __syncthreads();
  if (threadIdx.x != 0) return;
  *(blockIdx.x == 0 ? p.loss : p.metrics + blockIdx.x) = join_warps(block, 0, Add());
  if (blockIdx.x == 0) p.metrics[kCount] = join_warps(block, 1, Add());
  if (blockIdx.x != kRatio) return;
  p.metrics[kRatioMin] = -join_warps(block, 2, Larger());
  p.metrics[kRatioMax] = join_warps(block, 3, Larger());
}

}  // namespace rlkern

extern "C" int rlkern_cuda_policy_loss(const rlkern::PolicyLoss* p) {
  using namespace rlkern;
  Device device;
  if (const int error = open_device(p->call.device, &device)) return error;
  const int error = with_dtype(p->call.logits.dtype, [&](auto type) {
    using S = typename decltype(type)::Element;
    const Shape shape = shape_of(int(p->call.logits.vocab), sizeof(S), true);
    if (device.major >= 9 && p->call.grad.data && p->call.logits.rows && is_pipelined(shape))
      return launch_pipeline<S>(*p, shape);
    return launch_rows<S>(
        p->call.softcap ? policy_loss_kernel<S, true> : policy_loss_kernel<S, false>, *p, false);
  });
  if (error) return error;
  return launch(sum_statistics, dim3(kSummedMetrics), 1, kThreads, kBlockBytes, p->call.stream, *p);
}
