// SPDX-License-Identifier: Apache-2.0
#include "cpu/token_objective.h"

#include "bindings/objective.h"
#include "bindings/sequences.h"

namespace rlkern {
namespace {

NumberedObjective numbered(int gate, int level, int kl,
                           const std::array<double, kGateCoefficients>& gate_coef, double kl_coef,
                           double entropy_coef, double log_ratio_min, double log_ratio_max,
                           double kl_max) {
  return {enumerator("gate", gate, kLastGate),
          enumerator("level", level, kLastLevel),
          enumerator("kl", kl, kLastKl),
          gate_coef,
          kl_coef,
          entropy_coef,
          log_ratio_min,
          log_ratio_max,
          kl_max};
}

void bind_token_objective(const Tensor& logprob, const Tensor& entropy, const Fields& rows,
                          const Tensor& cu_seqlens, const NumberedObjective& objective,
                          const Tensor& loss, const Tensor& metrics, const Tensor& grad_logprob,
                          const Tensor& grad_entropy) {
  const RowFields r(rows);
  const Sequences all = sequences(logprob, cu_seqlens);
  const int64_t n = logprob.count();
  with_accumulator(logprob.is_double(), [&](auto zero) {
    using T = decltype(zero);
    check_bounds("token_objective", all, n);
    token_objective<T>(
        all, logprob.elements<T>("logprob", n), entropy.elements<T>("entropy", n), r.of<T>(n),
        objective.of<T>(), loss.elements<T>("loss", 1), metrics.elements<T>("metrics", kMetrics),
        grad_logprob.elements<T>("grad_logprob", n), grad_entropy.elements<T>("grad_entropy", n));
  });
}

}  // namespace

RLKERN_BINDINGS(m) {
  py::class_<NumberedObjective>(m, "Objective")
      .def(py::init(&numbered), py::kw_only(), py::arg("gate"), py::arg("level"), py::arg("kl"),
           py::arg("gate_coef"), py::arg("kl_coef"), py::arg("entropy_coef"),
           py::arg("log_ratio_min"), py::arg("log_ratio_max"), py::arg("kl_max"));
  define(m, "token_objective", bind_token_objective, "logprob", "entropy", "rows", "cu_seqlens",
         "objective", "loss", "metrics", "grad_logprob", "grad_entropy");
}

}  // namespace rlkern
