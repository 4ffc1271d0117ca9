// SPDX-License-Identifier: Apache-2.0
// Reads each row of both tables once, writes the gradient's row once. A transition of weight 0 is
// not read, nor are the next values of one that is done.
#include "cpu/td_loss.h"

#include <limits>

#include "cpu/rows.h"
#include "cpu/value_loss.h"

namespace rlkern {
namespace {

void check_action(const char* name, int64_t action, int64_t actions) {
  if (action >= 0 && action < actions) return;
  throw std::invalid_argument("td_loss: " + std::string(name) + " must be in [0, " +
                              std::to_string(actions) + "), got " + std::to_string(action));
}

template <class T>
void check_actions(const TdLossArguments<T>& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    if (a.weight_of(i) != 0) check_action("action", a.action[i], a.actions);
    if (a.next_action && a.follows(i)) check_action("next_action", a.next_action[i], a.actions);
  }
}

// As many bytes as every processor has vectors of.
template <class T>
struct SmallVector {
  using Type [[gnu::vector_size(16)]] = T;
};

template <class V, class T>
V load(const T* p) {
  V x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}

// The largest x, or the largest of the smaller of x and other, which may be null; NaN if one is.
template <class T>
T largest(const T* x, const T* other, int64_t n) {
  using V = typename SmallVector<T>::Type;
  constexpr int kSide = sizeof(V) / sizeof(T);
  V most = V{} - std::numeric_limits<T>::infinity();
  auto unordered = most != most;
  const auto add = [&](V a) {
    most = a > most ? a : most;
    unordered |= a != a;
  };
  const auto smaller = [](V a, V b) { return (a < b) | (a != a) ? a : b; };
  int64_t j = 0;
  for (; j + kSide <= n; j += kSide) {
    add(other ? smaller(load<V>(x + j), load<V>(other + j)) : load<V>(x + j));
  }
  for (; j < n; ++j) add(other ? smaller(V{} + x[j], V{} + other[j]) : V{} + x[j]);
  T found = most[0];
  bool any = unordered[0];
  for (int k = 1; k < kSide; ++k) {
    found = most[k] > found ? most[k] : found;
    any |= unordered[k] != 0;
  }
  return any ? std::numeric_limits<T>::quiet_NaN() : found;
}

// The first of the largest; a NaN is larger than any number.
template <class T>
int64_t first_of_largest(const T* x, int64_t n) {
  int64_t best = 0;
  for (int64_t j = 1; j < n; ++j) {
    if (!(x[j] <= x[best]) && x[best] == x[best]) best = j;
  }
  return best;
}

template <class T>
T expectation(const T* probability, const T* x, int64_t n) {
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    if (probability[j] != 0) sum += double(probability[j]) * double(x[j]);
  }
  return T(sum);
}

template <class T>
T later_value(Bootstrap bootstrap, const TdLossArguments<T>& a, int64_t i) {
  const T* next = a.next_q + i * a.actions;
  const T* other = a.other ? a.other + i * a.actions : nullptr;
  switch (bootstrap) {
    case Bootstrap::max:
    case Bootstrap::twin_min:
      return largest(next, other, a.actions);
    case Bootstrap::double_q:
      return next[first_of_largest(other, a.actions)];
    case Bootstrap::sarsa:
      return next[a.next_action[i]];
    case Bootstrap::expected:
      return expectation(other, next, a.actions);
  }
  return T(0);
}

template <class T>
Penalised<T> penalised(Penalty penalty, T error, T delta) {
  switch (penalty) {
    case Penalty::half_square:
      return penalise<Penalty::half_square>(error, delta);
    case Penalty::square:
      return penalise<Penalty::square>(error, delta);
    default:
      return penalise<Penalty::huber>(error, delta);
  }
}

template <class T>
void add_row(Bootstrap bootstrap, Penalty penalty, const TdLossArguments<T>& a, int64_t i,
             ValueSums& sums) {
  T* grad = a.grad_q + i * a.actions;
  std::fill_n(grad, a.actions, T(0));
  const T weight = a.weight_of(i);
  a.error[i] = 0;
  if (weight == 0) return;
  const T value = a.q[i * a.actions + a.action[i]];
  const T target =
      a.follows(i) ? a.reward[i] + a.discount * later_value(bootstrap, a, i) : a.reward[i];
  const Penalised<T> term = penalised(penalty, value - target, a.delta);
  grad[a.action[i]] = weight * term.slope;
  a.error[i] = target - value;
  const double v = value, t = target, error = t - v;
  sums.loss += double(weight) * double(term.value);
  sums.metric[kValueCount] += 1;
  sums.metric[kValueValue] += v;
  sums.metric[kValueTarget] += t;
  sums.metric[kValueError] += error;
  sums.metric[kValueErrorSquare] += error * error;
  sums.metric[kValueTargetSquare] += t * t;
}

}  // namespace

template <class T>
void td_loss(Bootstrap bootstrap, ValueKind kind, const TdLossArguments<T>& a, int threads) {
  check_actions(a);
  std::vector<ValueSums> blocks((a.rows + kValueBlock - 1) / kValueBlock);
  const Penalty penalty = penalty_of(kind);
  parallel(blocks.size(), kValueBlock * a.actions, threads, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const int64_t end = std::min(a.rows, (k + 1) * kValueBlock);
      ValueSums sums = {};
      for (int64_t i = k * kValueBlock; i < end; ++i) add_row(bootstrap, penalty, a, i, sums);
      blocks[k] = sums;
    }
  });
  write_sums(blocks, a.loss, a.metrics);
}

template void td_loss(Bootstrap, ValueKind, const TdLossArguments<float>&, int);
template void td_loss(Bootstrap, ValueKind, const TdLossArguments<double>&, int);

}  // namespace rlkern
