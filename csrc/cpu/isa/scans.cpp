// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, RLKERN_ISA. A vector holds one step of as many segments as it
// has lanes: tiles of N steps of N segments are transposed on their way in and out. A lane whose
// segment has ended takes the next one, so segments may differ in length.
#include "cpu/isa.h"
#include "cpu/isa/tiles.h"

namespace rlkern::RLKERN_ISA {
namespace {

// What a sweep leaves: its results, or only what its segments' first steps hand on.
enum class Pass { results, ends };

// The steps below are written once for vectors and for numbers, so that both round alike.

template <class T, Pass pass>
struct Scan {
  static constexpr int kInputs = 2, kStates = 2;
  static constexpr bool kWrites = pass == Pass::results;
  const ScanRows<T>& rows;

  void start(const Segment<T>& segment, T* state, int stride) const {
    state[0] = segment.state[0];
    state[stride] = 1;
  }
  // Steps that are not there leave the state as it is.
  template <class Count>
  RLKERN_INLINE_MEMBER void read(int64_t at, Count n, T* in, int stride) const {
    store(in, load_row(rows.bias + at, n, T(0)));
    store(in + stride, load_row(rows.decay + at, n, T(1)));
  }
  void get(int64_t t, T* in) const { in[0] = rows.bias[t], in[1] = rows.decay[t]; }
  void put(int64_t t, T x, const T*) const { rows.x[t] = x; }
  template <class V>
  RLKERN_INLINE_MEMBER V step(const V* in, V* state) const {
    const V bias = in[0], decay = in[1];
    // A decay of 0 cuts the recurrence, also from values that are not finite.
    state[0] = decay == V{} ? bias : bias + decay * state[0];
    if (pass == Pass::ends) state[1] = decay * state[1];
    return state[0];
  }
  template <class Count>
  RLKERN_INLINE_MEMBER void write(int64_t at, Count n, const T* x, const T*, int) const {
    store_row(rows.x + at, load(x), n, rows.past);
  }
  void prefetch(int64_t at) const {
    __builtin_prefetch(rows.bias + at);
    __builtin_prefetch(rows.decay + at);
  }
};

template <class T, Pass pass>
struct Gae {
  static constexpr int kInputs = 3, kStates = 4;
  static constexpr bool kWrites = pass == Pass::results;
  const GaeRows<T>& rows;

  void start(const Segment<T>& segment, T* state, int stride) const {
    const double discount = rows.discount[segment.sequence];
    state[0] = segment.state[0];
    state[stride] = segment.state[1];
    state[2 * stride] = T(discount);
    state[3 * stride] = T(discount * rows.gae_lambda[segment.sequence]);
  }
  template <class Count>
  RLKERN_INLINE_MEMBER void read(int64_t at, Count n, T* in, int stride) const {
    store(in, load_row(rows.reward + at, n, T(0)));
    store(in + stride, load_row(rows.value + at, n, T(0)));
    store(in + 2 * stride, load_mask<T>(rows.mask + at, n));
  }
  void get(int64_t t, T* in) const {
    in[0] = rows.reward[t], in[1] = rows.value[t], in[2] = T(rows.mask[t]);
  }
  void put(int64_t t, T advantage, const T* in) const {
    rows.advantage[t] = in[2] != 0 ? advantage : T(0);
    rows.target[t] = in[2] != 0 ? advantage + in[1] : T(0);
  }
  template <class V>
  RLKERN_INLINE_MEMBER V step(const V* in, V* state) const {
    const V reward = in[0], value = in[1], discount = state[2], decay = state[3];
    const V delta = reward + discount * state[1] - value;
    const V advantage = decay == V{} ? delta : delta + decay * state[0];
    state[0] = in[2] != V{} ? advantage : state[0];
    state[1] = in[2] != V{} ? value : state[1];
    return advantage;
  }
  template <class Count>
  RLKERN_INLINE_MEMBER void write(int64_t at, Count n, const T* advantage, const T* in,
                                  int stride) const {
    using V = Vector<T>;
    const V x = load(advantage), value = load(in + stride), mask = load(in + 2 * stride);
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

// Which steps of which segment each lane takes next.
template <class T, class Op>
struct Lanes {
  static constexpr int N = kWidth<T>, kAhead = 8 * N, kStaggered = 32 * N;
  const Op& op;
  Segment<T>*next, *end;
  Segment<T>* lane[N] = {};
  int64_t left[N] = {}, at[N] = {};
  int size[N] = {}, wait[N] = {};
  alignas(64) T state[Op::kStates][N] = {};

  Lanes(const Op& op, Segment<T>* segments, int64_t count)
      : op(op), next(segments), end(segments + count) {
    // Rows are often a power of two apart: in step, all lanes would want the same few places of
    // the caches.
    for (int k = 0; k < N && count && segments[0].length >= kStaggered; ++k) wait[k] = k;
  }

  // Gives a lane its next segment, if there is one.
  RLKERN_INLINE_MEMBER void refill(int k) {
    if (lane[k]) finish(*lane[k], &state[0][k], N);
    lane[k] = nullptr;
    for (; next < end && next->length < N; ++next) sweep_one<T>(op, *next);
    if (next == end) return;
    lane[k] = next++;
    left[k] = lane[k]->length;
    op.start(*lane[k], &state[0][k], N);
  }

  // Moves a lane to its next row of steps; returns whether it is still at work.
  RLKERN_INLINE_MEMBER bool advance(int k) {
    if (wait[k] > 0) {
      --wait[k];
      return true;
    }
    if (left[k] == 0) refill(k);
    size[k] = left[k] ? int((left[k] - 1) % N) + 1 : 0;
    left[k] -= size[k];
    if (!size[k]) return false;
    at[k] = lane[k]->begin + left[k];
    if (left[k] >= kAhead) op.prefetch(at[k] - kAhead);
    return true;
  }
};

template <class T, class Op>
void sweep_many(const Op& op, Segment<T>* segments, int64_t count) {
  constexpr int N = kWidth<T>;
  using V = Vector<T>;
  alignas(64) T in[Op::kInputs][N][N] = {}, steps[Op::kInputs][N][N], out[N][N];
  Lanes<T, Op> lanes(op, segments, count);
  for (;;) {
    bool idle = true;
    for (int k = 0; k < N; ++k) {
      if (!lanes.advance(k)) continue;
      idle = false;
      if (!lanes.size[k]) continue;
      with_count<T>(lanes.size[k], [&](auto n) { op.read(lanes.at[k], n, &in[0][k][0], N * N); });
    }
    if (idle) return;
    for (int i = 0; i < Op::kInputs; ++i) transpose<T, N>(in[i], steps[i]);
    V carried[Op::kStates];
    for (int i = 0; i < Op::kStates; ++i) carried[i] = load(lanes.state[i]);
    for (int t = N - 1; t >= 0; --t) {
      V step[Op::kInputs];
      for (int i = 0; i < Op::kInputs; ++i) step[i] = load(steps[i][t]);
      store(out[t], op.step(step, carried));
    }
    for (int i = 0; i < Op::kStates; ++i) store(lanes.state[i], carried[i]);
    if (!Op::kWrites) continue;
    transpose<T, N>(out, out);
    for (int k = 0; k < N; ++k) {
      with_count<T>(lanes.size[k],
                    [&](auto n) { op.write(lanes.at[k], n, out[k], &in[0][k][0], N * N); });
    }
  }
}

template <class T, class Op>
void sweep(const Op& op, Segment<T>* segments, int64_t count) {
  if (count >= kWidth<T> / 4) return sweep_many<T>(op, segments, count);
  for (int64_t i = 0; i < count; ++i) sweep_one<T>(op, segments[i]);
}

template <class T, Pass pass>
void reverse_scan(const ScanRows<T>& rows, Segment<T>* segments, int64_t count) {
  sweep<T>(Scan<T, pass>{rows}, segments, count);
}

template <class T, Pass pass>
void gae(const GaeRows<T>& rows, Segment<T>* segments, int64_t count) {
  sweep<T>(Gae<T, pass>{rows}, segments, count);
}

template <class T>
constexpr ScanKernels<T> kernels() {
  return {reverse_scan<T, Pass::results>, reverse_scan<T, Pass::ends>, gae<T, Pass::results>,
          gae<T, Pass::ends>};
}

}  // namespace

const PerType<ScanKernels> scan_kernels = {kernels<float>(), kernels<double>()};

}  // namespace rlkern::RLKERN_ISA
