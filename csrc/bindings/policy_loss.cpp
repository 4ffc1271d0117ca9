// SPDX-License-Identifier: Apache-2.0
#include "cpu/policy_loss.h"

#include "bindings/grid.h"

namespace rlkern {
namespace {

// (gate, (low, high), kl, kl_coef, entropy_coef)
using ObjectiveTuple = std::tuple<int, std::pair<double, double>, int, double, double>;

template <class T>
Objective<T> objective(const ObjectiveTuple& o) {
  return {Gate(std::get<0>(o)), T(std::get<1>(o).first), T(std::get<1>(o).second),
          Kl(std::get<2>(o)),   T(std::get<3>(o)),       T(std::get<4>(o))};
}

template <class T>
ObjectiveRows<T> objective_rows(const Addresses<4>& a) {
  return {at<T>(a[0]), at<T>(a[1]), at<T>(a[2]), at<T>(a[3])};
}

void bind_policy_loss(const GridTuple& logits, Address token, const Addresses<4>& rows,
                      Address inv_temperature, const ObjectiveTuple& o,
                      const std::optional<GridTuple>& grad_logits, Address loss, Address metrics,
                      int threads) {
  const Grid z = grid(logits), g = grad_logits ? grid(*grad_logits) : Grid{};
  with_accumulator(z.dtype == kFloat64, [&](auto zero) {
    using T = decltype(zero);
    policy_loss<T>(z, at<int64_t>(token), objective_rows<T>(rows), at<T>(inv_temperature),
                   objective<T>(o), grad_logits ? &g : nullptr, at<T>(loss), at<T>(metrics),
                   threads);
  });
}

void bind_token_objective(int64_t n, bool is_double, Address logprob, Address entropy,
                          const Addresses<4>& rows, const ObjectiveTuple& o,
                          const Addresses<4>& out) {
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    token_objective<T>(n, at<T>(logprob), at<T>(entropy), objective_rows<T>(rows), objective<T>(o),
                       at<T>(out[0]), at<T>(out[1]), at<T>(out[2]), at<T>(out[3]));
  });
}

}  // namespace

RLKERN_BINDINGS(m) {
  m.def("policy_loss", bind_policy_loss);
  m.def("token_objective", bind_token_objective);
}

}  // namespace rlkern
