// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, with RLKERN_ISA its name. A vector holds one step of as many
// segments as it has lanes: tiles of N steps of N segments are transposed on their way in and out.
// A lane whose segment has ended takes the next one, so segments may differ in length.
#include "cpu/scans.h"

#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/simd.h"

namespace rlkern {
namespace {

template <class T>
constexpr int kWidth = kLanes * 4 / int(sizeof(T));

template <class T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kLanes * 4)));
};
template <class T>
using Vector = typename VectorOf<T>::Type;

template <class V, class I, int... K>
RLKERN_INLINE V shuffled(V a, V b, std::integer_sequence<int, K...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, K...);
#else
  typedef I Index __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b, Index{K...});
#endif
}

// Elements FIRST, FIRST + 1, ... of a and b in turn.
template <class V, class I, int N, int FIRST, int... K>
RLKERN_INLINE V interleaved(V a, V b, std::integer_sequence<int, K...>) {
  return shuffled<V, I>(a, b, std::integer_sequence<int, (FIRST + K / 2 + (K % 2 ? N : 0))...>{});
}

template <class T, int N>
RLKERN_INLINE void transpose(const T (&from)[N][N], T (&to)[N][N]) {
  using V = Vector<T>;
  using I = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  constexpr auto lanes = std::make_integer_sequence<int, N>{};
  V a[N], b[N];
  for (int i = 0; i < N; ++i) std::memcpy(&a[i], from[i], sizeof(V));
#pragma GCC unroll 4
  for (int round = 1; round < N; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) {
      b[2 * i] = interleaved<V, I, N, 0>(a[i], a[i + N / 2], lanes);
      b[2 * i + 1] = interleaved<V, I, N, N / 2>(a[i], a[i + N / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) a[i] = b[i];
  }
  for (int i = 0; i < N; ++i) std::memcpy(to[i], &a[i], sizeof(V));
}

// The first n of at most a vector's elements, and `rest` for the others. (A memcpy of unknown size
// would be a call.)
template <class V, class T>
RLKERN_INLINE V load_row(const T* x, int n, T rest) {
  V v = V{} + rest;
  if (n * sizeof(T) == sizeof(V)) {
    std::memcpy(&v, x, sizeof(V));
  } else {
    T row[sizeof(V) / sizeof(T)];
    std::memcpy(row, &v, sizeof(V));
    for (int i = 0; i < n; ++i) row[i] = x[i];
    std::memcpy(&v, row, sizeof(V));
  }
  return v;
}

// `past`: full lines go past the caches, where they are more than the caches hold.
template <class V, class T>
RLKERN_INLINE void store_row(T* x, V v, int n, [[maybe_unused]] bool past) {
  if (n * sizeof(T) == sizeof(V)) {
#if defined(__AVX512F__)
    if (past && reinterpret_cast<uintptr_t>(x) % 64 == 0) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(x), (__m512i)v);
      return;
    }
#endif
    std::memcpy(x, &v, sizeof(V));
  } else {
    for (int i = 0; i < n; ++i) x[i] = v[i];
  }
}

// 1 where the mask is True, 0 elsewhere. (The compiler would convert the bytes one by one.)
RLKERN_INLINE Vector<float> to_numbers(const uint8_t* bytes, float) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)bytes)));
#elif defined(__AVX2__)
  return (Vector<float>)_mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)bytes)));
#else
  return Vector<float>{float(bytes[0]), float(bytes[1]), float(bytes[2]), float(bytes[3])};
#endif
}

RLKERN_INLINE Vector<double> to_numbers(const uint8_t* bytes, double) {
  Vector<double> v = {};
  for (int i = 0; i < kWidth<double>; ++i) v[i] = bytes[i];
  return v;
}

template <class T>
RLKERN_INLINE Vector<T> load_mask(const bool* mask, int n) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(mask);
  if (n == kWidth<T>) return to_numbers(bytes, T{});
  uint8_t row[kWidth<T>] = {};
  for (int i = 0; i < n; ++i) row[i] = bytes[i];
  return to_numbers(row, T{});
}

// The steps below are written once for vectors and for numbers, so that both round alike.

template <class T, bool ENDS>
struct Scan {
  static constexpr int kInputs = 2, kStates = 2;
  static constexpr bool kWrites = !ENDS;
  const ScanRows<T>& rows;

  void start(const Segment<T>& segment, T* state, int stride) const {
    state[0] = segment.state[0];
    state[stride] = 1;
  }
  // Steps that are not there leave the state as it is.
  inline __attribute__((always_inline)) void load(int64_t at, int n, T* in, int stride) const {
    using V = Vector<T>;
    const V bias = load_row<V>(rows.bias + at, n, T(0)),
            decay = load_row<V>(rows.decay + at, n, T(1));
    std::memcpy(in, &bias, sizeof(V));
    std::memcpy(in + stride, &decay, sizeof(V));
  }
  void get(int64_t t, T* in) const { in[0] = rows.bias[t], in[1] = rows.decay[t]; }
  void put(int64_t t, T x, const T*) const { rows.x[t] = x; }
  template <class V>
  inline __attribute__((always_inline)) V step(const V* in, V* state) const {
    const V bias = in[0], decay = in[1];
    // A decay of 0 cuts the recurrence, also from values that are not finite.
    state[0] = decay == V{} ? bias : bias + decay * state[0];
    if (ENDS) state[1] = decay * state[1];
    return state[0];
  }
  inline __attribute__((always_inline)) void store(int64_t at, int n, const T* x, const T*,
                                                   int) const {
    store_row(rows.x + at, load_row<Vector<T>>(x, kWidth<T>, T(0)), n, rows.past);
  }
  void prefetch(int64_t at) const {
    __builtin_prefetch(rows.bias + at);
    __builtin_prefetch(rows.decay + at);
  }
};

template <class T, bool ENDS>
struct Gae {
  static constexpr int kInputs = 3, kStates = 4;
  static constexpr bool kWrites = !ENDS;
  const GaeRows<T>& rows;

  void start(const Segment<T>& segment, T* state, int stride) const {
    const double discount = rows.discount[segment.sequence];
    state[0] = segment.state[0];
    state[stride] = segment.state[1];
    state[2 * stride] = T(discount);
    state[3 * stride] = T(discount * rows.gae_lambda[segment.sequence]);
  }
  inline __attribute__((always_inline)) void load(int64_t at, int n, T* in, int stride) const {
    using V = Vector<T>;
    const V reward = load_row<V>(rows.reward + at, n, T(0));
    const V value = load_row<V>(rows.value + at, n, T(0));
    const V mask = load_mask<T>(rows.mask + at, n);
    std::memcpy(in, &reward, sizeof(V));
    std::memcpy(in + stride, &value, sizeof(V));
    std::memcpy(in + 2 * stride, &mask, sizeof(V));
  }
  void get(int64_t t, T* in) const {
    in[0] = rows.reward[t], in[1] = rows.value[t], in[2] = T(rows.mask[t]);
  }
  void put(int64_t t, T advantage, const T* in) const {
    rows.advantage[t] = in[2] != 0 ? advantage : T(0);
    rows.target[t] = in[2] != 0 ? advantage + in[1] : T(0);
  }
  template <class V>
  inline __attribute__((always_inline)) V step(const V* in, V* state) const {
    const V reward = in[0], value = in[1], discount = state[2], decay = state[3];
    const V delta = reward + discount * state[1] - value;
    const V advantage = decay == V{} ? delta : delta + decay * state[0];
    state[0] = in[2] != V{} ? advantage : state[0];
    state[1] = in[2] != V{} ? value : state[1];
    return advantage;
  }
  inline __attribute__((always_inline)) void store(int64_t at, int n, const T* advantage,
                                                   const T* in, int stride) const {
    using V = Vector<T>;
    V x, value, mask;
    std::memcpy(&x, advantage, sizeof(V));
    std::memcpy(&value, in + stride, sizeof(V));
    std::memcpy(&mask, in + 2 * stride, sizeof(V));
    store_row(rows.advantage + at, mask != V{} ? x : V{}, n, rows.past);
    store_row(rows.target + at, mask != V{} ? x + value : V{}, n, rows.past);
  }
  void prefetch(int64_t at) const {
    __builtin_prefetch(rows.reward + at);
    __builtin_prefetch(rows.value + at);
  }
};

template <class T>
void finish(Segment<T>& segment, const T* state, int stride) {
  segment.state[0] = state[0];
  segment.state[1] = state[stride];
}

// Step by step: for segments that would fill little of a tile.
template <class T, class Op>
__attribute__((noinline)) void sweep_one(const Op& op, Segment<T>& segment) {
  T state[Op::kStates];
  op.start(segment, state, 1);
  for (int64_t t = segment.begin + segment.length - 1; t >= segment.begin; --t) {
    T step[Op::kInputs];
    op.get(t, step);
    const T x = op.step(step, state);
    if (Op::kWrites) op.put(t, x, step);
  }
  finish(segment, state, 1);
}

template <class T, class Op>
void sweep_many(const Op& op, Segment<T>* segments, int64_t count) {
  constexpr int N = kWidth<T>, kAhead = 8 * N, kStaggered = 32 * N;
  using V = Vector<T>;
  alignas(64) T in[Op::kInputs][N][N], steps[Op::kInputs][N][N], out[N][N], state[Op::kStates][N];
  Segment<T>* lane[N] = {};
  int64_t left[N] = {}, at[N] = {}, next = 0;
  int size[N] = {}, wait[N] = {};
  std::memset(state, 0, sizeof(state));
  std::memset(in, 0, sizeof(in));
  // Rows are often a power of two apart: in step, all lanes would want the same few places of the
  // caches.
  for (int k = 0; k < N && count && segments[0].length >= kStaggered; ++k) wait[k] = k;
  for (;;) {
    bool idle = true;
    for (int k = 0; k < N; ++k) {
      if (wait[k] > 0) {
        --wait[k];
        idle = false;
        continue;
      }
      if (left[k] == 0) {
        if (lane[k]) finish(*lane[k], &state[0][k], N);
        lane[k] = nullptr;
        for (; next < count && segments[next].length < N; ++next) {
          sweep_one<T>(op, segments[next]);
        }
        if (next < count) {
          lane[k] = &segments[next++];
          left[k] = lane[k]->length;
          op.start(*lane[k], &state[0][k], N);
        }
      }
      size[k] = left[k] ? int((left[k] - 1) % N) + 1 : 0;
      left[k] -= size[k];
      if (!size[k]) continue;
      idle = false;
      at[k] = lane[k]->begin + left[k];
      if (left[k] >= kAhead) op.prefetch(at[k] - kAhead);
      if (size[k] == N) {
        op.load(at[k], N, &in[0][k][0], N * N);
      } else {
        op.load(at[k], size[k], &in[0][k][0], N * N);
      }
    }
    if (idle) return;
    for (int i = 0; i < Op::kInputs; ++i) transpose<T, N>(in[i], steps[i]);
    V carried[Op::kStates];
    std::memcpy(carried, state, sizeof(state));
    for (int t = N - 1; t >= 0; --t) {
      V step[Op::kInputs];
      for (int i = 0; i < Op::kInputs; ++i) std::memcpy(&step[i], steps[i][t], sizeof(V));
      const V x = op.step(step, carried);
      std::memcpy(out[t], &x, sizeof(V));
    }
    std::memcpy(state, carried, sizeof(state));
    if (!Op::kWrites) continue;
    transpose<T, N>(out, out);
    for (int k = 0; k < N; ++k) {
      if (size[k] == N) {
        op.store(at[k], N, out[k], &in[0][k][0], N * N);
      } else {
        op.store(at[k], size[k], out[k], &in[0][k][0], N * N);
      }
    }
  }
}

template <class T, class Op>
void sweep(const Op& op, Segment<T>* segments, int64_t count) {
  if (count >= kWidth<T> / 4) return sweep_many<T>(op, segments, count);
  for (int64_t i = 0; i < count; ++i) sweep_one<T>(op, segments[i]);
}

template <class T, bool ENDS>
void reverse_scan(const ScanRows<T>& rows, Segment<T>* segments, int64_t count) {
  sweep<T>(Scan<T, ENDS>{rows}, segments, count);
}

template <class T, bool ENDS>
void gae(const GaeRows<T>& rows, Segment<T>* segments, int64_t count) {
  sweep<T>(Gae<T, ENDS>{rows}, segments, count);
}

}  // namespace

#define RLKERN_JOIN(a, b) a##b
#define RLKERN_SCANS_SYMBOL(name) RLKERN_JOIN(scans_, name)
#define RLKERN_QUOTE(x) #x
#define RLKERN_STRING(x) RLKERN_QUOTE(x)

extern const ScanIsa RLKERN_SCANS_SYMBOL(RLKERN_ISA);
const ScanIsa RLKERN_SCANS_SYMBOL(RLKERN_ISA) = {
    RLKERN_STRING(RLKERN_ISA),
    {reverse_scan<float, false>, reverse_scan<float, true>, gae<float, false>, gae<float, true>},
    {reverse_scan<double, false>, reverse_scan<double, true>, gae<double, false>,
     gae<double, true>},
};

}  // namespace rlkern
