// SPDX-License-Identifier: Apache-2.0
// What a pipeline asks of sm_90: barriers that threads pass at their own pace, and copies that come
// to them. As of machine.cuh, the emulator has its own.
#pragma once

#include "cuda/machine.cuh"

namespace rlkern {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kHasSignals = true;
#else
constexpr bool kHasSignals = false;
#endif

// Where threads of a block wait for a turn to end: until as many have given the signal as it was
// opened for, and all bytes that they announced have come. The turns of a signal count from 0. What
// was written before a signal is seen after it.
struct Signal {
  uint64_t state;
};
__device__ inline unsigned shared_address(const void* p) {
  return unsigned(__cvta_generic_to_shared(p));
}
__device__ inline void open_signal(Signal* signal, int threads) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(signal)), "r"(threads)
               : "memory");
}
// For who has opened signals, before the cluster meets.
__device__ inline void show_signals() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void give_signal(Signal* signal) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(signal)) : "memory");
}
// For who gives the signal later in this turn.
__device__ inline void expect_bytes(Signal* signal, int bytes) {
  asm volatile(
      "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(signal)),
      "r"(bytes)
      : "memory");
}
__device__ inline void wait_for_turn(Signal* signal, unsigned turn) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@ended bra done;\n"
      "bra again;\n"
      "done:\n"
      "}" ::"r"(shared_address(signal)),
      "r"(turn % 2)
      : "memory");
}
// Copies a multiple of 16 bytes, to which all addresses are aligned, from global to shared memory;
// they come to a signal of this block. The fence stands between what threads did to the shared
// memory, and the copy.
__device__ inline void fence_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void copy_bytes(void* shared, const void* global, int bytes, Signal* signal) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(signal))
      : "memory");
}
// Writes 16 bytes to another block of the cluster, at the place that they have here; they come to
// that block's signal.
template <class T>
__device__ void send_to_block(T* mine, Signal* signal, int rank, const T& x) {
  static_assert(sizeof(T) == 16, "");
  uint32_t words[4], to, signal_there;
  memcpy(words, &x, 16);
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(mine)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(signal_there)
      : "r"(shared_address(signal)), "r"(rank));
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, "
      "[%5];" ::"r"(to),
      "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(signal_there)
      : "memory");
}

}  // namespace rlkern
