// SPDX-License-Identifier: Apache-2.0
#include "cpu/value_loss.h"

#include "cpu/isa.h"
#include "cpu/rows.h"

namespace rlkern {

template <class T>
void value_loss(ValueKind kind, const ValueLossArguments<T>& a, int threads) {
  // The sums of blocks are added in order, so threads do not change the bits.
  constexpr int64_t kBlockElements = 4096;
  const auto block = chosen_isa().values->of<T>().block[int(kind)];
  std::vector<ValueSums> blocks((a.n + kBlockElements - 1) / kBlockElements);
  parallel(blocks.size(), kBlockElements, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i * kBlockElements;
      blocks[i] = block(a, begin, std::min(a.n, begin + kBlockElements));
    }
  });
  ValueSums all = {};
  for (const ValueSums& sums : blocks) {
    all.loss += sums.loss;
    for (int m = 0; m < kValueMetrics; ++m) all.metric[m] += sums.metric[m];
  }
  *a.loss = T(all.loss);
  std::copy_n(all.metric, kValueMetrics, a.metrics);
}

template void value_loss(ValueKind, const ValueLossArguments<float>&, int);
template void value_loss(ValueKind, const ValueLossArguments<double>&, int);

}  // namespace rlkern
