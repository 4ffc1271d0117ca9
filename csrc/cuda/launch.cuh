// SPDX-License-Identifier: Apache-2.0
// Launches a kernel over rows: one cluster each, in the dtype of its logits.
#pragma once

#include "cuda/arguments.h"
#include "cuda/machine.cuh"
#include "cuda/shape.h"

namespace rlkern {

constexpr int64_t kMostInGrid = (int64_t(1) << 31) - 1;

template <class S>
struct Type {
  using Element = S;
};

// Calls body with a Type of the dtype's elements.
template <class Body>
int with_dtype(int64_t dtype, const Body& body) {
  if (dtype == kFloat32) return body(Type<float>());
  if (dtype == kBfloat16) return body(Type<bfloat16>());
  if (dtype == kFloat16) return body(Type<float16>());
  return kUnknownDtype;
}

// The kernel's second argument says how many blocks share a row, as a power of 2.
// alone: no block needs another's slice, so that a row may be cut up without clusters, too.
template <class S, class Arguments>
int launch_rows(void (*kernel)(Arguments, int), const Arguments& arguments, bool alone) {
  const Call& call = arguments.call;
  if (call.logits.rows == 0) return 0;
  Device device;
  if (const int error = open_device(call.device, &device)) return error;
  const bool clusters = device.major >= 9;
  const Shape shape = shape_of(int(call.logits.vocab), sizeof(S), clusters || alone);
  if (shape.shared_bytes > device.shared_bytes) return kRowTooLong;
  if (call.logits.rows > kMostInGrid >> shape.log_blocks) return kTooManyRows;
  const int cluster = clusters && !alone ? 1 << shape.log_blocks : 1;
  return launch(kernel, dim3(unsigned(call.logits.rows) << shape.log_blocks), cluster, kThreads,
                int(shape.shared_bytes), call.stream, arguments, shape.log_blocks);
}

}  // namespace rlkern
