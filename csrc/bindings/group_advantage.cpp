// SPDX-License-Identifier: Apache-2.0
#include "cpu/group_advantage.h"

#include "bindings/arguments.h"

namespace rlkern {
namespace {

void bind_group_segments(const Tensor& group, const Tensor& order, const Tensor& offset) {
  const int64_t n = group.count();
  const int64_t* ids = group.elements<int64_t>("group", n);
  int64_t* indices = order.elements<int64_t>("order", n);
  int64_t* bounds = offset.elements<int64_t>("offset", n + 1);
  py::gil_scoped_release release;
  group_segments(n, ids, indices, bounds);
}

void bind_group_advantage(const Tensor& reward, const Tensor& order, const Tensor& offset,
                          const Tensor& length, int kind, double eps, int64_t ddof,
                          const Tensor& advantage, int threads) {
  const int64_t n = reward.count();
  const AdvantageKind which = enumerator("kind", kind, AdvantageKind::pass_at_k_normalized);
  with_accumulator(reward.is_double(), [&](auto zero) {
    using T = decltype(zero);
    group_advantage<T>(n, reward.elements<T>("reward", n), order.elements<int64_t>("order", n),
                       offset.elements<int64_t>("offset", n + 1),
                       length.elements_or_null<T>("length", n), which, eps, ddof,
                       advantage.elements<T>("advantage", n), threads);
  });
}

}  // namespace

RLKERN_BINDINGS(m) {
  define(m, "group_segments", bind_group_segments, "group", "order", "offset");
  define(m, "group_advantage", bind_group_advantage, "reward", "order", "offset", "length", "kind",
         "eps", "ddof", "advantage", "threads");
}

}  // namespace rlkern
