// SPDX-License-Identifier: Apache-2.0
// Sweeps of recurrences that run backwards, compiled once per instruction set and chosen at run
// time.
#pragma once

#include <cstdint>

namespace rlkern {

// Steps [begin, begin + length), all of one sequence. `state` is what the recurrence carries:
// before a sweep what follows the last step, afterwards what the first step hands on.
template <class T>
struct Segment {
  int64_t begin, length, sequence;
  T state[2];
};

template <class T>
struct ScanRows {
  const T *bias, *decay;
  T* x;
  bool past;  // the caches
};

// One number per sequence or, with a stride of 0, one for all.
struct Coefficient {
  const double* data;
  int64_t stride;

  double operator[](int64_t i) const { return data[i * stride]; }
};

template <class T>
struct GaeRows {
  const T *reward, *value;
  const bool* mask;
  Coefficient discount, gae_lambda;
  const T* bootstrap;  // per sequence, or null
  T *advantage, *target;
  bool past;  // the caches
};

template <class T>
struct ScanKernels {
  // The state is {x}; that of the ends, which writes nothing else, {x, product of the decays}.
  void (*reverse_scan)(const ScanRows<T>&, Segment<T>*, int64_t count);
  void (*reverse_scan_ends)(const ScanRows<T>&, Segment<T>*, int64_t count);
  // The state is {advantage, value} of the counted step that follows.
  void (*gae)(const GaeRows<T>&, Segment<T>*, int64_t count);
  void (*gae_ends)(const GaeRows<T>&, Segment<T>*, int64_t count);
};

}  // namespace rlkern
