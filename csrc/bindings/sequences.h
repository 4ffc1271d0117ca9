// SPDX-License-Identifier: Apache-2.0
// Sequences as an argument.
#pragma once

#include "bindings/arguments.h"
#include "cpu/segments.h"

namespace rlkern {

// Where sequences lie in (B, T) steps, or in steps that cu_seqlens bounds.
inline Sequences sequences(const Tensor& steps, const Tensor& cu_seqlens) {
  if (cu_seqlens.given()) {
    const int64_t bounds = cu_seqlens.count();
    if (bounds < 1) throw std::invalid_argument("cu_seqlens must hold a bound, got none");
    return {bounds - 1, 0, cu_seqlens.elements<int64_t>("cu_seqlens", bounds)};
  }
  if (steps.ndim() != 2) throw std::invalid_argument("without cu_seqlens steps must be (B, T)");
  return {steps.size(0), steps.size(1), nullptr};
}

}  // namespace rlkern
