// SPDX-License-Identifier: Apache-2.0
#include "cpu/value_loss.h"

#include "bindings/arguments.h"
#include "cpu/segments.h"

namespace rlkern {

static void bind_value_loss(const Tensor& value, const Tensor& target, const Tensor& old_value,
                            const Tensor& weight, int kind, double clip, double delta,
                            const Tensor& loss, const Tensor& metrics, const Tensor& grad_value,
                            int threads) {
  const int64_t n = value.count();
  const ValueKind which = enumerator("kind", kind, ValueKind::clipped_only);
  with_accumulator(value.is_double(), [&](auto zero) {
    using T = decltype(zero);
    value_loss<T>(
        which,
        {n, value.elements<T>("value", n), target.elements<T>("target", n),
         old_value.elements_or_null<T>("old_value", n), weight.elements<T>("weight", n), T(clip),
         T(delta), loss.elements<T>("loss", 1), metrics.elements<double>("metrics", kValueMetrics),
         grad_value.elements<T>("grad_value", n), exceeds_caches(n * sizeof(T))},
        threads);
  });
}

RLKERN_BINDINGS(m) {
  define(m, "value_loss", bind_value_loss, "value", "target", "old_value", "weight", "kind", "clip",
         "delta", "loss", "metrics", "grad_value", "threads");
}

}  // namespace rlkern
