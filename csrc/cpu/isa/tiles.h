// SPDX-License-Identifier: Apache-2.0
// Tiles of N rows of N elements: transposed in registers, and rows of fewer elements in memory.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/isa/simd.h"

namespace rlkern::RLKERN_ISA {

template <class V, class I, int... K>
RLKERN_INLINE V shuffled(V a, V b, std::integer_sequence<int, K...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, K...);
#else
  return __builtin_shuffle(a, b, Vector<I>{K...});
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
  for (int i = 0; i < N; ++i) a[i] = load(from[i]);
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
  for (int i = 0; i < N; ++i) store(to[i], a[i]);
}

// How many elements of a row there are: all that a vector holds, known to the compiler, or fewer.
template <class T>
using Whole = std::integral_constant<int, kWidth<T>>;

template <class T, class Count>
constexpr bool kIsWhole = std::is_same_v<Count, Whole<T>>;

// Calls with Whole or with the number itself: what knows that a row is whole moves it as one
// vector, without a branch on its length.
template <class T, class Call>
RLKERN_INLINE void with_count(int n, const Call& call) {
  if (n == kWidth<T>) {
    call(Whole<T>{});
  } else {
    call(n);
  }
}

// The first n elements, and `rest` for the others. (A memcpy of unknown size would be a call.)
template <class T, class Count>
RLKERN_INLINE Vector<T> load_row(const T* x, Count n, T rest) {
  if constexpr (kIsWhole<T, Count>) {
    return load(x);
  } else {
    T row[kWidth<T>];
    store(row, splat(rest));
    for (int i = 0; i < n; ++i) row[i] = x[i];
    return load(row);
  }
}

// `past`: full lines go past the caches, where they are more than the caches hold.
template <class T, class Count>
RLKERN_INLINE void store_row(T* x, Vector<T> v, Count n, [[maybe_unused]] bool past) {
  if constexpr (kIsWhole<T, Count>) {
    constexpr bool kFillsALine = kVectorBytes == 64;
    if (kFillsALine && past && reinterpret_cast<uintptr_t>(x) % kVectorBytes == 0) {
      stream(x, v);
    } else {
      store(x, v);
    }
  } else {
    for (int i = 0; i < n; ++i) x[i] = v[i];
  }
}

// 1 where the mask is True, 0 elsewhere.
template <class T, class Count>
RLKERN_INLINE Vector<T> load_mask(const bool* mask, Count n) {
  const uint8_t* flags = reinterpret_cast<const uint8_t*>(mask);
  if constexpr (kIsWhole<T, Count>) {
    return load_flags(flags, T{});
  } else {
    uint8_t row[kWidth<T>] = {};
    for (int i = 0; i < n; ++i) row[i] = flags[i];
    return load_flags(row, T{});
  }
}

}  // namespace rlkern::RLKERN_ISA
