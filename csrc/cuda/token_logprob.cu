// SPDX-License-Identifier: Apache-2.0
// Log-probability of given tokens, with entropy and log-sum-exp, and the backward.
#include "cuda/launch.cuh"
#include "cuda/row.cuh"

namespace rlkern {

// One cluster per row.
// - reads the row once, one more element of it: the token's; nothing of a row that does not count
// - writes five scalars
// - never materialises probabilities
template <class S, bool CAPPED>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    token_logprob_forward(const TokenLogprob p, const int log_blocks) {
  const unsigned i = blockIdx.x >> log_blocks, rank = blockIdx.x - (i << log_blocks);
  const bool writes = rank == 0 && threadIdx.x == 0;
  if (p.mask && !p.mask[i]) {
    if (writes) p.logprob[i] = p.entropy[i] = p.row_max[i] = p.log_sum[i] = p.sum_pi_squared[i] = 0;
    return;
  }
  const Slice<S> slice(p.call.logits, Place(p.call.logits, i), rank, log_blocks,
                       shared_memory() + kBlockBytes);
  slice.copy();
  const Temper<CAPPED> temper(p.call, i);
  const float own_x = writes ? token_logit(slice.row, p.call.token[i], p.call.logits.vocab) : 0.0f;
  const Stat row = row_statistics<true>(slice, temper, 1 << log_blocks);
  if (writes) {
    p.logprob[i] = token_logprob_of(row, temper, own_x);
    p.entropy[i] = entropy_of(row);
    const bool nothing = row.sum == 0;  // but −inf, which less itself is NaN
    p.row_max[i] = nothing ? -INFINITY : row.max;
    p.log_sum[i] = nothing ? NAN : logf(row.sum);
    p.sum_pi_squared[i] = row.square_sum / (row.sum * row.sum);
  }
  cluster_arrive_relaxed();
  cluster_wait();
}

// As many blocks per row as its forward has, each alone; the gradient's row may be the logits'.
// - reads the row once, and the forward's scalars; of a row that does not count nothing
// - writes each element of the gradient once, the token's twice
// - never materialises probabilities or a one-hot row
template <class S, bool CAPPED>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    token_logprob_backward(const TokenLogprobBackward p, const int log_blocks) {
  const unsigned i = blockIdx.x >> log_blocks, rank = blockIdx.x - (i << log_blocks);
  const Place place(p.call.logits, i);
  const Slice<S> slice(p.call.logits, place, rank, log_blocks, shared_memory() + kBlockBytes);
  S* const grad = row_of<S>(p.call.grad, place);
  if (p.mask && !p.mask[i]) return write_zeros(slice, grad);
  slice.copy();
  const int64_t token = p.call.token[i];
  const Temper<CAPPED> temper(p.call, i);
  if (threadIdx.x == 0) {
    // The sums may be those of a larger vocabulary that this row is a slice of.
    const float log_sum = p.log_sum[i], sum = expf(log_sum);
    const Stat row{p.row_max[i], sum, (log_sum - p.entropy[i]) * sum, 0};
    const int at = slice.place(token);
    const float own_x = at < 0 ? NAN : to_float(slice.row[token]);
    share_slope(block_memory(), row, temper, own_x, token_logprob_of(row, temper, own_x),
                p.grad_logprob ? p.grad_logprob[i] : 0.0f,
                p.grad_entropy ? p.grad_entropy[i] : 0.0f, p.grad_lse ? p.grad_lse[i] : 0.0f);
  }
  wait_for_copies();
  __syncthreads();
  write_gradient(slice, block_memory(), grad, temper, token);
}

}  // namespace rlkern

extern "C" int rlkern_cuda_token_logprob(const rlkern::TokenLogprob* p) {
  using namespace rlkern;
  return with_dtype(p->call.logits.dtype, [&](auto type) {
    using S = typename decltype(type)::Element;
    return launch_rows<S>(
        p->call.softcap ? token_logprob_forward<S, true> : token_logprob_forward<S, false>, *p,
        false);
  });
}

extern "C" int rlkern_cuda_token_logprob_backward(const rlkern::TokenLogprobBackward* p) {
  using namespace rlkern;
  return with_dtype(p->call.logits.dtype, [&](auto type) {
    using S = typename decltype(type)::Element;
    return launch_rows<S>(
        p->call.softcap ? token_logprob_backward<S, true> : token_logprob_backward<S, false>, *p,
        true);
  });
}
