// SPDX-License-Identifier: Apache-2.0
// What the library says of itself, and the factor of a loss that its gradient must still get.
#include "cuda/launch.cuh"
#include "cuda/slice.cuh"

namespace rlkern {

// Columns that a block treats at a time, and the most blocks: enough for every multiprocessor, and
// few where a factor of 1 lets them do nothing.
constexpr int kPiece = 16 * kThreads, kMostScaling = 2048;

RLKERN_HD int64_t pieces_of(const Grid& x) { return (x.vocab + kPiece - 1) / kPiece; }

// Blocks take turns at pieces of rows.
// - reads the factor, and the rows unless the factor is exactly 1
// - writes the rows unless the factor is exactly 1
// - never materialises a copy
template <class S>
__global__ void __launch_bounds__(kThreads) scale_kernel(const Scale p) {
  const float factor = *p.factor;
  if (factor == 1) return;
  const auto value = [&](float x) { return x * factor; };
  const int64_t pieces = pieces_of(p.x), all = p.x.rows * pieces;
  for (int64_t piece = blockIdx.x; piece < all; piece += gridDim.x) {
    const int64_t i = piece / pieces, begin = (piece - i * pieces) * kPiece;
    S* const x = row_of<S>(p.x, Place(p.x, unsigned(i))) + begin;
    const Peel<S> peel(x, begin + kPiece < p.x.vocab ? kPiece : int(p.x.vocab - begin));
#pragma unroll 2
    for (int g = threadIdx.x; g < peel.groups; g += kThreads) {
      Group<S> group;
      load_16_bytes(&group, x + peel.group(g));
      group = group.mapped(value);
      store_16_bytes(x + peel.group(g), &group);
    }
    if (int(threadIdx.x) >= peel.scalars) continue;
    S* const one = x + peel.scalar(threadIdx.x);
    put(one, value(to_float(*one)));
  }
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
    const int64_t all = p->x.rows * pieces_of(p->x);
    const dim3 blocks(unsigned(all < kMostScaling ? all : kMostScaling));
    return int(launch(scale_kernel<S>, blocks, 1, kThreads, 0, p->stream, *p));
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
  out[0] = 1 << shape.log_blocks, out[1] = rlkern::kThreads, out[2] = shape.shared_bytes;
}

// The size of each struct of arguments.h, which Python repeats.
extern "C" void rlkern_cuda_sizes(int64_t* out) {
  out[0] = sizeof(rlkern::PolicyLoss), out[1] = sizeof(rlkern::TokenLogprob);
  out[2] = sizeof(rlkern::TokenLogprobBackward), out[3] = sizeof(rlkern::Scale);
}
