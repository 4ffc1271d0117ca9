// SPDX-License-Identifier: Apache-2.0
#include "cpu/rows.h"

#include "cpu/simd.h"

namespace rlkern {

double Grid::element(int64_t i, int64_t j) const {
  const void* x = row(i);
  switch (dtype) {
    case kFloat32:
      return static_cast<const float*>(x)[j];
    case kBfloat16:
      return to_float(static_cast<const bfloat16*>(x)[j]);
    case kFloat16:
      return to_float(static_cast<const float16*>(x)[j]);
    default:
      return static_cast<const double*>(x)[j];
  }
}

}  // namespace rlkern
