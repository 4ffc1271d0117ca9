// SPDX-License-Identifier: Apache-2.0
// The signals of csrc/cuda/signals.cuh among fibers.
#pragma once

#include "cuda/machine.cuh"

namespace rlkern {

// Lies in the kernel's shared memory, and is as large as the GPU's.
struct Signal {
  uint8_t expected, arrived;
  uint16_t turn;
  int32_t bytes;  // announced, less those on their way

  void end();
};
static_assert(sizeof(Signal) == 8, "");

// Bytes on their way to a signal; sent ones have left their place.
struct Delivery {
  Signal* signal;
  char* to;
  const char* from;
  int bytes;
  std::vector<char> sent;
};
inline std::vector<Delivery> deliveries;

// As the copies, what comes to a signal comes as late as it may; until then its place is spoilt.
constexpr bool kHasSignals = true;
inline void open_signal(Signal* signal, int threads) {
  if (!deliveries.empty()) std::abort();  // nobody has waited for them
  *signal = {uint8_t(threads), 0, 0, 0};
}
inline void show_signals() {}
inline void expect_bytes(Signal* signal, int bytes) { signal->bytes += bytes; }
inline void give_signal(Signal* signal) {
  if (signal->arrived == signal->expected) std::abort();
  ++signal->arrived;
  ++machine.events;
  machine.sleep();
}
inline void Signal::end() {
  if (arrived < expected || bytes != 0) return;
  std::vector<Delivery> others;
  for (Delivery& one : deliveries) {
    if (one.signal != this)
      others.push_back(std::move(one));
    else
      std::memcpy(one.to, one.from ? one.from : one.sent.data(), one.bytes);
  }
  deliveries = std::move(others);
  arrived = 0;
  ++turn;
  ++machine.events;
}
inline void wait_for_turn(Signal* signal, unsigned turn) {
  for (;;) {
    if (signal->turn == uint16_t(turn)) signal->end();
    if (signal->turn == uint16_t(turn + 1)) return;
    if (signal->turn != uint16_t(turn)) std::abort();  // a GPU tells odd from even ones
    machine.yield();
  }
}
inline void deliver(Delivery delivery) {
  delivery.signal->bytes -= delivery.bytes;
  std::memset(delivery.to, 0xff, delivery.bytes);
  deliveries.push_back(std::move(delivery));
}
inline void fence_copies() {}
inline void copy_bytes(void* shared, const void* global, int bytes, Signal* signal) {
  const auto address = reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global);
  if ((address | bytes) % 16) std::abort();
  machine.read += bytes;
  deliver({signal, static_cast<char*>(shared), static_cast<const char*>(global), bytes, {}});
}
template <class T>
void send_to_block(T* mine, Signal* signal, int rank, const T& x) {
  static_assert(sizeof(T) == 16, "");
  const char* const bytes = reinterpret_cast<const char*>(&x);
  char* const to = reinterpret_cast<char*>(at_block(mine, rank));
  deliver({at_block(signal, rank), to, nullptr, 16, {bytes, bytes + 16}});
}

}  // namespace rlkern
