// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels on a CPU: every thread of a cluster is a fiber, barriers switch between them.
// Takes the place of csrc/cuda/machine.cuh; whatever the kernels ask of a machine is here.
// Included once: a library is one source.
#pragma once

#include <dlfcn.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
using cudaError_t = int;
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulator"; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;
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

// Everybody waits until all have come.
struct Barrier {
  int expected = 0, arrived = 0, generation = 0;
  int arrive();  // returns what to wait for
  void wait(int for_generation);
  void wait() { wait(arrive()); }
};

struct EmulatedBlock {
  std::vector<char> memory;
  std::vector<float> exchange;
  std::vector<Barrier> warps, named;
  Barrier barrier;
  int gone;
  char* aligned() { return memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16); }
};

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  std::vector<std::pair<void*, const void*>> copies;
  int block, thread, cluster_generation;
  bool started, done, asleep;
};

// The cluster that runs now.
struct Machine {
  static constexpr int kWarpSize = 32, kStack = 32 << 10;
  std::vector<EmulatedBlock> blocks;
  std::vector<Fiber> fibers;
  jmp_buf scheduler;
  Fiber* now = nullptr;
  Barrier cluster;
  std::function<void()> body;
  bool forwards = false;          // in which order the threads take turns
  int64_t events = 0;             // barriers that opened, threads that ended
  int64_t read = 0, written = 0;  // bytes moved 16 at a time

  EmulatedBlock& block() { return blocks[now->block]; }
  // Jumps, since switching contexts is a system call.
  void yield() {
    if (!_setjmp(now->place)) _longjmp(scheduler, 1);
  }
  void resume() {
    if (_setjmp(scheduler)) return;
    if (now->started) _longjmp(now->place, 1);
    now->started = true;
    setcontext(&now->context);
  }
  // In one of the two orders, until all others wait.
  void sleep() {
    now->asleep = forwards;
    if (forwards) yield();
  }
  void wake() {
    for (Fiber& fiber : fibers) {
      events += fiber.asleep;
      fiber.asleep = false;
    }
  }
  static void start();

  void prepare(int cluster_blocks, int threads, int shared_bytes) {
    blocks = std::vector<EmulatedBlock>(cluster_blocks);
    for (EmulatedBlock& block : blocks) {
      block.memory.resize(shared_bytes + 16);
      block.exchange.resize(threads);
      block.warps = std::vector<Barrier>(threads / kWarpSize);
      block.named = std::vector<Barrier>(16);
      for (Barrier& warp : block.warps) warp.expected = kWarpSize;
      block.barrier.expected = threads;
    }
    cluster.expected = cluster_blocks * threads;
    fibers = std::vector<Fiber>(cluster_blocks * threads);
    for (size_t k = 0; k < fibers.size(); ++k) {
      fibers[k].block = int(k) / threads, fibers[k].thread = int(k) % threads;
      fibers[k].stack.reset(new char[kStack]);
    }
  }

  void run(int first_block);
  bool advance(int first_block, Fiber* warp);
};
inline Machine machine;

inline int Barrier::arrive() {
  const int mine = generation;
  if (++arrived == expected) {
    arrived = 0;
    ++generation;
    ++machine.events;
  }
  return mine;
}
inline void Barrier::wait(int for_generation) {
  while (generation == for_generation) machine.yield();
}

inline void Machine::start() {
  machine.body();
  machine.now->done = true;
  ++machine.events;
  // A block that has left takes its memory along.
  EmulatedBlock& block = machine.block();
  if (++block.gone == block.barrier.expected)
    std::memset(block.memory.data(), 0xff, block.memory.size());
  _longjmp(machine.scheduler, 1);
}

inline void Machine::run(int first_block) {
  for (EmulatedBlock& block : blocks) {
    std::memset(block.memory.data(), 0xff, block.memory.size());
    block.gone = 0;
  }
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.started = fiber.done = fiber.asleep = false;
    makecontext(&fiber.context, &Machine::start, 0);
  }
  // A warp goes as far as it can before the next one starts, and so does a block: what it forgets
  // to wait for is not there yet, or there no more.
  const int count = int(blocks.size()), warps = int(fibers.size()) / kWarpSize / count;
  const auto place = [&](int turn, int of) { return forwards ? turn : of - 1 - turn; };
  const auto advance_block = [&](int block) {
    const int64_t before = events;
    for (int turn = 0; turn < warps; ++turn) {
      const int warp = block * warps + place(turn, warps);
      while (advance(first_block, &fibers[warp * kWarpSize])) continue;
    }
    return events != before;
  };
  for (int64_t before = -1; before != events;) {
    before = events;
    for (int turn = 0; turn < count; ++turn)
      while (advance_block(place(turn, count))) continue;
    if (before == events) wake();
  }
  for (const Fiber& fiber : fibers)
    if (!fiber.done) std::abort();  // a barrier that some never reach
}

// Returns whether a barrier opened, or a thread ended.
inline bool Machine::advance(int first_block, Fiber* warp) {
  const int64_t before = events;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    now = &warp[lane];
    if (now->done || now->asleep) continue;
    threadIdx.x = now->thread;
    blockIdx.x = first_block + now->block;
    resume();
  }
  return events != before;
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
