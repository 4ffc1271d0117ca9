// SPDX-License-Identifier: Apache-2.0
// Reads each row of both tables once, writes the gradient's row once. A transition of weight 0 is
// not read, nor are the next values of one that is done. The penalty is the value loss's, a block
// of transitions at a time.
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
  uint64_t most = 0;  // a negative one is beyond any table
  for (int64_t i = 0; i < a.rows; ++i) most = std::max(most, uint64_t(a.action[i]));
  if (most < uint64_t(a.actions) && a.next_action == nullptr) return;
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
  const auto smaller = [](auto a, auto b) { return (a < b) | (a != a) ? a : b; };
  T found = -std::numeric_limits<T>::infinity();
  bool any = false;  // NaN
  int64_t j = 0;
  if (n >= kSide) {
    V most = V{} + found;
    auto unordered = most != most;
    for (; j + kSide <= n; j += kSide) {
      const V a = other ? smaller(load<V>(x + j), load<V>(other + j)) : load<V>(x + j);
      most = a > most ? a : most;
      unordered |= a != a;
    }
    for (int k = 0; k < kSide; ++k) {
      found = most[k] > found ? most[k] : found;
      any |= unordered[k] != 0;
    }
  }
  for (; j < n; ++j) {
    const T a = other ? smaller(x[j], other[j]) : x[j];
    found = a > found ? a : found;
    any |= a != a;
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

// Rows whose values and targets lie side by side, for the sweep of the value loss; few, so that
// threads share a small batch too.
constexpr int64_t kTdBlock = 256;

template <class T>
struct TakenValues {
  T value[kTdBlock], target[kTdBlock], weight[kTdBlock], slope[kTdBlock];

  ValueLossArguments<T> arguments(int64_t n, T delta) {
    ValueLossArguments<T> x = {};
    x.n = n;
    x.value = value;
    x.target = target;
    x.weight = weight;
    x.grad_value = slope;
    x.delta = delta;
    return x;
  }
};

// Fills in the k-th of a block.
template <class T>
void take(Bootstrap bootstrap, const TdLossArguments<T>& a, int64_t i, int64_t k,
          TakenValues<T>& taken) {
  const T weight = a.weight_of(i);
  taken.weight[k] = weight;
  taken.value[k] = taken.target[k] = a.error[i] = 0;
  if (weight == 0) return;
  const T later = a.done[i] ? T(0) : a.discount * later_value(bootstrap, a, i);
  taken.value[k] = a.q[i * a.actions + a.action[i]];
  taken.target[k] = a.reward[i] + later;
  a.error[i] = taken.target[k] - taken.value[k];
}

}  // namespace

template <class T>
void td_loss(Bootstrap bootstrap, ValueKind kind, const TdLossArguments<T>& a, int threads) {
  check_actions(a);
  const auto block = chosen_isa().values->of<T>().block[int(kind)];
  std::vector<ValueSums> blocks((a.rows + kTdBlock - 1) / kTdBlock);
  parallel(blocks.size(), kTdBlock * a.actions, threads, [&](int64_t first, int64_t last) {
    TakenValues<T> taken;
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = b * kTdBlock, n = std::min(a.rows - begin, kTdBlock);
      for (int64_t k = 0; k < n; ++k) take(bootstrap, a, begin + k, k, taken);
      blocks[b] = block(taken.arguments(n, a.delta), 0, n);
      std::fill_n(a.grad_q + begin * a.actions, n * a.actions, T(0));
      for (int64_t k = 0; k < n; ++k) {
        if (taken.weight[k] == 0) continue;
        a.grad_q[(begin + k) * a.actions + a.action[begin + k]] = taken.slope[k];
      }
    }
  });
  write_sums(blocks, a.loss, a.metrics);
}

template void td_loss(Bootstrap, ValueKind, const TdLossArguments<float>&, int);
template void td_loss(Bootstrap, ValueKind, const TdLossArguments<double>&, int);

}  // namespace rlkern
