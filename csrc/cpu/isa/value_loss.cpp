// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, RLKERN_ISA. One sweep in registers, sixteen elements at a
// time: every sum has sixteen lanes in float64, so that no set rounds unlike another.
#include "cpu/isa.h"
#include "cpu/isa/doubles.h"

namespace rlkern::RLKERN_ISA {
namespace {

constexpr int kGroup = 16;

// The lanes of one sum.
template <class V, int N = kGroup * int(sizeof(V{}[0])) / kVectorBytes>
struct Lanes {
  V part[N] = {};

  double total() const {
    double sum = 0;
    for (const V& each : part) {
      for (int k = 0; k < kVectorBytes / int(sizeof(each[0])); ++k) sum += double(each[k]);
    }
    return sum;
  }
};

template <class T>
struct Sums {
  Lanes<DoubleVec> loss, value, target, error_square, target_square;
  Lanes<Flags<T>> count, clipped;

  // The i-th vector of a group.
  RLKERN_INLINE_MEMBER void add(int i, Vector<T> w, Vector<T> l, Vector<T> v, Vector<T> t) {
    DoubleVec weights[kDoubles<T>], losses[kDoubles<T>], values[kDoubles<T>], targets[kDoubles<T>];
    to_doubles(w, weights);
    to_doubles(l, losses);
    to_doubles(v, values);
    to_doubles(t, targets);
    for (int part = 0; part < kDoubles<T>; ++part) {
      const int k = i * kDoubles<T> + part;
      const DoubleVec error = targets[part] - values[part];
      loss.part[k] += weights[part] * losses[part];
      value.part[k] += values[part];
      target.part[k] += targets[part];
      error_square.part[k] += error * error;
      target_square.part[k] += targets[part] * targets[part];
    }
  }
};

template <class T>
struct Group {
  const T *value, *target, *old_value, *weight;
  T* grad;
};

template <ValueKind kind, class T>
RLKERN_INLINE void add_group(const Group<T>& x, T clip, T delta, bool past, Sums<T>& sums) {
  using V = Vector<T>;
  constexpr Penalty kPenalty = penalty_of(kind);
  constexpr ClipRule kRule = clip_rule_of(kind);
  for (int i = 0; i < kGroup / kWidth<T>; ++i) {
    const int at = i * kWidth<T>;
    const V weight = load(x.weight + at);
    const auto counts = weight != V{};
    // Loaded whether it counts or not, selected before it is used.
    const V value = counts ? load(x.value + at) : V{}, target = counts ? load(x.target + at) : V{};
    Penalised<V> term = penalise<kPenalty>(value - target, delta);
    if constexpr (kRule != ClipRule::free) {
      const V near = near_old(value, counts ? load(x.old_value + at) : V{}, clip);
      auto clipped = counts;
      const auto moved = (near < value) | (near > value);
      term = chosen_term<kRule>(term, penalise<kPenalty>(near - target, delta), moved, &clipped);
      sums.clipped.part[i] += clipped;
    }
    sums.count.part[i] += counts;
    sums.add(i, weight, term.value, value, target);
    if (past) {
      stream(x.grad + at, weight * term.slope);
    } else {
      store(x.grad + at, weight * term.slope);
    }
  }
}

// What is left of a block, with weight 0 beside it.
template <ValueKind kind, class T>
void add_rest(const Group<T>& x, int n, T clip, T delta, Sums<T>& sums) {
  T value[kGroup] = {}, target[kGroup] = {}, old_value[kGroup] = {}, weight[kGroup] = {};
  T grad[kGroup];
  for (int i = 0; i < n; ++i) {
    value[i] = x.value[i];
    target[i] = x.target[i];
    old_value[i] = x.old_value[i];
    weight[i] = x.weight[i];
  }
  add_group<kind>(Group<T>{value, target, old_value, weight, grad}, clip, delta, false, sums);
  for (int i = 0; i < n; ++i) x.grad[i] = grad[i];
}

template <ValueKind kind, class T>
ValueSums block(const ValueLossArguments<T>& a, int64_t begin, int64_t end) {
  Sums<T> sums;
  // Without an old value the estimate is its own.
  const T* old_value = a.old_value ? a.old_value : a.value;
  const auto group = [&](int64_t i) {
    return Group<T>{a.value + i, a.target + i, old_value + i, a.weight + i, a.grad_value + i};
  };
  const bool past = a.past && reinterpret_cast<uintptr_t>(a.grad_value) % kVectorBytes == 0;
  int64_t i = begin;
  if (past) {
    for (; i + kGroup <= end; i += kGroup) {
      add_group<kind>(group(i), a.clip, a.delta, true, sums);
    }
  } else {
    for (; i + kGroup <= end; i += kGroup) {
      add_group<kind>(group(i), a.clip, a.delta, false, sums);
    }
  }
  if (i < end) add_rest<kind>(group(i), int(end - i), a.clip, a.delta, sums);
  ValueSums found = {sums.loss.total(), {}};
  found.metric[kValueCount] = -sums.count.total();
  found.metric[kValueValue] = sums.value.total();
  found.metric[kValueTarget] = sums.target.total();
  found.metric[kValueError] = found.metric[kValueTarget] - found.metric[kValueValue];
  found.metric[kValueErrorSquare] = sums.error_square.total();
  found.metric[kValueTargetSquare] = sums.target_square.total();
  found.metric[kValueClipped] = -sums.clipped.total();
  return found;
}

template <class T>
constexpr ValueKernels<T> kernels() {
  return {{block<ValueKind::squared, T>, block<ValueKind::full_squared, T>,
           block<ValueKind::huber, T>, block<ValueKind::clipped, T>,
           block<ValueKind::full_clipped, T>, block<ValueKind::clipped_huber, T>,
           block<ValueKind::clipped_only, T>}};
}

}  // namespace

const PerType<ValueKernels> value_kernels = {kernels<float>(), kernels<double>()};

}  // namespace rlkern::RLKERN_ISA
