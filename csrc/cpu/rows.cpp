// SPDX-License-Identifier: Apache-2.0
#include "cpu/rows.h"

#include <cmath>
#include <limits>

#include "cpu/half.h"

namespace rlkern {
namespace {

void put(const Grid& grid, int64_t i, int64_t j, double x) {
  void* row = grid.row(i);
  switch (grid.dtype) {
    case kFloat32:
      static_cast<float*>(row)[j] = float(x);
      return;
    case kBfloat16:
      static_cast<bfloat16*>(row)[j] = to_bfloat16(float(x));
      return;
    case kFloat16:
      static_cast<float16*>(row)[j] = to_float16(float(x));
      return;
    default:
      static_cast<double*>(row)[j] = x;
  }
}

template <class T>
constexpr Dtype kDtypeOf = sizeof(T) == 4 ? kFloat32 : kFloat64;

}  // namespace

double Grid::element(int64_t i, int64_t j) const {
  const void* x = row(i);
  switch (dtype) {
    case kFloat32:
      return static_cast<const float*>(x)[j];
    case kBfloat16:
      return to_float(static_cast<const bfloat16*>(x)[j]);
    case kFloat16:
      return to_float(static_cast<const float16*>(x)[j]);
    default:
      return static_cast<const double*>(x)[j];
  }
}

// Returns whether the row has a kept set: a row of nothing but −1 has none. Other negative ids lie
// in another rank's slice.
template <class T>
bool RowReader<T>::gather(int64_t i) {
  ids_.clear();
  if (softmax_.keep == nullptr) return false;
  const int64_t* keep = softmax_.keep + i * softmax_.keep_width;
  const int64_t own = token_[i];
  bool any = false;
  place_ = -1;
  for (int64_t k = 0; k < softmax_.keep_width; ++k) {
    any |= keep[k] != -1;
    if (keep[k] < 0 || keep[k] >= logits_.vocab) continue;
    if (keep[k] == own) place_ = int64_t(ids_.size());
    ids_.push_back(keep[k]);
  }
  if (!any) return false;
  if (place_ < 0 && own >= 0) {
    place_ = int64_t(ids_.size());
    ids_.push_back(own);
  }
  kept_.resize(ids_.size());
  for (size_t k = 0; k < ids_.size(); ++k) kept_[k] = T(logits_.element(i, ids_[k]));
  return true;
}

template <class T>
OpenRow RowReader<T>::open(int64_t i, int64_t ahead) {
  const double inv_temperature = softmax_.inv_temperature_of(i), cap = softmax_.softcap;
  OpenRow open;
  has_kept_set_ = gather(i);
  if (has_kept_set_) {
    void* grad = grad_logits_ ? kept_.data() : nullptr;
    open = {{kept_.data(), nullptr, int64_t(kept_.size()), inv_temperature, cap},
            kDtypeOf<T>,
            place_,
            0,
            grad};
    open.own = place_ < 0 ? 0 : double(kept_[place_]);
  } else {
    const void* next = ahead < 0 ? nullptr : logits_.row(ahead);
    open = {{logits_.row(i), next, logits_.vocab, inv_temperature, cap},
            logits_.dtype,
            token_[i] == kAbsent ? -1 : token_[i],
            0,
            grad_logits_ ? grad_logits_->row(i) : nullptr};
    open.own = open.token < 0 ? 0 : logits_.element(i, open.token);
  }
  const bool banned = open.own == -std::numeric_limits<double>::infinity();
  if (cap != 0 && !banned) open.own = cap * std::tanh(open.own / cap);
  if (open.token < 0) open.own = std::numeric_limits<double>::quiet_NaN();
  return open;
}

template <class T>
void RowReader<T>::close(int64_t i) {
  if (!has_kept_set_ || grad_logits_ == nullptr) return;
  std::memset(grad_logits_->row(i), 0, grad_logits_->vocab * kElementSize[grad_logits_->dtype]);
  for (size_t k = 0; k < ids_.size(); ++k) put(*grad_logits_, i, ids_[k], double(kept_[k]));
}

template class RowReader<float>;
template class RowReader<double>;

}  // namespace rlkern
