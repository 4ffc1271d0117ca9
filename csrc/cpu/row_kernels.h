// SPDX-License-Identifier: Apache-2.0
// The sweeps over the vocabulary, compiled once per instruction set and chosen at run time.
#pragma once

#include <cstdint>

#include "math/row.h"

namespace rlkern {

enum Dtype : int { kFloat32, kBfloat16, kFloat16, kFloat64, kDtypes };
constexpr int kElementSize[kDtypes] = {4, 2, 2, 8};

// One row of V logits. `ahead` is the row this thread reads next, or null: sweeps that find their
// row in the cache use the idle memory bus to bring it there.
struct Row {
  const void* logits;
  const void* ahead;
  int64_t vocab;
  double inv_temperature;
  double softcap;  // 0 for none
};

struct RowKernels {
  // 1 read. Never materialises probabilities. max is that of the capped logits.
  RowSums (*sums)(const Row&);
  // 1 read (of a row the sums have just brought into the cache), 1 write; grad may be the logits
  // themselves. A token of −1 has no element of its own.
  void (*gradient)(const Row&, const RowSums&, const RowSlope&, int64_t token, void* grad);
  // The same two for slopes with b = 0 and no softcap, with one exponential an element instead of
  // two: the first sweep stashes exp u in float32, relative to each block's own maximum, the second
  // scales it. For float32 the gradient's row itself can be the stash, also where that is the
  // logits. square_sum is not made. Null for float64.
  RowSums (*sums_stashed)(const Row&, float* stash, float* block_max);
  void (*gradient_stashed)(const Row&, const RowSums&, const RowSlope&, int64_t token,
                           const float* stash, const float* block_max, void* grad);
};

// What is known of a row of logits, whichever of them could be sampled.
struct RowCompanions {
  double mean_logit;  // capped, and divided by the temperature
  bool is_argmax;     // whether the token is the first of the largest, as they are given
};

// 1 read, of a row the sums have just brought into the cache: who does not ask for companions has
// sweeps without them.
using CompanionKernel = RowCompanions (*)(const Row&, int64_t token);

// A block is read from memory once and then swept twice in the L1 cache: for its maximum, for its
// sums.
constexpr int64_t kBlock = 4096;

}  // namespace rlkern
