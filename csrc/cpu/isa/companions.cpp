// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, RLKERN_ISA. The mean of a row's logits, and whether the token
// is the first of the largest.
#include "cpu/isa.h"
#include "cpu/isa/cap.h"
#include "cpu/isa/doubles.h"

namespace rlkern::RLKERN_ISA {
namespace {

// Where logits lie, seen from the token: before it, or from it on.
enum class Place { before, from };

// Whether logits keep the token from being the first maximum. Negated comparisons: a NaN does, and
// nothing but that keeps a NaN from it.
template <Place place, class X, class Own>
RLKERN_INLINE auto beats(X x, Own own) {
  if constexpr (place == Place::before) {
    return ~(x < own);
  } else {
    return ~(x <= own);
  }
}

struct Seen {
  DoubleVec sum[2] = {};
  IntVec beaten = {};

  RLKERN_INLINE_MEMBER void add(Vec z) {
    sum[0] += lower_doubles(z);
    sum[1] += upper_doubles(z);
  }
};

template <Place place, class S, class Cap>
RLKERN_INLINE void look_at(const S* x, int64_t n, float own, Cap cap, Seen* seen) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec logits = load(x + i);
    seen->beaten |= beats<place>(logits, own);
    seen->add(cap(logits));
  }
  if (i == n) return;
  // The −inf beyond the end beats only a token that the logits on this side of it beat, too.
  const Vec logits = load_head(x + i, n - i);
  seen->beaten |= beats<place>(logits, own);
  Vec z = cap(logits);
  for (int k = 0; k < kLanes; ++k) z[k] = i + k < n ? z[k] : 0.0f;
  seen->add(z);
}

template <class S, class Cap>
RLKERN_INLINE RowCompanions look(const Row& row, int64_t token, Cap cap) {
  const S* x = static_cast<const S*>(row.logits);
  const float own = to_float(x[token]);
  Seen seen;
  look_at<Place::before>(x, token, own, cap, &seen);
  look_at<Place::from>(x + token, row.vocab - token, own, cap, &seen);
  const DoubleVec sums = seen.sum[0] + seen.sum[1];
  double sum = 0;
  for (int k = 0; k < kWidth<double>; ++k) sum += sums[k];
  bool beaten = false;
  for (int k = 0; k < kLanes; ++k) beaten |= seen.beaten[k] != 0;
  return {sum / double(row.vocab) * row.inv_temperature, !beaten};
}

template <class S>
RowCompanions row_companions(const Row& row, int64_t token) {
  if (row.softcap == 0) return look<S>(row, token, Uncapped(0));
  return look<S>(row, token, Capped(row.softcap));
}

RowCompanions row_companions_float64(const Row& row, int64_t token) {
  const double* x = static_cast<const double*>(row.logits);
  double sum = 0;
  bool first = true;
  for (int64_t i = 0; i < row.vocab; ++i) {
    sum += capped(x[i], row.softcap);
    first &= i < token ? x[i] < x[token] : x[i] <= x[token];
  }
  return {sum / double(row.vocab) * row.inv_temperature, first};
}

}  // namespace

const CompanionKernel companion_kernels[kDtypes] = {row_companions<float>, row_companions<bfloat16>,
                                                    row_companions<float16>,
                                                    row_companions_float64};

}  // namespace rlkern::RLKERN_ISA
