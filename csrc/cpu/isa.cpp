// SPDX-License-Identifier: Apache-2.0
// Which of the compiled instruction sets this machine can run, and which one is used.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace rlkern {

extern const Isa isa_baseline, isa_avx2, isa_avx512, isa_avx512_bf16;

namespace {

std::vector<const Isa*> runnable() {
  std::vector<const Isa*> found;
#if RLKERN_HAVE_AVX512_BF16
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&isa_avx512_bf16);
  }
#endif
#if RLKERN_HAVE_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&isa_avx512);
  }
#endif
#if RLKERN_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&isa_avx2);
#endif
  found.push_back(&isa_baseline);
  return found;
}

const std::vector<const Isa*>& isas() {
  static const std::vector<const Isa*> found = runnable();
  return found;
}

const Isa& choose() {
  const char* name = std::getenv("RLKERN_ISA");
  if (name == nullptr || *name == 0) return *isas().front();
  std::string known;
  for (const Isa* isa : isas()) {
    if (std::strcmp(isa->name, name) == 0) return *isa;
    known += (known.empty() ? "" : ", ") + std::string(isa->name);
  }
  throw std::invalid_argument("RLKERN_ISA must be one of " + known + " on this machine, got '" +
                              name + "'");
}

}  // namespace

const Isa& chosen_isa() {
  static const Isa& chosen = choose();
  return chosen;
}

int isa_count() { return int(isas().size()); }

const Isa& isa_at(int i) { return *isas()[i]; }

}  // namespace rlkern
