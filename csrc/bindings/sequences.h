// SPDX-License-Identifier: Apache-2.0
// Sequences as an argument.
#pragma once

#include "bindings/arguments.h"
#include "cpu/sequences.h"

namespace rlkern {

// (how many, steps of each, address of the bounds or 0)
using SequencesTuple = std::tuple<int64_t, int64_t, Address>;

inline Sequences sequences(const SequencesTuple& s) {
  return {std::get<0>(s), std::get<1>(s), at<int64_t>(std::get<2>(s))};
}

}  // namespace rlkern
