// SPDX-License-Identifier: Apache-2.0
// A row in numbers, of its slices' sums, and its gradient.
#pragma once

#include <cfloat>
#include <cmath>

#include "cuda/slice.cuh"
#include "math/row.h"

namespace rlkern {

// A row in numbers, in coordinates d = z − max, z = logit / temperature.
struct alignas(16) Stat {
  float max, sum, weighted_sum, square_sum;
};

// What those who treat a row share beside their slice.
struct Block {
  Stat slice;
  float scale, shift, a, b, of_token;  // of the row: what its gradient is made of
  float of_warps[4][kWarps];
};
static_assert(sizeof(Block) <= kBlockBytes, "the slice lies behind it");

__device__ inline Block* block_memory() { return reinterpret_cast<Block*>(shared_memory()); }

// Which distribution the row stands for: z = factor·bounded(logit).
template <bool CAPPED>
struct Temper {
  // How many groups of a loop are under way at a time: tangents are long enough.
  static constexpr int kUnroll = CAPPED ? 1 : 2;
  float inv_temperature, factor, inv_cap;

  __device__ Temper(const Call& call, unsigned i)
      : inv_temperature(call.inv_temperature ? call.inv_temperature[i] : 1.0f),
        factor(CAPPED ? inv_temperature * float(call.softcap) : inv_temperature),
        inv_cap(CAPPED ? 1 / float(call.softcap) : 0.0f) {}
  // A banned token stays banned.
  __device__ float bounded(float x) const {
    return !CAPPED || x == -INFINITY ? x : tanhf(x * inv_cap);
  }
  // What the cap takes off the gradient, times factor; 0, not −inf, for a banned token.
  __device__ float cap_slope(float bounded) const {
    return CAPPED ? fmaxf(1 - bounded * bounded, 0.0f) : 1.0f;
  }
};

constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

// exp(z − max) as a power of 2, by one multiplication and addition for each logit:
// z − max = ln 2·(power(bounded) − lost) and exp(z − max) = 2^power / unit, where lost and unit are
// what rounding max and shift has made of 0 and 1. That of the largest logit is 1 exactly.
struct Powers {
  // Beyond it float32 tells equal logits from others, and little else.
  static constexpr float kMostShift = 1 << 30;
  // 2 to this power is 0. Lower ones are not formed: 0·(−inf) would be NaN.
  static constexpr float kLowest = -151;
  float scale, shift, lost, unit;

  __device__ float power(float bounded) const { return fmaf(bounded, scale, -shift); }
  __device__ float finite_power(float bounded) const { return larger(power(bounded), kLowest); }
};

// top: the bounded logit of which max is factor times as large, but for rounding.
__device__ inline Powers powers_of(float factor, float top, float max) {
  Powers powers;
  powers.scale = factor * kLog2e;
  powers.shift = top * powers.scale;
  float of_max = fmaf(top, factor, -max) * kLog2e;
  if (fabsf(powers.shift) >= Powers::kMostShift) {
    powers.scale = power_of_2_below(factor);
    powers.shift = top * powers.scale;  // exact
    of_max = 0;
  }
  const float of_shift = fmaf(top, powers.scale, -powers.shift);
  powers.lost = of_shift - of_max;
  powers.unit = exp2_fast(of_shift) * exp2f(-of_max);
  return powers;
}

// Leaves join over each warp in shared memory; after a barrier join_warps returns it of the team.
template <class Join>
__device__ void leave_of_warps(Block* block, int slot, float x, Join join) {
  x = warp_join(x, join);
  if (member() % kWarp == 0) block->of_warps[slot][member() / kWarp] = x;
}

template <class Join>
__device__ float join_warps(const Block* block, int slot, Join join) {
  const float* const of_warps = block->of_warps[slot];
  float x = of_warps[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) x = join(x, of_warps[warp]);
  return x;
}

// What warps leave of a slice.
enum Left : int { kSum, kWeightedSum, kSquareSum, kLargest };

// Joins over a team.
struct Add {
  __device__ float operator()(float x, float y) const { return x + y; }
};
struct Larger {
  __device__ float operator()(float x, float y) const { return larger(x, y); }
};

// Slices of nothing but −inf have a sum of 0 and the lowest maximum, and so change nothing.
__device__ inline Stat join(const Stat& x, const Stat& y) {
  const float max = larger(x.max, y.max);
  const float dx = larger(x.max - max, -104.0f), dy = larger(y.max - max, -104.0f);
  const float ex = expf(dx), ey = expf(dy);
  return {max, x.sum * ex + y.sum * ey,
          (x.weighted_sum + dx * x.sum) * ex + (y.weighted_sum + dy * y.sum) * ey,
          x.square_sum * ex * ex + y.square_sum * ey * ey};
}

// The statistics of a row, from those of its slices, stat(rank): joined in the order of the slices,
// so that all blocks of a cluster have the same bits.
template <class OfSlice>
__device__ Stat joined(int blocks, OfSlice stat) {
  Stat row = stat(0);
  for (int rank = 1; rank < blocks; ++rank) row = join(row, stat(rank));
  return row;
}

// The largest logit of a slice, which each warp has left: bounded, and as z.
template <bool CAPPED>
struct Top {
  float bounded, max;
  __device__ Top(const Block* block, const Temper<CAPPED>& temper)
      : bounded(temper.bounded(join_warps(block, kLargest, Larger()))),
        max(bounded * temper.factor) {}
};

// Adds up a slice for each warp to leave: 2^p, p·2^p and the square of the first.
template <bool SQUARES, bool ALIGNED, class S, bool CAPPED>
__device__ void leave_sums(const Slice<S>& slice, Block* block, const Temper<CAPPED>& temper,
                           const Powers& powers) {
  const int groups = slice.groups();
  float sum = 0, weighted_sum = 0, square_sum = 0;
#pragma unroll Temper < CAPPED> ::kUnroll
  for (int g = member(); g < groups; g += kThreads) {
    slice.template group_at<ALIGNED>(g * Group<S>::kWidth).each([&](float x) {
      const float p = powers.finite_power(temper.bounded(x)), e = exp2_fast(p);
      sum += e;
      weighted_sum += e * p;
      if (SQUARES) square_sum += e * e;
    });
  }
  leave_of_warps(block, kSum, sum, Add());
  leave_of_warps(block, kWeightedSum, weighted_sum, Add());
  if (SQUARES) leave_of_warps(block, kSquareSum, square_sum, Add());
}

// A team leaves what slice_statistics() makes statistics of, after a barrier more.
template <bool SQUARES, class S, bool CAPPED>
__device__ void sum_slice(const Slice<S>& slice, Block* block, const Temper<CAPPED>& temper) {
  leave_of_warps(block, kLargest, slice.largest_copied(), Larger());
  team_sync();
  const Top<CAPPED> top(block, temper);
  if (top.max == -INFINITY) return;
  const Powers powers = powers_of(temper.factor, top.bounded, top.max);
  if (misalignment(slice.kept) == 0)
    leave_sums<SQUARES, true>(slice, block, temper, powers);
  else
    leave_sums<SQUARES, false>(slice, block, temper, powers);
}

// The statistics of a slice, in one thread.
template <bool SQUARES, bool CAPPED>
__device__ Stat slice_statistics(const Block* block, const Temper<CAPPED>& temper) {
  const Top<CAPPED> top(block, temper);
  if (top.max == -INFINITY) return {-FLT_MAX, 0, 0, 0};
  const Powers powers = powers_of(temper.factor, top.bounded, top.max);
  const float sum = join_warps(block, kSum, Add()), unit = powers.unit;
  return {top.max, sum / unit,
          (join_warps(block, kWeightedSum, Add()) - powers.lost * sum) * kLn2 / unit,
          SQUARES ? join_warps(block, kSquareSum, Add()) / unit / unit : 0.0f};
}

// The statistics, in the first thread of every block of a cluster, of a row that each thread's
// copies have filled in part. No block may leave before all have used theirs.
template <bool SQUARES, class S, bool CAPPED>
__device__ Stat row_statistics(const Slice<S>& slice, const Temper<CAPPED>& temper, int blocks) {
  Block* const block = block_memory();
  wait_for_copies();
  sum_slice<SQUARES>(slice, block, temper);
  team_sync();
  if (threadIdx.x == 0) block->slice = slice_statistics<SQUARES>(block, temper);
  if (threadIdx.x < kWarp)
    cluster_arrive();
  else
    cluster_arrive_relaxed();
  cluster_wait();
  if (threadIdx.x != 0) return {};
  return joined(blocks, [&](int rank) { return of_block(&block->slice, rank); });
}

// The token's logit; NaN, not foreign memory, for a token that is no column of the row.
template <class S>
__device__ float token_logit(const S* row, int64_t token, int64_t vocab) {
  return token >= 0 && token < vocab ? to_float(row[token]) : NAN;
}

template <bool CAPPED>
__device__ float token_logprob_of(const Stat& row, const Temper<CAPPED>& temper, float own_x) {
  return fmaf(temper.bounded(own_x), temper.factor, -row.max) - logf(row.sum);
}

__device__ inline float entropy_of(const Stat& row) {
  return logf(row.sum) - row.weighted_sum / row.sum;
}

// What the gradient of a row is made of, from its scalars: in one thread. The gradient is dz =
// exp(d)·(a + b·d), here in powers of 2.
template <bool CAPPED>
__device__ void share_slope(Block* block, const Stat& row, const Temper<CAPPED>& temper,
                            float own_x, float logprob, float grad_logprob, float grad_entropy,
                            float grad_lse) {
  const RowSums sums{row.max, 1, row.weighted_sum / row.sum, 0};  // no division in double
  const float own = temper.bounded(own_x);
  const float own_d = fminf(fmaf(own, temper.factor, -row.max), 0.0f);
  const RowSlope slope = row_slope(sums, own_d, logprob, grad_logprob, grad_entropy, grad_lse);
  const Powers powers = powers_of(temper.factor, row.max / temper.factor, row.max);
  const float scale = temper.inv_temperature / (row.sum * powers.unit);
  block->scale = powers.scale;
  block->shift = powers.shift;
  block->b = float(slope.b) * scale * kLn2;
  block->a = float(slope.a) * scale - block->b * powers.lost;
  block->of_token = float(slope.token) * temper.inv_temperature * temper.cap_slope(own);
}

// Writes the gradient of the slice, and the token's own element: by a team, whose first thread is
// the last to use the slice and the block.
template <class S, bool CAPPED>
__device__ void write_gradient(const Slice<S>& slice, const Block* block, S* row,
                               const Temper<CAPPED>& temper, int64_t token) {
  const Powers powers{block->scale, block->shift, 0, 1};
  const float a = block->a, b = block->b;
  // Without the entropy's share there is no 0·(−inf) to avoid.
  if (b == 0)
    write_slice<Temper<CAPPED>::kUnroll>(slice, row, [&](float x) {
      const float bounded = temper.bounded(x);
      return exp2_fast(powers.power(bounded)) * (a * temper.cap_slope(bounded));
    });
  else
    write_slice<Temper<CAPPED>::kUnroll>(slice, row, [&](float x) {
      const float bounded = temper.bounded(x), p = powers.finite_power(bounded);
      return exp2_fast(p) * ((a + b * p) * temper.cap_slope(bounded));
    });
  team_sync();
  const int place = slice.place(token);
  if (member() == 0 && place >= 0) put(&row[slice.begin + place], block->of_token);
}

}  // namespace rlkern
