// SPDX-License-Identifier: Apache-2.0
// Which of the compiled instruction sets this machine can run, and which one is used.
#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace rlkern {
namespace {

// What each set asks of the processor: the flags that setup.py compiles it with.
bool runs_baseline() { return true; }

#if defined(__x86_64__)
[[maybe_unused]] bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

[[maybe_unused]] bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

[[maybe_unused]] bool runs_avx512_bf16() {
  return runs_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

#define RLKERN_ISA_ENTRY(name) \
  {#name,                      \
   runs_##name,                \
   name::row_kernels,          \
   &name::scan_kernels,        \
   &name::value_kernels,       \
   name::companion_kernels},
constexpr Isa kIsas[] = {RLKERN_ISAS(RLKERN_ISA_ENTRY)};
#undef RLKERN_ISA_ENTRY

const std::vector<const Isa*>& isas() {
  static const std::vector<const Isa*> found = [] {
    std::vector<const Isa*> runnable;
    for (const Isa& isa : kIsas) {
      if (isa.runs_here()) runnable.push_back(&isa);
    }
    return runnable;
  }();
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
