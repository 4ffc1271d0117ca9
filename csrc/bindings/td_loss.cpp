// SPDX-License-Identifier: Apache-2.0
#include "cpu/td_loss.h"

#include "bindings/arguments.h"

namespace rlkern {

// in: q, action, reward, done, next_q, other, next_action, weight; out: loss, metrics, grad_q,
// error
static void bind_td_loss(int64_t n, int64_t actions, bool is_double, int bootstrap, int kind,
                         Addresses<8> in, double discount, double delta, Addresses<4> out,
                         int threads) {
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    td_loss<T>(Bootstrap(bootstrap), ValueKind(kind),
               {n, actions, at<T>(in[0]), at<int64_t>(in[1]), at<T>(in[2]), at<bool>(in[3]),
                at<T>(in[4]), at<T>(in[5]), at<int64_t>(in[6]), at<T>(in[7]), T(discount), T(delta),
                at<T>(out[0]), at<double>(out[1]), at<T>(out[2]), at<T>(out[3])},
               threads);
  });
}

RLKERN_BINDINGS(m) { m.def("td_loss", bind_td_loss); }

}  // namespace rlkern
