// SPDX-License-Identifier: Apache-2.0
// Rows of logits in memory, and how threads share them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace rlkern {

// (B, T, V) logits whose last dimension is contiguous; the other strides, in elements, are
// arbitrary.
struct Grid {
  char* data;
  Dtype dtype;
  int64_t batch, time, vocab, stride_batch, stride_time;

  int64_t rows() const { return batch * time; }
  void* row(int64_t i) const {
    return data + ((i / time) * stride_batch + (i % time) * stride_time) * kElementSize[dtype];
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

// Before anything is written: a token outside the vocabulary would be an address outside the row.
inline void check_tokens(const char* op, const Grid& grid, const std::vector<int64_t>& rows,
                         const int64_t* token) {
  for (const int64_t i : rows) {
    if (token[i] >= 0 && token[i] < grid.vocab) continue;
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

// The k-th counted row, with the one after it announced.
inline Row row_of(const Grid& grid, const std::vector<int64_t>& rows, int64_t k, int64_t end,
                  double inv_temperature) {
  return {grid.row(rows[k]), k + 1 < end ? grid.row(rows[k + 1]) : nullptr, grid.vocab,
          inv_temperature};
}

}  // namespace rlkern
