// SPDX-License-Identifier: Apache-2.0
// Logits as an argument.
#pragma once

#include "bindings/arguments.h"
#include "cpu/rows.h"

namespace rlkern {

// (address, dtype, B, T, V, stride of B, stride of T)
using GridTuple = std::tuple<Address, int, int64_t, int64_t, int64_t, int64_t, int64_t>;

inline Grid grid(const GridTuple& g) {
  return {at<char>(std::get<0>(g)), Dtype(std::get<1>(g)), std::get<2>(g), std::get<3>(g),
          std::get<4>(g),           std::get<5>(g),        std::get<6>(g)};
}

// (address of inv_temperature, softcap, address of keep, ids per row)
using SoftmaxTuple = std::tuple<Address, double, Address, int64_t>;

template <class T>
Softmax<T> softmax(const SoftmaxTuple& s) {
  return {at<T>(std::get<0>(s)), std::get<1>(s), at<int64_t>(std::get<2>(s)), std::get<3>(s)};
}

}  // namespace rlkern
