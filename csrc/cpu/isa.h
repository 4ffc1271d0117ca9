// SPDX-License-Identifier: Apache-2.0
// The instruction sets in this binary. The kernels of cpu/isa are compiled once per set, in a
// namespace of its name, and chosen at run time.
#pragma once

#include "cpu/row_kernels.h"
#include "cpu/scan_kernels.h"
#include "cpu/value_kernels.h"

namespace rlkern {

template <template <class> class Kernels>
struct PerType {
  Kernels<float> of_float;
  Kernels<double> of_double;

  template <class T>
  const Kernels<T>& of() const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return of_float;
    } else {
      return of_double;
    }
  }
};

struct Isa {
  const char* name;
  bool (*runs_here)();
  const RowKernels* rows;  // by Dtype
  const PerType<ScanKernels>* scans;
  const PerType<ValueKernels>* values;
  const CompanionKernel* companions;  // by Dtype
};

// RLKERN_ISAS(X) is X(name) of every set, best first; the build defines it.
#define RLKERN_DECLARE_ISA(name)                           \
  namespace name {                                         \
  extern const RowKernels row_kernels[kDtypes];            \
  extern const CompanionKernel companion_kernels[kDtypes]; \
  extern const PerType<ScanKernels> scan_kernels;          \
  extern const PerType<ValueKernels> value_kernels;        \
  }
RLKERN_ISAS(RLKERN_DECLARE_ISA)
#undef RLKERN_DECLARE_ISA

// Those that this machine can run, best first; RLKERN_ISA in the environment picks one by name.
const Isa& chosen_isa();
int isa_count();
const Isa& isa_at(int i);

}  // namespace rlkern
