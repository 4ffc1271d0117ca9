// SPDX-License-Identifier: Apache-2.0
#include "cpu/value_loss.h"

#include "bindings/arguments.h"

namespace rlkern {

static void bind_value_loss(int64_t n, bool is_double, int kind, Addresses<4> in, double clip,
                            double delta, Addresses<3> out, int threads) {
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    value_loss<T>(ValueKind(kind),
                  {n, at<T>(in[0]), at<T>(in[1]), at<T>(in[2]), at<T>(in[3]), T(clip), T(delta),
                   at<T>(out[0]), at<double>(out[1]), at<T>(out[2])},
                  threads);
  });
}

RLKERN_BINDINGS(m) { m.def("value_loss", bind_value_loss); }

}  // namespace rlkern
