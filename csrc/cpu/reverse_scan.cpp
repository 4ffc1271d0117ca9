// SPDX-License-Identifier: Apache-2.0
#include "cpu/reverse_scan.h"

#include "cpu/isa.h"

namespace rlkern {

// What follows each segment, from the ends of those after it: x = end + product · x after it.
template <class T>
static void link(std::vector<Segment<T>>& segments, const ScanRows<T>& rows, int threads) {
  std::vector<Segment<T>> ends = segments;
  sweep_all(ends, threads, [&](Segment<T>* s, int64_t n) {
    chosen_isa().scans->of<T>().reverse_scan_ends(rows, s, n);
  });
  for (size_t i = segments.size(); i-- > 0;) {
    if (!continues(segments, i)) continue;
    const T x = ends[i + 1].state[0], product = ends[i + 1].state[1];
    segments[i].state[0] = product == 0 ? x : x + product * segments[i + 1].state[0];
  }
}

template <class T>
void reverse_scan(const Sequences& sequences, const ScanRows<T>& rows, int threads) {
  const auto sweep = [&](Segment<T>* s, int64_t n) {
    chosen_isa().scans->of<T>().reverse_scan(rows, s, n);
  };
  sweep_short<T>(sequences, threads, [](Segment<T>&) {}, sweep);
  std::vector<Segment<T>> segments = long_segments<T>(sequences);
  if (segments.empty()) return;
  link(segments, rows, threads);
  sweep_all(segments, threads, sweep);
}

template void reverse_scan(const Sequences&, const ScanRows<float>&, int);
template void reverse_scan(const Sequences&, const ScanRows<double>&, int);

}  // namespace rlkern
