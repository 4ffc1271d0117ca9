// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/value_kernels.h"

namespace rlkern {

template <class T>
void value_loss(ValueKind kind, const ValueLossArguments<T>& arguments, int threads);

}  // namespace rlkern
