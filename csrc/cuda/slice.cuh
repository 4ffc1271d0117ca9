// SPDX-License-Identifier: Apache-2.0
// One row of logits in the shared memory of one block, or cut into slices over a cluster of them.
// Columns are summed in an order that follows from V alone: neither the place of a row in memory
// nor its neighbours change a bit. Only copies follow the addresses, 16 bytes at a time between a
// scalar head and tail. A slice lies behind a multiple of 16 bytes as its row does, so where rows
// begin at such a multiple, every access has 16 bytes; elsewhere sums put theirs together.
#pragma once

#include <cmath>
#include <cstring>

#include "cuda/arguments.h"
#include "cuda/machine.cuh"
#include "cuda/shape.h"

namespace rlkern {

// kThreads threads are a team: most blocks are one, none has more than two. A thread's place in its
// team, and the team's barrier.
__device__ inline int member() { return int(threadIdx.x) % kThreads; }
__device__ inline void team_sync() {
  if (threadIdx.x < kThreads)
    sync_threads<0>(kThreads);
  else
    sync_threads<1>(kThreads);
}

// 16 bytes of elements.
template <class S>
struct alignas(16) Group {
  using Pack = typename PackOf<S>::Type;
  static constexpr int kWidth = 16 / sizeof(S), kPacks = 16 / sizeof(Pack);
  static constexpr int kPerPack = sizeof(Pack) / sizeof(S);
  Pack packs[kPacks];

  // Calls see(x) with each element.
  template <class See>
  __device__ void each(See see) const {
    float x[kWidth];
#pragma unroll
    for (int k = 0; k < kPacks; ++k) unpack(packs[k], x + k * kPerPack);
#pragma unroll
    for (float element : x) see(element);
  }
  // Returns value(x) of each element.
  template <class Value>
  __device__ Group mapped(Value value) const {
    Group result;
    float x[kPerPack];
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      unpack(packs[k], x);
#pragma unroll
      for (float& element : x) element = value(element);
      pack(x, &result.packs[k]);
    }
    return result;
  }
};

// Which row of a (B, T, V) grid the i-th is.
struct Place {
  unsigned batch, time;

  // A grid of blocks has no more than 2^31 rows, and long divisions are slow.
  __device__ Place(const Grid& grid, unsigned i)
      : batch(i / unsigned(grid.time)), time(i - batch * unsigned(grid.time)) {}
};

template <class S>
__device__ S* row_of(const Grid& grid, Place place) {
  return static_cast<S*>(grid.data) + place.batch * grid.stride_batch +
         place.time * grid.stride_time;
}

// By how many elements an address lies behind a multiple of 16 bytes.
template <class S>
__device__ int misalignment(const S* p) {
  return int(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(S));
}

// Where elements can be moved in groups: a head of elements, then groups, then the rest. There are
// fewer scalars than a warp has threads.
template <class S>
struct Peel {
  static constexpr int kWidth = Group<S>::kWidth;
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
  static constexpr int kWidth = Group<S>::kWidth;
  const S* row;
  int begin, columns;
  S* kept;

  // memory: shared, at a multiple of 16 bytes.
  __device__ Slice(const Grid& grid, Place place, int rank, int log_blocks, char* memory) {
    const int vocab = int(grid.vocab), each = slice_columns(vocab, sizeof(S), log_blocks);
    row = row_of<S>(grid, place);
    begin = min(rank * each, vocab);
    columns = min(each, vocab - begin);
    kept = reinterpret_cast<S*>(memory) + misalignment(row + begin);
  }

  __device__ int groups() const { return (columns + kWidth - 1) / kWidth; }

  // What this thread copies is there for it after wait_for_copies().
  __device__ void copy() const {
    const S* x = row + begin;
    const Peel<S> peel(x, columns);
#pragma unroll 4
    for (int g = member(); g < peel.groups; g += kThreads)
      copy_16_bytes(kept + peel.group(g), x + peel.group(g));
    copy_scalars(peel, member());
  }
  // What is not copied in groups, by as many threads as a warp has.
  __device__ void copy_scalars(const Peel<S>& peel, int thread) const {
    if (thread < peel.scalars) kept[peel.scalar(thread)] = row[begin + peel.scalar(thread)];
    // The last group is whole: −inf has probability 0.
    if (thread < groups() * kWidth - columns) put(&kept[columns + thread], -INFINITY);
  }

  // The largest logit of those that this thread has copied, if threads have copied the slice.
  __device__ float largest_copied() const {
    const Peel<S> peel(row + begin, columns);
    const bool one = member() < peel.scalars;
    float x[Group<S>::kPerPack], lowest[Group<S>::kPerPack];
    for (float& each : lowest) each = -INFINITY;
    typename Group<S>::Pack largest;
    pack(lowest, &largest);
#pragma unroll 4
    for (int g = member(); g < peel.groups; g += kThreads) {
      const Group<S> group = group_at<true>(peel.group(g));
#pragma unroll
      for (const auto& each : group.packs) largest = larger(largest, each);
    }
    unpack(largest, x);
    float max = one ? to_float(kept[peel.scalar(member())]) : -INFINITY;
    for (float each : x) max = larger(max, each);
    return max;
  }

  // Columns j and on. ALIGNED: they begin at a multiple of 16 bytes.
  template <bool ALIGNED>
  __device__ Group<S> group_at(int j) const {
    Group<S> group;
    if (ALIGNED) {
      load_16_bytes(&group, kept + j);
    } else {
      const int byte = int(reinterpret_cast<const char*>(kept + j) - shared_memory());
      const uint32_t* words = reinterpret_cast<const uint32_t*>(shared_memory() + (byte & ~3));
      uint32_t moved[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        moved[k] = words[k];
        if (sizeof(S) < 4) moved[k] = shifted_right(moved[k], words[k + 1], byte % 4 * 8);
      }
      memcpy(&group, moved, 16);
    }
    return group;
  }

  // The token's place in the slice, −1 if it lies elsewhere.
  __device__ int place(int64_t token) const {
    return token >= begin && token < begin + columns ? int(token) - begin : -1;
  }
};

template <bool ALIGNED, int UNROLL, class S, class Value>
__device__ void write_groups(const Slice<S>& slice, S* out, const Peel<S>& peel, Value value) {
#pragma unroll UNROLL
  for (int g = member(); g < peel.groups; g += kThreads) {
    const Group<S> result = slice.template group_at<ALIGNED>(peel.group(g)).mapped(value);
    store_16_bytes(out + peel.group(g), &result);
  }
}

// Writes value(logit) of every column of a slice to a row.
template <int UNROLL, class S, class Value>
__device__ void write_slice(const Slice<S>& slice, S* row, Value value) {
  S* out = row + slice.begin;
  const Peel<S> peel(out, slice.columns);
  if (misalignment(out) == misalignment(slice.kept))
    write_groups<true, UNROLL>(slice, out, peel, value);
  else
    write_groups<false, UNROLL>(slice, out, peel, value);
  if (member() >= peel.scalars) return;
  const int j = peel.scalar(member());
  put(&out[j], value(to_float(slice.kept[j])));
}

template <class S>
__device__ void write_zeros(const Slice<S>& slice, S* row) {
  S* out = row + slice.begin;
  const Peel<S> peel(out, slice.columns);
  const Group<S> zeros = {};
#pragma unroll 4
  for (int g = member(); g < peel.groups; g += kThreads)
    store_16_bytes(out + peel.group(g), &zeros);
  if (member() < peel.scalars) put(&out[peel.scalar(member())], 0.0f);
}

}  // namespace rlkern
