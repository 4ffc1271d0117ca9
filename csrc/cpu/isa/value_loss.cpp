// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, with RLKERN_ISA its name. Loops without a branch, stage by
// stage over a few hundred elements, so that the compiler makes vectors of them; every sum has
// sixteen lanes.
#include "cpu/value_loss.h"

#include <algorithm>

namespace rlkern {
namespace {

// Elements of a stage, and lanes of a sum.
constexpr int kSide = 256, kSums = 16;

template <class T>
struct Lanes {
  double loss[kSums] = {}, value[kSums] = {}, target[kSums] = {};
  double error_square[kSums] = {}, target_square[kSums] = {};
  T count[kSums] = {}, clipped[kSums] = {};
};

template <class T>
struct Side {
  const T *value, *target, *old_value, *weight;
  T* grad;
};

template <Penalty penalty, class T>
inline __attribute__((always_inline)) void penalties(const T (&value)[kSide],
                                                     const T (&target)[kSide], T delta,
                                                     T (&loss)[kSide], T (&slope)[kSide]) {
  for (int k = 0; k < kSide; ++k) {
    const Penalised<T> found = penalise<penalty>(value[k] - target[k], delta);
    loss[k] = found.value;
    slope[k] = found.slope;
  }
}

// One stage after the other: in a single loop the compiler turns the choices back into branches.
template <ValueKind kind, class T>
inline __attribute__((always_inline)) void step(const Side<T>& x, T clip, T delta, Lanes<T>& sum) {
  constexpr Penalty penalty = penalty_of(kind);
  constexpr ClipRule rule = clip_rule_of(kind);
  T* __restrict grad = x.grad;
  T value[kSide], target[kSide], loss[kSide], slope[kSide], clipped[kSide] = {};
  // Loaded whether it counts or not, selected before it is used.
  for (int k = 0; k < kSide; ++k) value[k] = x.weight[k] != 0 ? x.value[k] : 0;
  for (int k = 0; k < kSide; ++k) target[k] = x.weight[k] != 0 ? x.target[k] : 0;
  penalties<penalty>(value, target, delta, loss, slope);
  if (rule != ClipRule::free) {
    T near[kSide], held[kSide], held_slope[kSide];
    for (int k = 0; k < kSide; ++k) near[k] = x.weight[k] != 0 ? x.old_value[k] : 0;
    for (int k = 0; k < kSide; ++k) near[k] = near_old(value[k], near[k], clip);
    penalties<penalty>(near, target, delta, held, held_slope);
    for (int k = 0; k < kSide; ++k) {
      const ValueTerm<T> term =
          chosen_term<rule, T>({loss[k], slope[k]}, {held[k], held_slope[k]}, near[k] != value[k]);
      loss[k] = term.value;
      slope[k] = term.slope;
      clipped[k] = term.clipped ? T(1) : T(0);
    }
  }
  for (int k = 0; k < kSide; ++k) grad[k] = x.weight[k] * slope[k];
  for (int i = 0; i < kSide; i += kSums) {
    for (int k = 0; k < kSums; ++k) {
      const double v = value[i + k], t = target[i + k], error = t - v;
      sum.loss[k] += double(x.weight[i + k]) * double(loss[i + k]);
      sum.value[k] += v;
      sum.target[k] += t;
      sum.error_square[k] += error * error;
      sum.target_square[k] += t * t;
      sum.count[k] += x.weight[i + k] != 0 ? T(1) : T(0);
      sum.clipped[k] += clipped[i + k];
    }
  }
}

// What is left of a block, with weight 0 beside it.
template <ValueKind kind, class T>
void tail(const Side<T>& x, int64_t n, T clip, T delta, Lanes<T>& sum) {
  T value[kSide] = {}, target[kSide] = {}, old_value[kSide] = {}, weight[kSide] = {}, grad[kSide];
  std::copy_n(x.value, n, value);
  std::copy_n(x.target, n, target);
  if (x.old_value) std::copy_n(x.old_value, n, old_value);
  std::copy_n(x.weight, n, weight);
  step<kind>(Side<T>{value, target, old_value, weight, grad}, clip, delta, sum);
  std::copy_n(grad, n, x.grad);
}

template <class T, class Number>
double total(const Number (&lanes)[kSums]) {
  double sum = 0;
  for (const Number x : lanes) sum += x;
  return sum;
}

template <ValueKind kind, class T>
ValueSums block(const ValueLossArguments<T>& a, int64_t begin, int64_t end) {
  Lanes<T> sum;
  // Without an old value the estimate is its own.
  const T* old_value = a.old_value ? a.old_value : a.value;
  const auto side = [&](int64_t i) {
    return Side<T>{a.value + i, a.target + i, old_value + i, a.weight + i, a.grad_value + i};
  };
  int64_t i = begin;
  for (; i + kSide <= end; i += kSide) step<kind>(side(i), a.clip, a.delta, sum);
  if (i < end) tail<kind>(side(i), end - i, a.clip, a.delta, sum);
  ValueSums sums;
  sums.loss = total<T>(sum.loss);
  sums.metric[kValueCount] = total<T>(sum.count);
  sums.metric[kValueValue] = total<T>(sum.value);
  sums.metric[kValueTarget] = total<T>(sum.target);
  sums.metric[kValueError] = sums.metric[kValueTarget] - sums.metric[kValueValue];
  sums.metric[kValueErrorSquare] = total<T>(sum.error_square);
  sums.metric[kValueTargetSquare] = total<T>(sum.target_square);
  sums.metric[kValueClipped] = total<T>(sum.clipped);
  return sums;
}

template <class T>
constexpr ValueKernels<T> kernels() {
  return {{block<ValueKind::squared, T>, block<ValueKind::full_squared, T>,
           block<ValueKind::huber, T>, block<ValueKind::clipped, T>,
           block<ValueKind::full_clipped, T>, block<ValueKind::clipped_huber, T>,
           block<ValueKind::clipped_only, T>}};
}

}  // namespace

#define RLKERN_JOIN(a, b) a##b
#define RLKERN_VALUES_SYMBOL(name) RLKERN_JOIN(values_, name)
#define RLKERN_QUOTE(x) #x
#define RLKERN_STRING(x) RLKERN_QUOTE(x)

extern const ValueIsa RLKERN_VALUES_SYMBOL(RLKERN_ISA);
const ValueIsa RLKERN_VALUES_SYMBOL(RLKERN_ISA) = {RLKERN_STRING(RLKERN_ISA), kernels<float>(),
                                                   kernels<double>()};

}  // namespace rlkern
