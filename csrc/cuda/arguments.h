// SPDX-License-Identifier: Apache-2.0
// What Python hands over. Every field has 8 bytes, as rlkern/backends/cuda/library.py repeats them.
#pragma once

#include <cstdint>

namespace rlkern {

// (B, T, V) rows of which the last dimension is contiguous; strides in elements, rows = B·T.
struct Grid {
  void* data;
  int64_t dtype, rows, time, vocab, stride_batch, stride_time;
};

// Results of this library beside those of CUDA, which are at least 0.
constexpr int kRowTooLong = -1, kUnknownDtype = -2, kTooManyRows = -3;
constexpr int64_t kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2;

// Rows as every call takes them. The gradient's data may be null, or the logits'.
struct Call {
  void* stream;
  int64_t device;
  Grid logits, grad;
  const int64_t* token;
  const float* inv_temperature;  // may be null
  double softcap;                // 0 for none
};

struct PolicyLoss {
  Call call;
  const float *advantage, *weight;
  const float *old_logprob, *ref_logprob, *correction, *penalty, *entropy_weight,
      *nll_weight;                     // may be null
  float *statistics, *loss, *metrics;  // statistics: kSummedMetrics columns of all rows
  int64_t gate, kl;
  double coefficients[9];  // Objective.numbers of the reference
};

struct TokenLogprob {
  Call call;
  const bool* mask;  // may be null
  float *logprob, *entropy, *row_max, *log_sum, *sum_pi_squared;
};

struct TokenLogprobBackward {
  Call call;
  const bool* mask;                                     // may be null
  const float *entropy, *row_max, *log_sum;             // of the forward
  const float *grad_logprob, *grad_entropy, *grad_lse;  // may be null
};

struct Scale {
  void* stream;
  int64_t device;
  Grid x;
  const float* factor;
};

}  // namespace rlkern
