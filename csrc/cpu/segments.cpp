// SPDX-License-Identifier: Apache-2.0
#include "cpu/segments.h"

#include <stdexcept>
#include <string>

namespace rlkern {

void check_bounds(const char* op, const Sequences& all, int64_t steps) {
  if (!all.bounds) return;
  bool ascends = all.bounds[0] == 0 && all.bounds[all.count] == steps;
  for (int64_t i = 0; i < all.count; ++i) ascends &= all.bounds[i] <= all.bounds[i + 1];
  if (ascends) return;
  throw std::invalid_argument(std::string(op) +
                              ": cu_seqlens must rise from 0 to the number of rows " +
                              std::to_string(steps) + ", got " + std::to_string(all.bounds[0]) +
                              " … " + std::to_string(all.bounds[all.count]));
}

}  // namespace rlkern
