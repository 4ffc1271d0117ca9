// SPDX-License-Identifier: Apache-2.0
#include "cpu/td_loss.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/rows.h"
#include "cpu/value_loss.h"

namespace rlkern {
namespace {

// Before anything is written: an action outside the table would be an address outside it.
void check_action(const char* name, int64_t action, int64_t actions) {
  if (action >= 0 && action < actions) return;
  throw std::invalid_argument(std::string("td_loss: ") + name + " must be in [0, " +
                              std::to_string(actions) + "), got " + std::to_string(action));
}

template <class T>
void check_actions(const TdLossArguments<T>& a) {
  for (int64_t i = 0; i < a.n; ++i) {
    if (a.weight[i] == 0) continue;
    check_action("action", a.action[i], a.actions);
    if (a.next_action && !a.done[i]) check_action("next_action", a.next_action[i], a.actions);
  }
}

// The first index of the largest value, a NaN being the largest of all.
template <class T>
int64_t argmax(const T* x, int64_t n) {
  int64_t best = 0;
  for (int64_t j = 1; j < n && !std::isnan(x[best]); ++j) {
    if (x[j] > x[best] || std::isnan(x[j])) best = j;
  }
  return best;
}

// The smaller of two values, NaN if either is.
template <class T>
T smaller(T a, T b) {
  return std::isnan(a) || a < b ? a : b;
}

template <class T>
struct Four {
  using Vector [[gnu::vector_size(4 * sizeof(T))]] = T;
};

// The largest value, NaN if there is one: four side by side, as a comparison waits for the one
// before.
template <class T>
T largest(const T* x, int64_t n) {
  using V = typename Four<T>::Vector;
  V best = V{} + x[0];
  auto known = best == best;
  int64_t j = 0;
  for (; j + 4 <= n; j += 4) {
    V values;
    std::memcpy(&values, x + j, sizeof(values));
    best = values > best ? values : best;
    known &= values == values;
  }
  T found = best[0];
  bool all_known = known[0] && known[1] && known[2] && known[3];
  const auto add = [&](T value) {
    found = value > found ? value : found;
    all_known &= value == value;
  };
  for (int k = 1; k < 4; ++k) add(best[k]);
  for (; j < n; ++j) add(x[j]);
  return all_known ? found : std::numeric_limits<T>::quiet_NaN();
}

template <Bootstrap bootstrap, class T>
T following_value(const TdLossArguments<T>& a, int64_t i) {
  const T* next = a.next_q + i * a.actions;
  const T* other = a.other ? a.other + i * a.actions : nullptr;
  if constexpr (bootstrap == Bootstrap::greatest) {
    return largest(next, a.actions);
  } else if constexpr (bootstrap == Bootstrap::of_other) {
    return next[argmax(other, a.actions)];
  } else if constexpr (bootstrap == Bootstrap::taken) {
    return next[a.next_action[i]];
  } else if constexpr (bootstrap == Bootstrap::twin_min) {
    T best = smaller(next[0], other[0]);
    for (int64_t j = 1; j < a.actions && !std::isnan(best); ++j) {
      const T x = smaller(next[j], other[j]);
      if (x > best || std::isnan(x)) best = x;
    }
    return best;
  } else {
    double sum = 0;
    for (int64_t j = 0; j < a.actions; ++j) {
      if (other[j] != 0) sum += double(other[j]) * next[j];
    }
    return T(sum);
  }
}

void add(ValueSums& sums, double weighted_loss, double value, double target) {
  const double error = target - value;
  sums.loss += weighted_loss;
  sums.metric[kValueCount] += 1;
  sums.metric[kValueValue] += value;
  sums.metric[kValueTarget] += target;
  sums.metric[kValueError] += error;
  sums.metric[kValueErrorSquare] += error * error;
  sums.metric[kValueTargetSquare] += target * target;
}

template <Penalty penalty, Bootstrap bootstrap, class T>
void sweep(const TdLossArguments<T>& a, int threads) {
  const int64_t rows = std::max<int64_t>(1, kValueBlock / std::max<int64_t>(a.actions, 1));
  std::vector<ValueSums> blocks((a.n + rows - 1) / rows);
  parallel(blocks.size(), kValueBlock, threads, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      ValueSums sums = {};
      const int64_t begin = block * rows, end = std::min(a.n, begin + rows);
      std::memset(a.grad_q + begin * a.actions, 0, sizeof(T) * (end - begin) * a.actions);
      for (int64_t i = begin; i < end; ++i) {
        a.error[i] = 0;
        const T weight = a.weight[i];
        if (weight == 0) continue;
        const T value = a.q[i * a.actions + a.action[i]];
        const T following = a.done[i] ? T(0) : following_value<bootstrap>(a, i);
        const T target = a.reward[i] + a.discount * following;
        const Penalised<T> term = penalise<penalty>(value - target, a.delta);
        a.grad_q[i * a.actions + a.action[i]] = weight * term.slope;
        a.error[i] = target - value;
        add(sums, double(weight) * term.value, value, target);
      }
      blocks[block] = sums;
    }
  });
  write_sums(blocks, a.loss, a.metrics);
}

template <Penalty penalty, class T>
void sweep(Bootstrap bootstrap, const TdLossArguments<T>& a, int threads) {
  switch (bootstrap) {
    case Bootstrap::greatest:
      return sweep<penalty, Bootstrap::greatest>(a, threads);
    case Bootstrap::of_other:
      return sweep<penalty, Bootstrap::of_other>(a, threads);
    case Bootstrap::twin_min:
      return sweep<penalty, Bootstrap::twin_min>(a, threads);
    case Bootstrap::taken:
      return sweep<penalty, Bootstrap::taken>(a, threads);
    case Bootstrap::expected:
      return sweep<penalty, Bootstrap::expected>(a, threads);
  }
}

}  // namespace

template <class T>
void td_loss(Bootstrap bootstrap, ValueKind kind, const TdLossArguments<T>& a, int threads) {
  check_actions(a);
  switch (kind) {
    case ValueKind::squared:
      return sweep<Penalty::half_square>(bootstrap, a, threads);
    case ValueKind::full_squared:
      return sweep<Penalty::square>(bootstrap, a, threads);
    default:
      return sweep<Penalty::huber>(bootstrap, a, threads);
  }
}

template void td_loss(Bootstrap, ValueKind, const TdLossArguments<float>&, int);
template void td_loss(Bootstrap, ValueKind, const TdLossArguments<double>&, int);

}  // namespace rlkern
