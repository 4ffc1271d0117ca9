// SPDX-License-Identifier: Apache-2.0
// Vectors as wide as the instruction set that this object is compiled for. Everything in this
// folder lies in a namespace named after that set: no symbol of one object can stand for that of
// another, and a profile tells them apart.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/half.h"

namespace rlkern::RLKERN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
constexpr int kWidth = kVectorBytes / int(sizeof(T));
constexpr int kLanes = kWidth<float>;

template <class T>
struct VectorOf {
  using Type [[gnu::vector_size(kVectorBytes)]] = T;
};
template <class T>
using Vector = typename VectorOf<T>::Type;

using Vec = Vector<float>;
using IntVec = Vector<int32_t>;
using UintVec = Vector<uint32_t>;
using DoubleVec = Vector<double>;
using HalfVec [[gnu::vector_size(kVectorBytes / 2)]] = uint16_t;

// 1.5·2²³: a sum with it has no digits left behind the point, and rounds there.
constexpr float kRoundsToWhole = 12582912.0f;

template <class T>
RLKERN_INLINE Vector<T> splat(T x) {
  return Vector<T>{} + x;
}

RLKERN_INLINE Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}

RLKERN_INLINE DoubleVec load(const double* p) {
  DoubleVec x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}

RLKERN_INLINE void store(float* p, Vec x) { std::memcpy(p, &x, sizeof(x)); }

RLKERN_INLINE void store(double* p, DoubleVec x) { std::memcpy(p, &x, sizeof(x)); }

}  // namespace rlkern::RLKERN_ISA
