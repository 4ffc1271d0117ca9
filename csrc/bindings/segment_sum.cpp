// SPDX-License-Identifier: Apache-2.0
#include "cpu/segment_sum.h"

#include "bindings/arguments.h"

namespace rlkern {
namespace {

// Where sequences lie in a mask (B, T), or in one (N,) that offset bounds.
Segments segments(const Tensor& mask, const Tensor& offset) {
  if (!offset.given()) {
    if (mask.ndim() != 2) throw std::invalid_argument("without offset mask must be (B, T)");
    return {mask.size(0), mask.count(), mask.size(1), nullptr};
  }
  const int64_t bounds = offset.count();
  if (bounds < 1) throw std::invalid_argument("offset must hold a bound, got none");
  return {bounds - 1, mask.count(), 0, offset.elements<int64_t>("offset", bounds)};
}

void bind_segment_sum(const Tensor& x, const Tensor& mask, const Tensor& offset,
                      const Tensor& total, const Tensor& counted, int threads) {
  const Segments all = segments(mask, offset);
  with_accumulator(x.is_double(), [&](auto zero) {
    using T = decltype(zero);
    segment_sum<T>(all, x.elements<T>("x", all.elements), mask.elements<bool>("mask", all.elements),
                   total.elements<T>("total", all.count), counted.elements<T>("counted", all.count),
                   threads);
  });
}

void bind_segment_sum_backward(const Tensor& grad, const Tensor& mask, const Tensor& offset,
                               const Tensor& grad_x, int threads) {
  const Segments all = segments(mask, offset);
  with_accumulator(grad.is_double(), [&](auto zero) {
    using T = decltype(zero);
    segment_sum_backward<T>(all, grad.elements<T>("grad", all.count),
                            mask.elements<bool>("mask", all.elements),
                            grad_x.elements<T>("grad_x", all.elements), threads);
  });
}

}  // namespace

RLKERN_BINDINGS(m) {
  define(m, "segment_sum", bind_segment_sum, "x", "mask", "offset", "total", "counted", "threads");
  define(m, "segment_sum_backward", bind_segment_sum_backward, "grad", "mask", "offset", "grad_x",
         "threads");
}

}  // namespace rlkern
