// SPDX-License-Identifier: Apache-2.0
// The threads of a cluster as fibers, and the barriers that switch between them.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace rlkern {

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

}  // namespace rlkern
