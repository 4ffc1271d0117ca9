// SPDX-License-Identifier: Apache-2.0
// What the kernels ask of the hardware; nothing else here is particular to it. A header of the same
// name in tests/cuda_emulator runs the same kernels on a CPU.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <mutex>
#include <set>
#include <utility>

namespace rlkern {

constexpr bool kEmulated = false;
using bfloat16 = __nv_bfloat16;
using float16 = __half;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(float16 x) { return __half2float(x); }
__device__ inline void put(float* p, float x) { *p = x; }
__device__ inline void put(bfloat16* p, float x) { *p = __float2bfloat16_rn(x); }
__device__ inline void put(float16* p, float x) { *p = __float2half_rn(x); }

// The block's dynamic shared memory.
__device__ inline char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// exp2 in one instruction; what is below the normal numbers becomes 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The larger; NaN if either is, which fmaxf would hide.
__device__ inline float larger(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// Elements that share a register, as many as one instruction treats.
template <class S>
struct PackOf;
template <>
struct PackOf<float> {
  using Type = float;
};
template <>
struct PackOf<bfloat16> {
  using Type = __nv_bfloat162;
};
template <>
struct PackOf<float16> {
  using Type = __half2;
};
__device__ inline void unpack(float pack, float* x) { x[0] = pack; }
// One instruction each; what the library's functions become takes three for both.
__device__ inline void unpack(__nv_bfloat162 pack, float* x) {
  uint32_t bits;
  memcpy(&bits, &pack, sizeof bits);
  x[0] = __uint_as_float(bits << 16), x[1] = __uint_as_float(bits & 0xffff0000);
}
__device__ inline void unpack(__half2 pack, float* x) {
  x[0] = __low2float(pack), x[1] = __high2float(pack);
}
__device__ inline void pack(const float* x, float* pack) { *pack = x[0]; }
__device__ inline void pack(const float* x, __nv_bfloat162* pack) {
  *pack = __floats2bfloat162_rn(x[0], x[1]);
}
__device__ inline void pack(const float* x, __half2* pack) {
  *pack = __floats2half2_rn(x[0], x[1]);
}
__device__ inline __nv_bfloat162 larger(__nv_bfloat162 a, __nv_bfloat162 b) {
  return __hmax2_nan(a, b);
}
__device__ inline __half2 larger(__half2 a, __half2 b) { return __hmax2_nan(a, b); }

// The low half of (high, low) after a shift to the right by less than 32 bits.
__device__ inline uint32_t shifted_right(uint32_t low, uint32_t high, int bits) {
  return __funnelshift_r(low, high, bits);
}

// The greatest power of 2 that is not greater than a normal number above 0.
__device__ inline float power_of_2_below(float x) {
  return __uint_as_float(__float_as_uint(x) & 0x7f800000);
}

// Every lane gets join over the warp, by the same tree.
template <class Join>
__device__ float warp_join(float x, Join join) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = join(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}

// 16 bytes from global to shared memory, past the registers; there for the thread that asked after
// wait_for_copies(), for the others after a barrier more.
__device__ inline void copy_16_bytes(void* shared, const void* global) {
  __pipeline_memcpy_async(shared, global, 16);
}
__device__ inline void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

// One of a block's barriers, 0 to 15, for as many of its threads as meet there: whole warps.
template <int BARRIER>
__device__ void sync_threads(int threads) {
  asm volatile("bar.sync %0, %1;" ::"n"(BARRIER), "r"(threads) : "memory");
}

// Nothing reads a gradient again soon.
__device__ inline void store_16_bytes(void* p, const void* x) {
  __stcs(static_cast<uint4*>(p), *static_cast<const uint4*>(x));
}
__device__ inline void load_16_bytes(void* x, const void* p) {
  *static_cast<uint4*>(x) = *static_cast<const uint4*>(p);
}

// The blocks of a cluster: before sm_90 each block is one of its own. After cluster_wait() a thread
// sees what others have written before cluster_arrive(). The relaxed one waits for no memory: it is
// for threads that have written nothing for other blocks, and used all that they have read of them.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
template <class T>
__device__ T of_block(T* mine, int rank) {
  return *cooperative_groups::this_cluster().map_shared_rank(mine, rank);
}
#else
__device__ inline void cluster_arrive() {}
__device__ inline void cluster_arrive_relaxed() {}
__device__ inline void cluster_wait() { __syncthreads(); }
template <class T>
__device__ T of_block(T* mine, int) {
  return *mine;
}
#endif

// What a device has.
struct Device {
  int major, shared_bytes;
};

inline cudaError_t open_device(int64_t index, Device* device) {
  cudaError_t error = cudaSetDevice(int(index));
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&device->major, cudaDevAttrComputeCapabilityMajor, int(index));
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                   int(index));
  return error;
}

// Lets a kernel have as much shared memory as a block can get, the first time on each device.
template <class... Arguments>
cudaError_t allow_shared_memory(void (*kernel)(Arguments...)) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int index, most;
  cudaError_t error = cudaGetDevice(&index);
  if (error != cudaSuccess) return error;
  const void* const address = reinterpret_cast<const void*>(kernel);
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({address, index})) return cudaSuccess;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(address, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
  if (error == cudaSuccess) allowed.insert({address, index});
  return error;
}

// How a kernel is launched. cluster: how many blocks, neighbours in x, share their memory; 1 for
// none.
struct Launch {
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t config = {};

  Launch(dim3 blocks, int cluster, int threads, int shared_bytes, void* stream) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {unsigned(cluster), 1, 1};
    config.gridDim = blocks;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute;
    config.numAttrs = cluster > 1;
  }
};

template <class... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), dim3 blocks, int cluster, int threads,
                   int shared_bytes, void* stream, const Arguments&... arguments) {
  const cudaError_t error = allow_shared_memory(kernel);
  if (error != cudaSuccess) return error;
  const Launch shape(blocks, cluster, threads, shared_bytes, stream);
  return cudaLaunchKernelEx(&shape.config, kernel, arguments...);
}

// How many clusters of a kernel the device can run at a time.
template <class... Arguments>
cudaError_t resident_clusters(void (*kernel)(Arguments...), int cluster, int threads,
                              int shared_bytes, int* clusters) {
  const cudaError_t error = allow_shared_memory(kernel);
  if (error != cudaSuccess) return error;
  Launch shape(dim3(cluster), cluster, threads, shared_bytes, nullptr);
  shape.config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(clusters, kernel, &shape.config);
}

}  // namespace rlkern
