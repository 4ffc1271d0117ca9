// SPDX-License-Identifier: Apache-2.0
// Sums over the exponentials of a row in one sweep, and what they leave behind.
#pragma once

#include <cmath>

#include "cpu/isa.h"
#include "cpu/isa/cap.h"

namespace rlkern::RLKERN_ISA {

// The sweeps count in powers of two: t = u / ln 2. What leaves them is natural again.
constexpr double kLn2 = 0.693147180559945309;

// How far ahead of its loads a sweep asks for memory. The processor's own prefetching stops at the
// end of a page, and with arithmetic between the loads it does not run far enough ahead.
constexpr int64_t kAhead = 4096;

template <int kLocality>
RLKERN_INLINE void prefetch(const char* p, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(p + i, 0, kLocality);
}

template <class S>
RLKERN_INLINE void prefetch_ahead_of(const S* x, int64_t n) {
  prefetch<3>(reinterpret_cast<const char*>(x) + kAhead, n * int64_t(sizeof(S)));
}

template <class S>
RLKERN_INLINE float block_max(const S* x, int64_t n) {
  Vec a = splat(-kInfinity), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    prefetch_ahead_of(x + i, 4 * kLanes);
    a = maximum(a, load(x + i));
    b = maximum(b, load(x + i + kLanes));
    c = maximum(c, load(x + i + 2 * kLanes));
    d = maximum(d, load(x + i + 3 * kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) a = maximum(a, load(x + i));
  if (i < n) a = maximum(a, load_head(x + i, n - i));
  return horizontal_max(maximum(maximum(a, b), maximum(c, d)));
}

// What a sweep for sums does with the exponentials.
enum class Exponentials { dropped, stashed };

struct BlockSums {
  double sum, weighted_sum, square_sum;
  float max;  // of the logits, not capped
};

// Partial sums side by side: as many as AVX2 has registers for; elsewhere as many as accuracy asks.
constexpr int kParts = kLanes == 8 ? 2 : 4;

// One group of a block's partial sums, in registers. Who stashes needs no squares.
template <Exponentials exponentials>
struct Partial {
  Vec sum{}, weighted_sum{}, square_sum{};

  RLKERN_INLINE_MEMBER Vec add(Vec t) {
    t = bounded(t);
    const Vec e = power_of_two<5>(t);
    sum += e;
    weighted_sum += e * t;
    if (exponentials == Exponentials::dropped) square_sum += e * e;
    return e;
  }
};

// The stash may be x. inv_temperature_log2 is inv_temperature / ln 2.
template <Exponentials exponentials, class S, class Cap>
RLKERN_INLINE BlockSums block_sums(const S* x, int64_t n, float max, float inv_temperature_log2,
                                   Cap cap, float* stash) {
  constexpr bool kStash = exponentials == Exponentials::stashed;
  constexpr int kStep = kParts * kLanes;
  using Part = Partial<exponentials>;
  Part part[kParts];
  Vec largest = splat(-kInfinity);
  const auto add = [&](int k, Vec z) {
    largest = maximum(largest, z);
    return part[k].add((cap(z) - max) * inv_temperature_log2);
  };
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    prefetch_ahead_of(x + i, kStep);
    for (int k = 0; k < kParts; ++k) {
      const Vec e = add(k, load(x + i + k * kLanes));
      if (kStash) store(stash + i + k * kLanes, e);
    }
  }
  for (; i + kLanes <= n; i += kLanes) {
    const Vec e = add(0, load(x + i));
    if (kStash) store(stash + i, e);
  }
  if (i < n) {
    const Vec e = add(1, load_head(x + i, n - i));
    if (kStash) store_head(stash + i, e, n - i);
  }
  const auto total = [&](Vec Part::* field) {
    Vec sum = part[0].*field + part[1].*field;
    for (int k = 2; k < kParts; k += 2) sum += part[k].*field + part[k + 1].*field;
    return horizontal_sum(sum);
  };
  return {total(&Part::sum), kLn2 * total(&Part::weighted_sum),
          kStash ? 0 : total(&Part::square_sum), horizontal_max(largest)};
}

// The sums so far, relative to the largest (capped) logit so far.
struct Running {
  float max = -kInfinity;
  double sum = 0, weighted_sum = 0, square_sum = 0;

  void raise(float larger, double inv_temperature) {
    if (sum > 0) {
      const double shift = (double(max) - larger) * inv_temperature, factor = std::exp(shift);
      weighted_sum = factor * (weighted_sum + shift * sum);
      sum *= factor;
      square_sum *= factor * factor;
    }
    max = larger;
  }

  // A row that is −inf so far has no maximum to subtract; its sums are 0 (or NaN if it holds one).
  float shift() const { return max == -kInfinity ? 0.0f : max; }

  void add(const BlockSums& block) {
    sum += block.sum;
    weighted_sum += block.weighted_sum;
    square_sum += block.square_sum;
  }
};

// Blocks are summed relative to the largest logit before them, and once more where they hold a
// larger one: few do. Where the stash overwrites the logits there is no once more, so their
// maximum comes first.
template <Exponentials exponentials, class S, class Cap>
RLKERN_INLINE RowSums sweep_sums(const Row& row, Cap cap, float* stash, float* block_max_of) {
  constexpr bool kStash = exponentials == Exponentials::stashed;
  const S* x = static_cast<const S*>(row.logits);
  const bool overwrites = static_cast<const void*>(stash) == row.logits;
  const float inv_temperature_log2 = float(row.inv_temperature / kLn2);
  const auto raised = [&](float raw) { return cap(splat(raw))[0]; };
  Running so_far;
  for (int64_t begin = 0; begin < row.vocab; begin += kBlock) {
    const int64_t rest = row.vocab - begin, n = rest < kBlock ? rest : kBlock;
    float* kept = kStash ? stash + begin : nullptr;
    const auto sums = [&]() __attribute__((always_inline)) {
      return block_sums<exponentials>(x + begin, n, so_far.shift(), inv_temperature_log2, cap,
                                      kept);
    };
    if (begin == 0 || overwrites) {
      const float larger = raised(block_max(x + begin, n));
      if (larger > so_far.max) so_far.raise(larger, row.inv_temperature);
    }
    BlockSums block = sums();
    const float larger = raised(block.max);
    if (larger > so_far.max && !overwrites) {
      so_far.raise(larger, row.inv_temperature);
      block = sums();
    }
    if (kStash) block_max_of[begin / kBlock] = so_far.max;
    so_far.add(block);
  }
  if (so_far.max == -kInfinity) so_far.sum = __builtin_nan("");
  return {so_far.max, so_far.sum, so_far.weighted_sum, so_far.square_sum};
}

// The same of an uncapped row that leaves a part of one vector free, to the bit: what the sweep
// adds beside it is 0.
template <Exponentials exponentials, class S>
RLKERN_INLINE RowSums short_sums(const Row& row, float* stash, float* block_max_of) {
  const Vec x = load_head(static_cast<const S*>(row.logits), row.vocab);
  const float max = horizontal_max(maximum(x, splat(-kInfinity)));
  Partial<exponentials> part;
  const bool banned = max == -kInfinity;  // all of it
  const Vec e = part.add((x - (banned ? 0.0f : max)) * float(row.inv_temperature / kLn2));
  if (exponentials == Exponentials::stashed) {
    store_head(stash, e, row.vocab);
    *block_max_of = max;
  }
  return {max, banned ? __builtin_nan("") : horizontal_sum(part.sum),
          kLn2 * horizontal_sum(part.weighted_sum), horizontal_sum(part.square_sum)};
}

}  // namespace rlkern::RLKERN_ISA
