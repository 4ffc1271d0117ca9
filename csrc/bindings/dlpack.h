// SPDX-License-Identifier: Apache-2.0
// The part of DLPack 1 that is read here, in the layout of its dlpack.h: every torch since the
// exchange of tensors between C libraries hands out these structures, so no torch header is needed.
#pragma once

#include <cstdint>

namespace rlkern::dlpack {

enum TypeCode : uint8_t { kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4, kBool = 6 };
constexpr int32_t kCpu = 1;

struct Tensor {
  void* data;
  int32_t device_type, device_index;
  int32_t ndim;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

// A class of tensors holds one of these in the capsule __dlpack_c_exchange_api__.
struct ExchangeApi {
  static constexpr uint32_t kMajor = 1;
  uint32_t major, minor;
  ExchangeApi* older;
  void *allocate, *managed_from_object, *managed_to_object;
  // Fills in what belongs to the tensor as long as it lives. Returns 0, or −1 with Python's error.
  int (*from_object)(void* object, Tensor* out);
  void* current_stream;
};

}  // namespace rlkern::dlpack
