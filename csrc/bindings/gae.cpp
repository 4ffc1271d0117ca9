// SPDX-License-Identifier: Apache-2.0
#include "cpu/gae.h"

#include "bindings/sequences.h"

namespace rlkern {
namespace {

// rows: reward, value, mask, bootstrap, advantage, target. coefficients: where they are, and
// whether they are (2, sequences) instead of (2,).
void bind_gae(int64_t steps, const SequencesTuple& where, bool is_double, const Addresses<6>& rows,
              const std::pair<Address, bool>& coefficients,
              const std::optional<std::pair<double, int64_t>>& whitening, int threads) {
  const Sequences all = sequences(where);
  const bool per_sequence = coefficients.second;
  const double* numbers = at<double>(coefficients.first);
  const Coefficient discount{numbers, per_sequence};
  const Coefficient gae_lambda{numbers + (per_sequence ? all.count : 1), per_sequence};
  const Whitening how = whitening ? Whitening{whitening->first, whitening->second} : Whitening{};
  with_accumulator(is_double, [&](auto zero) {
    using T = decltype(zero);
    check_bounds("gae", all, steps);
    // Whitening reads the advantages again.
    const bool past = !whitening && exceeds_caches(2 * steps * sizeof(T));
    const GaeRows<T> r{at<T>(rows[0]), at<T>(rows[1]), at<bool>(rows[2]), discount, gae_lambda,
                       at<T>(rows[3]), at<T>(rows[4]), at<T>(rows[5]),    past};
    gae<T>(all, r, whitening ? &how : nullptr, threads);
  });
}

}  // namespace

RLKERN_BINDINGS(m) { m.def("gae", bind_gae); }

}  // namespace rlkern
