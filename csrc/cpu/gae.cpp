// SPDX-License-Identifier: Apache-2.0
#include "cpu/gae.h"

#include <cmath>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/rows.h"

namespace rlkern {
namespace {

template <class T>
bool counts(const GaeRows<T>& rows, const Segment<T>& segment) {
  return std::memchr(rows.mask + segment.begin, 1, segment.length) != nullptr;
}

// The value of the first counted step of a segment that has one.
template <class T>
T first_value(const GaeRows<T>& rows, const Segment<T>& segment) {
  const bool* mask = rows.mask + segment.begin;
  const void* found = std::memchr(mask, 1, segment.length);
  return rows.value[segment.begin + (static_cast<const bool*>(found) - mask)];
}

template <class T>
T bootstrap(const GaeRows<T>& rows, int64_t sequence) {
  return rows.bootstrap ? rows.bootstrap[sequence] : T(0);
}

// What follows each segment: the value by looking ahead, then the advantage from the ends of the
// segments after it, A = end + (γλ)^counted · A after it.
template <class T>
void link(std::vector<Segment<T>>& segments, const GaeRows<T>& rows, int threads) {
  for (size_t i = segments.size(); i-- > 0;) {
    const bool last = !continues(segments, i);
    if (last) {
      segments[i].state[1] = bootstrap(rows, segments[i].sequence);
    } else {
      const Segment<T>& next = segments[i + 1];
      segments[i].state[1] = counts(rows, next) ? first_value(rows, next) : next.state[1];
    }
  }
  std::vector<Segment<T>> ends = segments;
  sweep_all(ends, threads,
            [&](Segment<T>* s, int64_t n) { chosen_isa().scans->of<T>().gae_ends(rows, s, n); });
  for (size_t i = segments.size(); i-- > 0;) {
    if (!continues(segments, i)) continue;
    const Segment<T>& next = segments[i + 1];
    int64_t counted = 0;
    for (int64_t t = 0; t < next.length; ++t) counted += rows.mask[next.begin + t];
    const double decay = rows.discount[next.sequence] * rows.gae_lambda[next.sequence];
    const T product = T(std::pow(decay, double(counted)));
    const T end = ends[i + 1].state[0];
    segments[i].state[0] = product == 0 ? end : end + product * next.state[0];
  }
}

// Count, mean and summed squared deviations.
struct Moments {
  double n = 0, mean = 0, squares = 0;

  void add(const Moments& other) {
    const double all = n + other.n, shift = other.mean - mean;
    if (other.n == 0) return;
    squares += other.squares + shift * shift * (n * other.n / all);
    mean += shift * (other.n / all);
    n = all;
  }
};

// The moments of one sequence. Lanes are filled by the position in it, so that what follows its
// counted steps changes no bit.
template <class T>
Moments moments(const T* x, const bool* mask, int64_t length) {
  constexpr int kLanes = 8;
  double sum[kLanes] = {}, squares[kLanes] = {}, total = 0, deviations = 0;
  int64_t n = 0;
  const auto in_lanes = [&](const auto& add) {
    int64_t t = 0;
    for (; t + kLanes <= length; t += kLanes) {
      for (int k = 0; k < kLanes; ++k) add(t + k, k);
    }
    for (int k = 0; t + k < length; ++k) add(t + k, k);
  };
  for (int64_t t = 0; t < length; ++t) n += mask[t];
  in_lanes([&](int64_t t, int k) { sum[k] += x[t]; });
  for (double lane : sum) total += lane;
  const double mean = n ? total / n : 0;
  in_lanes([&](int64_t t, int k) {
    const double d = mask[t] ? x[t] - mean : 0.0;
    squares[k] += d * d;
  });
  for (double lane : squares) deviations += lane;
  return {double(n), mean, deviations};
}

template <class T>
void whiten(const Sequences& all, const GaeRows<T>& rows, const std::vector<Moments>& of_sequence,
            const Whitening& how, int threads) {
  Moments total;
  for (const Moments& one : of_sequence) total.add(one);
  const double variance = total.squares / std::max(total.n - how.ddof, 1.0);
  const T mean = T(total.mean), scale = T(1 / std::sqrt(variance + how.eps));
  parallel(all.steps(), 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      rows.advantage[i] = rows.mask[i] ? (rows.advantage[i] - mean) * scale : T(0);
    }
  });
}

}  // namespace

template <class T>
void gae(const Sequences& sequences, const GaeRows<T>& rows, const Whitening* whitening,
         int threads) {
  std::vector<Moments> of_sequence(whitening ? sequences.count : 0);
  const auto note = [&](int64_t i) {
    const int64_t begin = sequences.begin(i);
    of_sequence[i] = moments(rows.advantage + begin, rows.mask + begin, sequences.length(i));
  };
  const auto sweep = [&](Segment<T>* s, int64_t n) { chosen_isa().scans->of<T>().gae(rows, s, n); };
  const auto sweep_and_note = [&](Segment<T>* s, int64_t n) {
    sweep(s, n);
    for (int64_t k = 0; whitening && k < n; ++k) note(s[k].sequence);  // while it is in the cache
  };
  const auto start = [&](Segment<T>& s) { s.state[1] = bootstrap(rows, s.sequence); };
  sweep_short<T>(sequences, threads, start, sweep_and_note);
  std::vector<Segment<T>> segments = long_segments<T>(sequences);
  if (!segments.empty()) {
    link(segments, rows, threads);
    sweep_all(segments, threads, sweep);
  }
  if (!whitening) return;
  for (size_t i = 0; i < segments.size(); ++i) {
    if (!continues(segments, i)) note(segments[i].sequence);
  }
  whiten(sequences, rows, of_sequence, *whitening, threads);
}

template void gae(const Sequences&, const GaeRows<float>&, const Whitening*, int);
template void gae(const Sequences&, const GaeRows<double>&, const Whitening*, int);

}  // namespace rlkern
