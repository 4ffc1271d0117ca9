// SPDX-License-Identifier: Apache-2.0
#include "cpu/gae.h"

#include "bindings/sequences.h"

namespace rlkern {
namespace {

// coefficients: discount and gae_lambda, (2,) or (2, sequences). whitening: eps and ddof.
void bind_gae(const Tensor& reward, const Tensor& value, const Tensor& mask,
              const Tensor& coefficients, const Tensor& bootstrap, const Tensor& cu_seqlens,
              const std::optional<std::pair<double, int64_t>>& whitening, const Tensor& advantage,
              const Tensor& target, int threads) {
  const Sequences all = sequences(reward, cu_seqlens);
  const int64_t n = reward.count();
  const bool per_sequence = coefficients.ndim() == 2;
  const int64_t each = per_sequence ? all.count : 1;
  const double* numbers = coefficients.elements<double>("coefficients", 2 * each);
  const Coefficient discount{numbers, per_sequence}, gae_lambda{numbers + each, per_sequence};
  const Whitening how = whitening ? Whitening{whitening->first, whitening->second} : Whitening{};
  with_accumulator(reward.is_double(), [&](auto zero) {
    using T = decltype(zero);
    check_bounds("gae", all, n);
    // Whitening reads the advantages again.
    const bool past = !whitening && exceeds_caches(2 * n * sizeof(T));
    const GaeRows<T> rows{reward.elements<T>("reward", n),
                          value.elements<T>("value", n),
                          mask.elements<bool>("mask", n),
                          discount,
                          gae_lambda,
                          bootstrap.elements_or_null<T>("bootstrap", all.count),
                          advantage.elements<T>("advantage", n),
                          target.elements<T>("target", n),
                          past};
    gae<T>(all, rows, whitening ? &how : nullptr, threads);
  });
}

}  // namespace

RLKERN_BINDINGS(m) {
  define(m, "gae", bind_gae, "reward", "value", "mask", "coefficients", "bootstrap", "cu_seqlens",
         "whitening", "advantage", "target", "threads");
}

}  // namespace rlkern
