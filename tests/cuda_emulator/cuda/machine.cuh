// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels on a CPU: every thread of a cluster is a fiber (cuda/fibers.h).
// Takes the place of csrc/cuda/machine.cuh; whatever the kernels ask of a machine is here.
// Included once: a library is one source.
#pragma once

#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cuda/fibers.h"

#define __global__
#define __device__
#define __launch_bounds__(...)

using cudaError_t = int;
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulator"; }

template <class T>
T min(T x, T y) {
  return x < y ? x : y;
}

namespace rlkern {

constexpr bool kEmulated = true;

struct bfloat16 {
  uint16_t bits;
};
using float16 = _Float16;
inline float to_float(float x) { return x; }
inline float to_float(float16 x) { return float(x); }
inline float to_float(bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline void put(float* p, float x) { *p = x; }
inline void put(float16* p, float x) { *p = float16(x); }
inline void put(bfloat16* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  p->bits = x != x ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float larger(float a, float b) { return a != a || b != b ? NAN : (a > b ? a : b); }

// Elements that share a register of 32 bits.
template <class S>
struct Pair {
  S low, high;
};
template <class S>
struct PackOf {
  using Type = Pair<S>;
};
template <>
struct PackOf<float> {
  using Type = float;
};
inline void unpack(float pack, float* x) { x[0] = pack; }
inline void pack(const float* x, float* pack) { *pack = x[0]; }
template <class S>
void unpack(Pair<S> pack, float* x) {
  x[0] = to_float(pack.low), x[1] = to_float(pack.high);
}
template <class S>
void pack(const float* x, Pair<S>* pack) {
  put(&pack->low, x[0]), put(&pack->high, x[1]);
}
template <class S>
Pair<S> larger(Pair<S> a, Pair<S> b) {
  const float x[2] = {larger(to_float(a.low), to_float(b.low)),
                      larger(to_float(a.high), to_float(b.high))};
  pack(x, &a);
  return a;
}
inline uint32_t shifted_right(uint32_t low, uint32_t high, int bits) {
  return uint32_t((uint64_t(high) << 32 | low) >> bits);
}

inline char* shared_memory() { return machine.block().aligned(); }
inline void block_sync() { machine.block().barrier.wait(); }
inline void warp_sync() { machine.block().warps[machine.now->thread / 32].wait(); }
template <int BARRIER>
void sync_threads(int threads) {
  Barrier& barrier = machine.block().named[BARRIER];
  barrier.expected = threads;
  barrier.wait();
}
inline float exp2_fast(float x) { return x < -126 ? 0.0f : std::exp2(x); }
inline float power_of_2_below(float x) { return std::exp2(std::floor(std::log2(x))); }

template <class Join>
float warp_join(float x, Join join) {
  EmulatedBlock& block = machine.block();
  const int thread = machine.now->thread, first = thread / 32 * 32;
  block.exchange[thread] = x;
  block.warps[thread / 32].wait();
  float lanes[32], next[32];
  for (int k = 0; k < 32; ++k) lanes[k] = block.exchange[first + k];
  for (int step = 16; step > 0; step /= 2) {
    for (int k = 0; k < 32; ++k) next[k] = join(lanes[k], lanes[k ^ step]);
    std::memcpy(lanes, next, sizeof lanes);
  }
  block.warps[thread / 32].wait();
  return lanes[thread % 32];
}

// The copies happen as late as they may.
inline void copy_16_bytes(void* shared, const void* global) {
  const auto address = reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global);
  if (address % 16) std::abort();
  machine.now->copies.emplace_back(shared, global);
  machine.read += 16;
}
inline void wait_for_copies() {
  for (const auto& copy : machine.now->copies) std::memcpy(copy.first, copy.second, 16);
  machine.now->copies.clear();
}
inline void load_16_bytes(void* x, const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16) std::abort();
  std::memcpy(x, p, 16);
}
inline void store_16_bytes(void* p, const void* x) {
  if (reinterpret_cast<uintptr_t>(p) % 16) std::abort();
  std::memcpy(p, x, 16);
  machine.written += 16;
}

inline void cluster_arrive() { machine.now->cluster_generation = machine.cluster.arrive(); }
inline void cluster_arrive_relaxed() { cluster_arrive(); }
inline void cluster_wait() { machine.cluster.wait(machine.now->cluster_generation); }
template <class T>
T* at_block(T* mine, int rank) {
  const std::ptrdiff_t offset = reinterpret_cast<char*>(mine) - shared_memory();
  return reinterpret_cast<T*>(machine.blocks[rank].aligned() + offset);
}
template <class T>
T of_block(T* mine, int rank) {
  return *at_block(mine, rank);
}

struct Device {
  int major, shared_bytes;
};

// Device 8 is as small as an A100 and has no clusters, every other is like an H100.
inline cudaError_t open_device(int64_t index, Device* device) {
  *device = index == 8 ? Device{8, 163 << 10} : Device{9, 227 << 10};
  return 0;
}

// Who executes launches in this machine's place, if anybody: given the kernel's mangled name, the
// blocks, those of a cluster, the threads, the bytes of shared memory, and where each argument is.
using Launcher = int (*)(const char*, int64_t, int64_t, int64_t, int64_t, const void* const*);
inline Launcher launcher = nullptr;

template <class... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), dim3 blocks, int cluster, int threads,
                   int shared_bytes, void*, const Arguments&... arguments) {
  if (launcher) {
    Dl_info info;
    if (!dladdr(reinterpret_cast<const void*>(kernel), &info)) std::abort();
    const void* const places[] = {&arguments...};
    return launcher(info.dli_sname, blocks.x, cluster, threads, shared_bytes, places);
  }
  gridDim = blocks;
  blockDim = dim3(threads);
  machine.prepare(cluster, threads, shared_bytes);
  machine.body = [&] { kernel(arguments...); };
  for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y)
    for (unsigned first = 0; first < blocks.x; first += cluster) machine.run(int(first));
  return 0;
}

// Few, so that tests need few rows.
template <class... Arguments>
cudaError_t resident_clusters(void (*)(Arguments...), int, int, int, int* clusters) {
  *clusters = 2;
  return 0;
}

}  // namespace rlkern

#define __syncthreads rlkern::block_sync
#define __syncwarp rlkern::warp_sync

// For the tests. A kernel that lacks a barrier gives other bits in one of the two orders.
extern "C" void emulator_begin(int forwards) {
  rlkern::machine.forwards = forwards;
  rlkern::machine.read = rlkern::machine.written = 0;
}
extern "C" void emulator_launch_by(rlkern::Launcher launcher) { rlkern::launcher = launcher; }
extern "C" int64_t emulator_bytes_read() { return rlkern::machine.read; }
extern "C" int64_t emulator_bytes_written() { return rlkern::machine.written; }
