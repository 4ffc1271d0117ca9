// SPDX-License-Identifier: Apache-2.0
// Where sequences lie, how long ones are cut, and how threads share them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/scan_kernels.h"
#include "cpu/sequences.h"

namespace rlkern {

// Raises std::invalid_argument unless the bounds ascend from 0 to the number of steps there are.
void check_bounds(const char* op, const Sequences& sequences, int64_t steps);

// Longer sequences are cut at multiples of this, counted from their own beginning, so that threads
// can share them: neither the batch around a sequence nor the number of threads changes its bits.
constexpr int64_t kSegment = 1 << 13;

// Calls body(first, last) on parts of [0, sequences) with about as many steps each, one per thread.
template <class Body>
void share(const Sequences& all, int threads, const Body& body) {
  // Fewer sequences than a vector has lanes take as long as many.
  constexpr int64_t kStepsPerThread = 1 << 14, kLanes = 16;
  const int64_t steps = all.steps();
  const int parts =
      int(std::clamp<int64_t>(std::min(steps / kStepsPerThread, all.count / kLanes), 1, threads));
  const auto first_of = [&](int part) {
    if (!all.bounds) return all.count * part / parts;
    const int64_t* end = all.bounds + all.count;
    return part == parts ? all.count
                         : std::lower_bound(all.bounds, end, steps * part / parts) - all.bounds;
  };
  if (parts == 1) {
    body(int64_t(0), all.count);
    return;
  }
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int part = 0; part < parts; ++part) body(first_of(part), first_of(part + 1));
}

// Sweeps every sequence of at most kSegment steps; start(segment) fills in what follows its end.
template <class T, class Start, class Sweep>
void sweep_short(const Sequences& all, int threads, const Start& start, const Sweep& sweep) {
  constexpr int kBlock = 256;
  share(all, threads, [&](int64_t first, int64_t last) {
    Segment<T> block[kBlock];
    while (first < last) {
      int count = 0;
      for (; first < last && count < kBlock; ++first) {
        if (all.length(first) > kSegment) continue;
        block[count] = {all.begin(first), all.length(first), first, {}};
        start(block[count++]);
      }
      sweep(block, count);
    }
  });
}

// The segments of all longer sequences, in order.
template <class T>
std::vector<Segment<T>> long_segments(const Sequences& all) {
  std::vector<Segment<T>> found;
  if (!all.bounds && all.time <= kSegment) return found;
  for (int64_t i = 0; i < all.count; ++i) {
    const int64_t begin = all.begin(i), length = all.length(i);
    if (length <= kSegment) continue;
    for (int64_t at = 0; at < length; at += kSegment) {
      found.push_back({begin + at, std::min(kSegment, length - at), i, {}});
    }
  }
  return found;
}

// Whether segment i is followed by another of its sequence.
template <class T>
bool continues(const std::vector<Segment<T>>& segments, size_t i) {
  return i + 1 < segments.size() && segments[i + 1].sequence == segments[i].sequence;
}

// Sweeps segments whose states are known.
template <class T, class Sweep>
void sweep_all(std::vector<Segment<T>>& segments, int threads, const Sweep& sweep) {
  const Sequences parts{int64_t(segments.size()), kSegment, nullptr};
  share(parts, threads,
        [&](int64_t first, int64_t last) { sweep(segments.data() + first, last - first); });
}

// Whether outputs of this size are better written past the caches: nobody finds them there.
constexpr bool exceeds_caches(int64_t bytes) { return bytes > (int64_t(24) << 20); }

}  // namespace rlkern
