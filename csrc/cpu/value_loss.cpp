// SPDX-License-Identifier: Apache-2.0
#include "cpu/value_loss.h"

#include "cpu/rows.h"

namespace rlkern {
namespace {

template <ValueKind kind, class T>
void sweep(const ValueLossArguments<T>& a, int threads) {
  std::vector<ValueSums> blocks((a.n + kValueBlock - 1) / kValueBlock);
  parallel(blocks.size(), kValueBlock, threads, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      ValueSums sums;
      const int64_t end = std::min(a.n, (block + 1) * kValueBlock);
      for (int64_t i = block * kValueBlock; i < end; ++i) {
        const T weight = a.weight[i];
        if (weight == 0) {
          a.grad_value[i] = 0;
          continue;
        }
        const T value = a.value[i], target = a.target[i];
        const ValueTerm<T> term =
            value_term<kind>(value, target, a.old_value ? a.old_value[i] : value, a.clip, a.delta);
        a.grad_value[i] = weight * term.slope;
        sums.add(double(weight) * term.value, value, target, term.clipped);
      }
      blocks[block] = sums;
    }
  });
  write_sums(blocks, a.loss, a.metrics);
}

}  // namespace

template <class T>
void value_loss(ValueKind kind, const ValueLossArguments<T>& a, int threads) {
  switch (kind) {
    case ValueKind::squared:
      return sweep<ValueKind::squared>(a, threads);
    case ValueKind::full_squared:
      return sweep<ValueKind::full_squared>(a, threads);
    case ValueKind::huber:
      return sweep<ValueKind::huber>(a, threads);
    case ValueKind::clipped:
      return sweep<ValueKind::clipped>(a, threads);
    case ValueKind::full_clipped:
      return sweep<ValueKind::full_clipped>(a, threads);
    case ValueKind::clipped_huber:
      return sweep<ValueKind::clipped_huber>(a, threads);
    default:
      return sweep<ValueKind::clipped_only>(a, threads);
  }
}

template void value_loss(ValueKind, const ValueLossArguments<float>&, int);
template void value_loss(ValueKind, const ValueLossArguments<double>&, int);

}  // namespace rlkern
