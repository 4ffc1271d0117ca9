// SPDX-License-Identifier: Apache-2.0
// Which rows of flat inputs belong together.
#pragma once

#include <cstdint>

namespace rlkern {

// Sequences side by side in the flat inputs: of `time` steps each, or where `bounds` (count + 1
// offsets) says.
struct Sequences {
  int64_t count, time;
  const int64_t* bounds;  // may be null

  int64_t begin(int64_t i) const { return bounds ? bounds[i] : i * time; }
  int64_t end(int64_t i) const { return begin(i + 1); }
  int64_t length(int64_t i) const { return end(i) - begin(i); }
  int64_t steps() const { return begin(count); }
};

}  // namespace rlkern
