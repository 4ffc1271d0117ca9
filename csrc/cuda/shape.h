// SPDX-License-Identifier: Apache-2.0
// How many blocks share a row, and how large they are: the only table of launch shapes.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace rlkern {

// A constant, so that a loop's addresses are constants apart. Larger clusters are not portable.
constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp, kLogMostBlocks = 3;
// Shared memory of a block: what its threads share, then its slice, at any alignment.
constexpr int kBlockBytes = 176, kAlignment = 16;
// Of the 228 KB of an sm_90 or sm_100 three blocks get this each, and 1 KB that the driver takes.
constexpr int kThirdOfSharedMemory = 75 * 1024;
// How many blocks of a kernel a multiprocessor's registers must suffice for.
constexpr int kResidentBlocks = 3;

// Columns of a slice: whole groups of 16 bytes.
RLKERN_HD int slice_columns(int vocab, int element_size, int log_blocks) {
  const int width = 16 / element_size, groups = (vocab + width - 1) / width;
  return ((groups + (1 << log_blocks) - 1) >> log_blocks) * width;
}

RLKERN_HD int64_t shared_bytes(int vocab, int element_size, int log_blocks) {
  return kBlockBytes + kAlignment +
         int64_t(slice_columns(vocab, element_size, log_blocks)) * element_size;
}

struct Shape {
  int log_blocks;
  int64_t shared_bytes;
};

// The fewest blocks, a power of 2, of which three fit a multiprocessor. Without clusters a row is
// one block's.
inline Shape shape_of(int vocab, int element_size, bool clusters) {
  int log_blocks = 0;
  while (clusters && log_blocks < kLogMostBlocks &&
         shared_bytes(vocab, element_size, log_blocks) > kThirdOfSharedMemory)
    ++log_blocks;
  return {log_blocks, shared_bytes(vocab, element_size, log_blocks)};
}

// The pipeline of a long row: blocks of two teams of kThreads and two warps, each alone in its
// multiprocessor, with as many slices as would have a block each, and what belongs to them.
constexpr int kStages = 3, kStageBytes = 416, kPipelineThreads = 2 * kThreads + 2 * kWarp;
// Of shorter slices many blocks hide each other's waits as well.
constexpr int kLeastPipelined = 32 * 1024;
static_assert(kStages * (kStageBytes + kThirdOfSharedMemory - kBlockBytes) <= 227 * 1024,
              "the longest slices that are pipelined must fit a block");

inline bool is_pipelined(const Shape& shape) {
  return shape.shared_bytes >= kLeastPipelined && shape.shared_bytes <= kThirdOfSharedMemory;
}

RLKERN_HD int stage_slice_bytes(int vocab, int element_size, int log_blocks) {
  return kAlignment + slice_columns(vocab, element_size, log_blocks) * element_size;
}

RLKERN_HD int pipeline_bytes(int vocab, int element_size, int log_blocks) {
  return kStages * (kStageBytes + stage_slice_bytes(vocab, element_size, log_blocks));
}

}  // namespace rlkern
