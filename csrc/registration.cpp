// SPDX-License-Identifier: Apache-2.0
// rlkern._C: the operations that the files of csrc/bindings announce, and the instruction sets.
#include "bindings/arguments.h"
#include "cpu/isa.h"

namespace rlkern {
namespace {

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (int i = 0; i < isa_count(); ++i) names.push_back(isa_at(i).name);
  return names;
}

}  // namespace
}  // namespace rlkern

PYBIND11_MODULE(_C, m) {
  using namespace rlkern;
  m.doc() = "Native CPU kernels of rlkern; called by rlkern.backends.cpu.";
  m.def("isa_names", isa_names, "Instruction sets this machine can run, best first.");
  m.def("isa_chosen", [] { return std::string(chosen_isa().name); });
  for (const Definition define : definitions()) define(m);
}
