// SPDX-License-Identifier: Apache-2.0
#include "cpu/group_advantage.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/rows.h"

namespace rlkern {
namespace {

// Rollouts usually arrive group by group: then one pass finds every group. Returns false, what it
// wrote being worthless, where an id is smaller than the one before it.
bool segments_of_sorted(int64_t n, const int64_t* group, int64_t* order, int64_t* offset) {
  int64_t groups = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (i && group[i] < group[i - 1]) return false;
    if (!i || group[i] != group[i - 1]) offset[groups++] = i;
    order[i] = i;
  }
  std::fill(offset + groups, offset + n + 1, n);
  return true;
}

// Indices by id, in their own order where ids are equal: a radix sort of the distances from the
// smallest id. Dense ids of up to 8192 groups take one pass, ids that are hashes take five. Memory
// that is allocated and given back costs more in page faults than a pass, so there is none.
void sort_by_id(int64_t n, const int64_t* group, int64_t* order, int64_t* spare) {
  constexpr int kDigit = 13;
  constexpr uint64_t kDigits = 1u << kDigit;
  const auto [lowest, highest] = std::minmax_element(group, group + n);
  const uint64_t base = *lowest, range = uint64_t(*highest) - base;
  std::vector<int64_t> next(kDigits + 1);
  int64_t *from = order, *to = spare;
  std::iota(from, from + n, 0);
  for (int shift = 0; shift < 64 && range >> shift; shift += kDigit) {
    const auto digit = [=](int64_t i) { return ((uint64_t(group[i]) - base) >> shift) % kDigits; };
    std::fill(next.begin(), next.end(), 0);
    for (int64_t i = 0; i < n; ++i) ++next[digit(i) + 1];
    std::partial_sum(next.begin(), next.end(), next.begin());
    for (int64_t i = 0; i < n; ++i) to[next[digit(from[i])]++] = from[i];
    std::swap(from, to);
  }
  if (from != order) std::copy(from, from + n, order);
}

// A group's known rewards, side by side, and what is to be known of them.
struct Group {
  std::vector<double> reward, weight;  // as long as the longest group so far
  int64_t count = 0;
  double mean = 0;

  template <class T>
  void gather(const T* rewards, const T* length, const int64_t* begin, const int64_t* end) {
    if (end - begin > int64_t(reward.size())) {
      reward.resize(end - begin);
      weight.resize(end - begin);
    }
    count = 0;
    for (const int64_t* i = begin; i < end; ++i) {
      reward[count] = rewards[*i];
      if (length) weight[count] = length[*i];
      count += !std::isnan(rewards[*i]);  // the next one overwrites what is not known
    }
    mean = average(0);
    // Again, for the rounding of the sum: a group that agrees leaves nothing for eps to magnify.
    // A sum of equal floats is exact in double.
    if (sizeof(T) == sizeof(double)) mean += average(mean);
  }

  // The mean of rewards less origin.
  double average(double origin) const {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += reward[i] - origin;
    return count ? sum / count : 0;
  }

  double deviation(int64_t ddof) const {
    double squares = 0;
    for (int64_t i = 0; i < count; ++i) squares += (reward[i] - mean) * (reward[i] - mean);
    return std::sqrt(squares / std::max<int64_t>(count - ddof, 1));
  }

  // How far the mean by length is from the plain one.
  double shift_by_length() const {
    double tokens = 0, sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      tokens += weight[i];
      sum += weight[i] * (reward[i] - mean);
    }
    return tokens > 0 ? sum / tokens : 0;
  }

  // The best reward but one; the best itself where two share it.
  double second() const {
    double top = -std::numeric_limits<double>::infinity(), next = top;
    for (int64_t i = 0; i < count; ++i) {
      const double r = reward[i], lower = std::min(top, r);
      next = std::max(next, lower);
      top = std::max(top, r);
    }
    return next;
  }
};

// The advantage of a reward: (r − baseline)·factor, and not below the least.
struct Comparison {
  double baseline, factor, least;

  Comparison(const Group& group, AdvantageKind kind, double eps, int64_t ddof)
      : baseline(group.mean), factor(1), least(-std::numeric_limits<double>::infinity()) {
    switch (kind) {
      case AdvantageKind::leave_one_out:
        factor = double(group.count) / (group.count - 1);
        break;
      case AdvantageKind::length_weighted:
        baseline += group.shift_by_length();
        break;
      case AdvantageKind::max_rl:
        factor = group.mean > 0 ? 1 / group.mean : 0;
        break;
      case AdvantageKind::pass_at_k:
      case AdvantageKind::pass_at_k_normalized:
        baseline = group.second();
        least = 0;
        break;
      default:
        break;
    }
    if (kind == AdvantageKind::normalized || kind == AdvantageKind::pass_at_k_normalized) {
      const double deviation = group.deviation(ddof) + eps;
      factor = deviation > 0 ? 1 / deviation : 0;
    }
  }

  double operator()(double r) const { return std::max((r - baseline) * factor, least); }
};

}  // namespace

void group_segments(int64_t n, const int64_t* group, int64_t* order, int64_t* offset) {
  if (segments_of_sorted(n, group, order, offset)) return;
  sort_by_id(n, group, order, offset);
  int64_t groups = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!i || group[order[i]] != group[order[i - 1]]) offset[groups++] = i;
  }
  std::fill(offset + groups, offset + n + 1, n);
}

template <class T>
void group_advantage(int64_t n, const T* reward, const int64_t* order, const int64_t* offset,
                     const T* length, AdvantageKind kind, double eps, int64_t ddof, T* advantage,
                     int threads) {
  // Shared by rewards, not by groups: the groups that do not exist all lie at the end.
  parallel(n, 8, threads, [&](int64_t first, int64_t last) {
    Group group;
    const int64_t* at = std::lower_bound(offset, offset + n, first);
    for (; at < offset + n && *at < last; ++at) {
      const int64_t *begin = order + at[0], *end = order + at[1];
      group.gather(reward, length, begin, end);
      if (group.count < 2) {
        for (const int64_t* i = begin; i < end; ++i) advantage[*i] = 0;
        continue;
      }
      const Comparison compare(group, kind, eps, ddof);
      for (const int64_t* i = begin; i < end; ++i) {
        advantage[*i] = std::isnan(reward[*i]) ? T(0) : T(compare(reward[*i]));
      }
    }
  });
}

template void group_advantage(int64_t, const float*, const int64_t*, const int64_t*, const float*,
                              AdvantageKind, double, int64_t, float*, int);
template void group_advantage(int64_t, const double*, const int64_t*, const int64_t*, const double*,
                              AdvantageKind, double, int64_t, double*, int);

}  // namespace rlkern
