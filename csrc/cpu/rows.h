// SPDX-License-Identifier: Apache-2.0
// Rows of logits in memory, and how threads share them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace rlkern {

// (B, T, V) logits whose last dimension is contiguous; the other strides, in elements, are
// arbitrary.
struct Grid {
  char* data;
  Dtype dtype;
  int64_t batch, time, vocab, stride_batch, stride_time;

  int64_t rows() const { return batch * time; }
  void* row(int64_t i) const {
    const bool even = stride_batch == time * stride_time;  // divisions are slow
    const int64_t at = even ? i * stride_time : i / time * stride_batch + i % time * stride_time;
    return data + at * kElementSize[dtype];
  }
  double element(int64_t i, int64_t j) const;
};

// Counted rows first in order, then the others: each kind is shared evenly however the mask is
// shaped.
struct RowOrder {
  std::vector<int64_t> counted, masked;

  template <class Counts>
  RowOrder(int64_t rows, Counts counts) {
    counted.reserve(rows);
    for (int64_t i = 0; i < rows; ++i) (counts(i) ? counted : masked).push_back(i);
  }
};

// What a row costs beside its elements (logarithm, objective, slope), in elements.
constexpr int64_t kRowOverhead = 256;

// Calls body(begin, end) on contiguous parts of [0, n), one per thread. Small work stays on one
// thread.
template <class Body>
void parallel(int64_t n, int64_t work_per_item, int threads, const Body& body) {
  constexpr int64_t kWorkPerThread = 1 << 15;
  const int64_t useful = n * work_per_item / kWorkPerThread;
  const int parts = int(std::max<int64_t>(1, std::min<int64_t>({threads, useful, n})));
  if (parts == 1) {
    body(int64_t(0), n);
    return;
  }
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int part = 0; part < parts; ++part) body(n * part / parts, n * (part + 1) / parts);
}

// ABSENT of the reference: the row's token lies in another rank's slice of the vocabulary.
constexpr int64_t kAbsent = INT64_MIN;

// Before anything is written: a token outside the vocabulary would be an address outside the row.
inline void check_tokens(const char* op, const Grid& grid, const std::vector<int64_t>& rows,
                         const int64_t* token) {
  for (const int64_t i : rows) {
    if ((token[i] >= 0 && token[i] < grid.vocab) || token[i] == kAbsent) continue;
    throw std::invalid_argument(std::string(op) + ": token must be in [0, " +
                                std::to_string(grid.vocab) + ") where it counts, got " +
                                std::to_string(token[i]));
  }
}

inline void zero_rows(const Grid& grid, const std::vector<int64_t>& rows, int threads) {
  const int64_t bytes = grid.vocab * kElementSize[grid.dtype];
  parallel(rows.size(), grid.vocab, threads, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) std::memset(grid.row(rows[k]), 0, bytes);
  });
}

// Which distribution the rows stand for; see Softmax in the reference.
template <class T>
struct Softmax {
  const T* inv_temperature;  // may be null
  double softcap;
  const int64_t* keep;  // may be null
  int64_t keep_width;

  double inv_temperature_of(int64_t i) const { return inv_temperature ? inv_temperature[i] : 1.0; }
};

// One counted row as the kernels take it: the memory of the logits itself, or, of a row with a kept
// set, its kept logits side by side in float32 (float64 for float64).
struct OpenRow {
  Row row;
  Dtype dtype;
  int64_t token;  // its place in the row; −1 if it has none
  double own;     // the token's logit, capped; read before the row may be written over
  void* grad;     // where the row's gradient goes, may be null

  const RowKernels& kernels() const { return chosen_isa().rows[dtype]; }
  // At most 0: the kernels cap the largest logit in float32, which may come out below own.
  double token_u(const RowSums& sums) const {
    const double u = (own - sums.max) * row.inv_temperature;
    return u > 0 ? 0 : u;
  }
  // What the cap takes off the token's own element.
  double token_cap_slope() const {
    const double tanh = row.softcap == 0 ? 0 : own / row.softcap;
    return 1 - tanh * tanh;
  }
};

// A thread's view of the rows, one at a time.
template <class T>
class RowReader {
 public:
  RowReader(const Grid& logits, const int64_t* token, const Softmax<T>& softmax,
            const Grid* grad_logits)
      : logits_(logits), token_(token), softmax_(softmax), grad_logits_(grad_logits) {}

  // ahead: the row that this thread opens next, or −1.
  OpenRow open(int64_t i, int64_t ahead);
  // Puts the gradient of a kept set into its row; the others are there already.
  void close(int64_t i);

 private:
  bool gather(int64_t i);

  const Grid& logits_;
  const int64_t* token_;
  const Softmax<T>& softmax_;
  const Grid* grad_logits_;
  bool has_kept_set_ = false;  // of the open row; none of it need lie in these logits
  std::vector<int64_t> ids_;   // what of it does, the token included
  std::vector<T> kept_;
  int64_t place_ = -1;
};

}  // namespace rlkern
