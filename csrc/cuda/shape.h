// SPDX-License-Identifier: Apache-2.0
// How many blocks share a row, and how large they are: the only table of launch shapes.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace rlkern {

constexpr int kWarp = 32, kMostThreads = 512, kMostBlocks = 8;  // larger clusters are not portable
// Shared memory of a block: what its threads share, then its slice, at any alignment.
constexpr int kBlockBytes = 128, kAlignment = 16;
// Of the 228 KB of an sm_90 or sm_100 three blocks get this each, and 1 KB that the driver takes.
constexpr int kThirdOfSharedMemory = 75 * 1024;

// Columns of a slice: whole groups of 16 bytes.
RLKERN_HD int slice_columns(int vocab, int element_size, int blocks) {
  const int width = 16 / element_size, groups = (vocab + width - 1) / width;
  return (groups + blocks - 1) / blocks * width;
}

RLKERN_HD int64_t shared_bytes(int vocab, int element_size, int blocks) {
  return kBlockBytes + kAlignment +
         int64_t(slice_columns(vocab, element_size, blocks)) * element_size;
}

// How many blocks of a kernel a multiprocessor's registers must suffice for; a cap's tangent
// takes more of them.
constexpr int resident_blocks(bool capped) { return capped ? 2 : 3; }

struct Shape {
  int blocks, threads;
  int64_t shared_bytes;
};

// The fewest blocks of which three fit a multiprocessor; a thread has four or more groups of 16
// bytes, if the row is that long. Without clusters a row is one block's.
inline Shape shape_of(int vocab, int element_size, bool clusters) {
  int blocks = 1, threads = 128;
  while (clusters && blocks < kMostBlocks &&
         shared_bytes(vocab, element_size, blocks) > kThirdOfSharedMemory)
    blocks *= 2;
  const int groups = slice_columns(vocab, element_size, blocks) * element_size / 16;
  while (threads < kMostThreads && groups > threads * 4) threads *= 2;
  return {blocks, threads, shared_bytes(vocab, element_size, blocks)};
}

}  // namespace rlkern
