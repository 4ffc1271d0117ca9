// SPDX-License-Identifier: Apache-2.0
#include "cpu/value_loss.h"

#include "cpu/isa.h"
#include "cpu/rows.h"

namespace rlkern {

template <class T>
void value_loss(ValueKind kind, const ValueLossArguments<T>& a, int threads) {
  const auto block = chosen_isa().values->of<T>().block[int(kind)];
  std::vector<ValueSums> blocks((a.n + kValueBlock - 1) / kValueBlock);
  parallel(blocks.size(), kValueBlock, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i * kValueBlock;
      blocks[i] = block(a, begin, std::min(a.n, begin + kValueBlock));
    }
  });
  write_sums(blocks, a.loss, a.metrics);
}

template void value_loss(ValueKind, const ValueLossArguments<float>&, int);
template void value_loss(ValueKind, const ValueLossArguments<double>&, int);

}  // namespace rlkern
