// SPDX-License-Identifier: Apache-2.0
// An objective and its rows as arguments.
#pragma once

#include <algorithm>

#include "bindings/arguments.h"
#include "cpu/token_objective.h"

namespace rlkern {

// (gate, level, KL estimator, gate coefficients, kl_coef, entropy_coef)
using ObjectiveTuple =
    std::tuple<int, int, int, std::array<double, kGateCoefficients>, double, double>;

template <class T>
Objective<T> objective(const ObjectiveTuple& o) {
  Objective<T> made{Gate(std::get<0>(o)), Level(std::get<1>(o)), Kl(std::get<2>(o)), {},
                    T(std::get<4>(o)),    T(std::get<5>(o))};
  std::copy_n(std::get<3>(o).begin(), kGateCoefficients, made.gate_coef);
  return made;
}

template <class T>
TokenRows<T> token_rows(const Addresses<5>& a) {
  return {at<T>(a[0]), at<T>(a[1]), at<T>(a[2]), at<T>(a[3]), at<T>(a[4])};
}

}  // namespace rlkern
