// SPDX-License-Identifier: Apache-2.0
// What the library says of itself, and the factor of a loss that its gradient must still get.
#include "cuda/launch.cuh"

namespace rlkern {

// A column of blocks per row.
// - reads the factor, and the row unless the factor is exactly 1
// - writes the row unless the factor is exactly 1
// - never materialises a copy
template <class S>
__global__ void scale_kernel(const Scale p) {
  const float factor = *p.factor;
  if (factor == 1) return;
  const int64_t i = blockIdx.x, stride = int64_t(gridDim.y) * blockDim.x;
  S* row = static_cast<S*>(p.x.data) + (i / p.x.time) * p.x.stride_batch +
           (i % p.x.time) * p.x.stride_time;
  for (int64_t j = int64_t(blockIdx.y) * blockDim.x + threadIdx.x; j < p.x.vocab; j += stride)
    put(&row[j], to_float(row[j]) * factor);
}

}  // namespace rlkern

extern "C" int rlkern_cuda_scale(const rlkern::Scale* p) {
  using namespace rlkern;
  if (p->x.rows == 0 || p->x.vocab == 0) return 0;
  if (p->x.rows > kMostInGrid) return kTooManyRows;
  Device device;
  if (const int error = open_device(p->device, &device)) return error;
  return with_dtype(p->x.dtype, [&](auto type) {
    using S = typename decltype(type)::Element;
    const int64_t columns = (p->x.vocab + 4 * kMostThreads - 1) / (4 * kMostThreads);
    const dim3 blocks(unsigned(p->x.rows), unsigned(columns < 1024 ? columns : 1024));
    return int(launch(scale_kernel<S>, *p, blocks, 1, kMostThreads, 0, p->stream));
  });
}

// Whether these kernels run on a CPU, to be tested.
extern "C" int rlkern_cuda_emulated() { return rlkern::kEmulated; }

// The first number of the compute capability, or an error as a negative number.
extern "C" int rlkern_cuda_major(int64_t index) {
  rlkern::Device device;
  const int error = rlkern::open_device(index, &device);
  return error ? -error : device.major;
}

extern "C" const char* rlkern_cuda_error(int error) {
  if (error == rlkern::kRowTooLong) return "a row does not fit the shared memory of this GPU";
  if (error == rlkern::kUnknownDtype) return "unknown dtype";
  if (error == rlkern::kTooManyRows) return "more rows than a grid can hold";
  return cudaGetErrorString(cudaError_t(error));
}

// (blocks per row, threads per block, shared memory per block in bytes)
extern "C" void rlkern_cuda_shape(int64_t vocab, int64_t element_size, int clusters, int64_t* out) {
  const auto shape = rlkern::shape_of(int(vocab), int(element_size), clusters);
  out[0] = shape.blocks, out[1] = shape.threads, out[2] = shape.shared_bytes;
}

// The size of each struct of arguments.h, which Python repeats.
extern "C" void rlkern_cuda_sizes(int64_t* out) {
  out[0] = sizeof(rlkern::PolicyLoss), out[1] = sizeof(rlkern::TokenLogprob);
  out[2] = sizeof(rlkern::TokenLogprobBackward), out[3] = sizeof(rlkern::Scale);
}
