// SPDX-License-Identifier: Apache-2.0
// Logits, and which distribution they stand for, as arguments.
#pragma once

#include "bindings/arguments.h"
#include "cpu/rows.h"

namespace rlkern {

inline Grid grid(const char* name, const Tensor& x) {
  Dtype dtype;
  char* data = x.rows(name, &dtype);
  return {data, dtype, x.size(0), x.size(1), x.size(2), x.stride(0), x.stride(1)};
}

// The gradient of logits, in rows of their own.
inline Grid grid_like(const char* name, const Tensor& x, const Grid& logits) {
  const Grid found = grid(name, x);
  if (found.dtype != logits.dtype || found.batch != logits.batch || found.time != logits.time ||
      found.vocab != logits.vocab) {
    throw std::invalid_argument(std::string(name) + " must be of the logits' shape and dtype");
  }
  return found;
}

// The Softmax of the reference, its tensors found while the GIL is held.
struct SoftmaxFields {
  Tensor inv_temperature, keep;
  double softcap;

  explicit SoftmaxFields(const Fields& x)
      : inv_temperature(x.tensor("inv_temperature")),
        keep(x.tensor("keep")),
        softcap(x["softcap"].cast<double>()) {}

  template <class T>
  Softmax<T> of(int64_t rows) const {
    const int64_t width = keep.given() && rows ? keep.count() / rows : 0;
    return {inv_temperature.elements_or_null<T>("inv_temperature", rows), softcap,
            keep.elements_or_null<int64_t>("keep", rows * width), width};
  }
};

}  // namespace rlkern
