// SPDX-License-Identifier: Apache-2.0
// rlkern._C. Tensors arrive as addresses: rlkern/native.py has checked them and holds them alive.
// No torch header is included, so one binary serves every version of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/operations.h"

namespace py = pybind11;

namespace rlkern {
namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// (address, dtype, B, T, V, stride of B, stride of T)
using GridTuple = std::tuple<Address, int, int64_t, int64_t, int64_t, int64_t, int64_t>;

Grid grid(const GridTuple& g) {
  return {at<char>(std::get<0>(g)), Dtype(std::get<1>(g)), std::get<2>(g), std::get<3>(g),
          std::get<4>(g),           std::get<5>(g),        std::get<6>(g)};
}

// (gate, (low, high), kl, kl_coef, entropy_coef)
using ObjectiveTuple = std::tuple<int, std::pair<double, double>, int, double, double>;

template <class T>
Objective<T> objective(const ObjectiveTuple& o) {
  return {Gate(std::get<0>(o)), T(std::get<1>(o).first), T(std::get<1>(o).second),
          Kl(std::get<2>(o)),   T(std::get<3>(o)),       T(std::get<4>(o))};
}

using Addresses4 = std::array<Address, 4>;

template <class T>
ObjectiveRows<T> objective_rows(const Addresses4& a) {
  return {at<T>(a[0]), at<T>(a[1]), at<T>(a[2]), at<T>(a[3])};
}

// Calls the float or the double version: only double logits have double rows.
template <class Call>
void with_accumulator(bool is_double, const Call& call) {
  py::gil_scoped_release release;
  if (is_double) {
    call(double{});
  } else {
    call(float{});
  }
}

void bind_token_logprob(const GridTuple& logits, Address token, Address mask,
                        Address inv_temperature, const Addresses4& out, int threads) {
  const Grid z = grid(logits);
  with_accumulator(z.dtype == kFloat64, [&](auto zero) {
    using T = decltype(zero);
    token_logprob<T>(z, at<int64_t>(token), at<bool>(mask), at<T>(inv_temperature),
                     {at<T>(out[0]), at<T>(out[1]), at<T>(out[2]), at<T>(out[3])}, threads);
  });
}

void bind_token_logprob_backward(const GridTuple& logits, Address token, Address mask,
                                 Address inv_temperature, const std::array<Address, 6>& in,
                                 const GridTuple& grad_logits, int threads) {
  const Grid z = grid(logits), g = grid(grad_logits);
  with_accumulator(z.dtype == kFloat64, [&](auto zero) {
    using T = decltype(zero);
    const TokenLogprobGradient<T> rows{at<T>(in[0]), at<T>(in[1]), at<T>(in[2]),
                                       at<T>(in[3]), at<T>(in[4]), at<T>(in[5])};
    token_logprob_backward<T>(z, at<int64_t>(token), at<bool>(mask), at<T>(inv_temperature), rows,
                              g, threads);
  });
}

void bind_policy_loss(const GridTuple& logits, Address token, const Addresses4& rows,
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
                          const Addresses4& rows, const ObjectiveTuple& o, const Addresses4& out) {
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    token_objective<T>(n, at<T>(logprob), at<T>(entropy), objective_rows<T>(rows), objective<T>(o),
                       at<T>(out[0]), at<T>(out[1]), at<T>(out[2]), at<T>(out[3]));
  });
}

void bind_reverse_scan(int64_t rows, int64_t time, bool is_double, Address bias, Address decay,
                       Address x, int threads) {
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    reverse_scan<T>(rows, time, at<T>(bias), at<T>(decay), at<T>(x), threads);
  });
}

void bind_group_advantage(int64_t n, bool is_double, Address reward, Address order, Address offset,
                          int kind, double eps, int64_t ddof, Address advantage) {
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    group_advantage<T>(n, at<T>(reward), at<int64_t>(order), at<int64_t>(offset),
                       AdvantageKind(kind), eps, ddof, at<T>(advantage));
  });
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (int i = 0; i < isa_count(); ++i) names.push_back(isa_at(i).name);
  return names;
}

}  // namespace
}  // namespace rlkern

PYBIND11_MODULE(_C, m) {
  using namespace rlkern;
  m.doc() = "Native CPU kernels of rlkern; called by rlkern.native.";
  m.def("token_logprob", bind_token_logprob);
  m.def("token_logprob_backward", bind_token_logprob_backward);
  m.def("policy_loss", bind_policy_loss);
  m.def("token_objective", bind_token_objective);
  m.def("reverse_scan", bind_reverse_scan);
  m.def("group_advantage", bind_group_advantage);
  m.def("isa_names", isa_names, "Instruction sets this machine can run, best first.");
  m.def("isa_chosen", [] { return std::string(chosen_isa().name); });
}
