// SPDX-License-Identifier: Apache-2.0
// One row of logits in the shared memory of one block, or cut into slices over a cluster of them.
// Columns are summed in an order that follows from V alone: neither the place of a row in memory
// nor its neighbours change a bit. Only copies follow the addresses, 16 bytes at a time between a
// scalar head and tail.
#pragma once

#include <cfloat>
#include <cmath>

#include "cuda/arguments.h"
#include "cuda/machine.cuh"
#include "cuda/shape.h"
#include "math/row.h"

namespace rlkern {

// A row in numbers, in coordinates d = z − max, z = logit / temperature.
struct Stat {
  float max, sum, weighted_sum, square_sum;
};

// What the threads of a block share beside their slice.
struct Block {
  Stat slice;
  float max, a, b, own;  // of the row: what its gradient is made of
  float partial[kMostThreads / kWarp];
};
static_assert(sizeof(Block) <= kBlockBytes, "the slice lies behind it");

template <class S>
struct alignas(16) Group {
  S x[16 / sizeof(S)];
};

template <class S>
__device__ S* row_of(const Grid& grid, int64_t i) {
  return static_cast<S*>(grid.data) + (i / grid.time) * grid.stride_batch +
         (i % grid.time) * grid.stride_time;
}

// By how many elements an address lies behind a multiple of 16 bytes.
template <class S>
__device__ int misalignment(const S* p) {
  return int(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(S));
}

// Where a row's elements can be moved in groups: head elements, then groups, then the rest.
template <class S>
struct Peel {
  static constexpr int kWidth = 16 / sizeof(S);
  int head, groups, scalars;

  __device__ Peel(const S* p, int n) {
    head = min((kWidth - misalignment(p)) % kWidth, n);
    groups = (n - head) / kWidth;
    scalars = n - groups * kWidth;
  }
  __device__ int group(int g) const { return head + g * kWidth; }
  __device__ int scalar(int i) const { return i < head ? i : i + groups * kWidth; }
};

// A block's share of a row: the row itself, the first column, how many, and where they are kept.
template <class S>
struct Slice {
  const S* row;
  int begin, columns;
  S* kept;

  __device__ Slice(const Grid& grid, int64_t i, int rank, int blocks) {
    const int each = slice_columns(int(grid.vocab), sizeof(S), blocks), vocab = int(grid.vocab);
    row = row_of<S>(grid, i);
    begin = min(rank * each, vocab);
    columns = min(each, vocab - begin);
    kept = reinterpret_cast<S*>(shared_memory() + kBlockBytes) + misalignment(row + begin);
  }

  __device__ void read() const {
    const S* x = row + begin;
    const Peel<S> peel(x, columns);
    for (int g = threadIdx.x; g < peel.groups; g += blockDim.x)
      copy_16_bytes(kept + peel.group(g), x + peel.group(g));
    for (int i = threadIdx.x; i < peel.scalars; i += blockDim.x)
      kept[peel.scalar(i)] = x[peel.scalar(i)];
    wait_for_copies();
  }

  // Columns j and on; −inf, of probability 0, beyond the slice.
  __device__ Group<S> group(int j) const {
    constexpr int kWidth = 16 / sizeof(S);
    if (j + kWidth <= columns && misalignment(kept + j) == 0)
      return *reinterpret_cast<const Group<S>*>(kept + j);
    Group<S> group;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      put(&group.x[k], j + k < columns ? to_float(kept[j + k]) : -INFINITY);
    }
    return group;
  }

  // The token's place in the slice, −1 if it lies elsewhere.
  __device__ int place(int64_t token) const {
    return token >= begin && token < begin + columns ? int(token) - begin : -1;
  }
};

// Writes value(logit) of every column of a slice to a row.
template <class S, class Value>
__device__ void write_slice(const Slice<S>& slice, S* row, Value value) {
  S* out = row + slice.begin;
  const Peel<S> peel(out, slice.columns);
  for (int g = threadIdx.x; g < peel.groups; g += blockDim.x) {
    Group<S> x = slice.group(peel.group(g));
#pragma unroll
    for (S& each : x.x) put(&each, value(to_float(each)));
    store_16_bytes(out + peel.group(g), &x);
  }
  for (int i = threadIdx.x; i < peel.scalars; i += blockDim.x)
    put(&out[peel.scalar(i)], value(to_float(slice.kept[peel.scalar(i)])));
}

template <class S>
__device__ void write_zeros(const Slice<S>& slice, S* row) {
  S* out = row + slice.begin;
  const Peel<S> peel(out, slice.columns);
  const Group<S> zeros = {};
  for (int g = threadIdx.x; g < peel.groups; g += blockDim.x)
    store_16_bytes(out + peel.group(g), &zeros);
  for (int i = threadIdx.x; i < peel.scalars; i += blockDim.x) put(&out[peel.scalar(i)], 0.0f);
}

// Which distribution the row stands for.
template <bool CAPPED>
struct Temper {
  float inv_temperature, cap;

  __device__ Temper(const Call& call, int64_t i)
      : inv_temperature(call.inv_temperature ? call.inv_temperature[i] : 1.0f),
        cap(float(call.softcap)) {}
  // A banned token stays banned.
  __device__ float capped(float x) const {
    return !CAPPED || x == -INFINITY ? x : cap * tanhf(x / cap);
  }
  // What the cap takes off the gradient of a logit.
  __device__ float cap_slope(float x) const {
    const float tanh = CAPPED ? tanhf(x / cap) : 0.0f;
    return 1 - tanh * tanh;
  }
  // z − max, not below kLowest, where exp is 0: 0·(−inf) would be NaN.
  __device__ float distance(float x, float max) const {
    return larger(fmaf(capped(x), inv_temperature, -max), kLowest);
  }
  static constexpr float kLowest = -104;
};

__device__ inline float exp_fast(float x) { return exp2_fast(x * 1.44269504f); }

template <class Join>
__device__ float block_join(float x, Join join) {
  float* partial = reinterpret_cast<Block*>(shared_memory())->partial;
  x = warp_join(x, join);
  __syncthreads();  // an earlier result may still be read
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = partial[0];
  for (int warp = 1; warp < int(blockDim.x) / kWarp; ++warp) x = join(x, partial[warp]);
  return x;
}

// Slices of nothing but −inf have a sum of 0 and the lowest maximum, and so change nothing.
__device__ inline Stat join(const Stat& x, const Stat& y) {
  const float max = larger(x.max, y.max);
  const float dx = larger(x.max - max, -104.0f), dy = larger(y.max - max, -104.0f);
  const float ex = expf(dx), ey = expf(dy);
  return {max, x.sum * ex + y.sum * ey,
          (x.weighted_sum + dx * x.sum) * ex + (y.weighted_sum + dy * y.sum) * ey,
          x.square_sum * ex * ex + y.square_sum * ey * ey};
}

// The statistics of a slice that has been read, in every thread.
template <bool SQUARES, class S, bool CAPPED>
__device__ Stat slice_statistics(const Slice<S>& slice, const Temper<CAPPED>& temper) {
  constexpr int kWidth = 16 / sizeof(S);
  const auto add = [](float x, float y) { return x + y; };
  float max = -FLT_MAX, sum = 0, weighted_sum = 0, square_sum = 0;
  for (int j = threadIdx.x * kWidth; j < slice.columns; j += blockDim.x * kWidth) {
    const Group<S> group = slice.group(j);
#pragma unroll
    for (const S& x : group.x) max = larger(max, to_float(x));
  }
  max = block_join(max, [](float x, float y) { return larger(x, y); });
  max = larger(temper.capped(max) * temper.inv_temperature, -FLT_MAX);
  for (int j = threadIdx.x * kWidth; j < slice.columns; j += blockDim.x * kWidth) {
    const Group<S> group = slice.group(j);
#pragma unroll
    for (const S& x : group.x) {
      const float d = temper.distance(to_float(x), max), e = exp_fast(d);
      sum += e;
      weighted_sum += e * d;
      if (SQUARES) square_sum += e * e;
    }
  }
  return {max, block_join(sum, add), block_join(weighted_sum, add),
          SQUARES ? block_join(square_sum, add) : 0.0f};
}

// The statistics of the whole row, in the first thread of every block: joined in the order of the
// slices, so that all blocks of a cluster have the same bits.
__device__ inline Stat row_statistics(const Stat& slice) {
  Block* block = reinterpret_cast<Block*>(shared_memory());
  if (threadIdx.x == 0) block->slice = slice;
  cluster_sync();
  if (threadIdx.x != 0) return slice;
  Stat row = of_block(&block->slice, 0);
  for (int rank = 1; rank < cluster_blocks(); ++rank)
    row = join(row, of_block(&block->slice, rank));
  return row;
}

// The token's logit; NaN, not foreign memory, for a token that is no column of the row.
template <class S>
__device__ float token_logit(const S* row, int64_t token, int64_t vocab) {
  return token >= 0 && token < vocab ? to_float(row[token]) : NAN;
}

template <bool CAPPED>
__device__ float token_logprob_of(const Stat& row, const Temper<CAPPED>& temper, float own_x) {
  return fmaf(temper.capped(own_x), temper.inv_temperature, -row.max) - logf(row.sum);
}

__device__ inline float entropy_of(const Stat& row) {
  return logf(row.sum) - row.weighted_sum / row.sum;
}

// What the gradient of a row is made of, from its scalars: in the first thread of a block.
template <bool CAPPED>
__device__ void share_slope(const Stat& row, const Temper<CAPPED>& temper, float own_x,
                            float logprob, float grad_logprob, float grad_entropy, float grad_lse) {
  Block* block = reinterpret_cast<Block*>(shared_memory());
  const RowSums sums{row.max, row.sum, row.weighted_sum, 0};
  const float own_d = fminf(fmaf(temper.capped(own_x), temper.inv_temperature, -row.max), 0.0f);
  const RowSlope slope = row_slope(sums, own_d, logprob, grad_logprob, grad_entropy, grad_lse);
  const float scale = temper.inv_temperature / row.sum;
  block->max = row.max;
  block->a = float(slope.a) * scale;
  block->b = float(slope.b) * scale;
  block->own = float(slope.token) * temper.inv_temperature * temper.cap_slope(own_x);
}

// Writes the gradient of the slice: dz = exp(d)·(a + b·d), and the token's own element.
template <class S, bool CAPPED>
__device__ void write_gradient(const Slice<S>& slice, S* row, const Temper<CAPPED>& temper,
                               int64_t token) {
  const Block* block = reinterpret_cast<const Block*>(shared_memory());
  const float max = block->max, a = block->a, b = block->b;
  write_slice(slice, row, [&](float x) {
    const float d = temper.distance(x, max);
    return exp_fast(d) * (a + b * d) * temper.cap_slope(x);
  });
  __syncthreads();
  const int place = slice.place(token);
  if (threadIdx.x == 0 && place >= 0) put(&row[slice.begin + place], block->own);
}

}  // namespace rlkern
