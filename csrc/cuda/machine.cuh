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

// Every lane gets join over the warp, by the same tree.
template <class Join>
__device__ float warp_join(float x, Join join) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x = join(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}

// 16 bytes from global to shared memory, past the registers; there after wait_for_copies().
__device__ inline void copy_16_bytes(void* shared, const void* global) {
  __pipeline_memcpy_async(shared, global, 16);
}
__device__ inline void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
}

// Nothing reads a gradient again soon.
__device__ inline void store_16_bytes(void* p, const void* x) {
  __stcs(static_cast<uint4*>(p), *static_cast<const uint4*>(x));
}

// The blocks of a cluster: before sm_90 each block is one of its own.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ inline int cluster_blocks() { return cooperative_groups::this_cluster().num_blocks(); }
__device__ inline int cluster_rank() { return cooperative_groups::this_cluster().block_rank(); }
__device__ inline void cluster_sync() { cooperative_groups::this_cluster().sync(); }
template <class T>
__device__ T of_block(T* mine, int rank) {
  return *cooperative_groups::this_cluster().map_shared_rank(mine, rank);
}
#else
__device__ inline int cluster_blocks() { return 1; }
__device__ inline int cluster_rank() { return 0; }
__device__ inline void cluster_sync() { __syncthreads(); }
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

// cluster: how many blocks, neighbours in x, share their memory; 1 for none.
template <class Arguments>
cudaError_t launch(void (*kernel)(Arguments), const Arguments& arguments, dim3 blocks, int cluster,
                   int threads, int shared_bytes, void* stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

}  // namespace rlkern
