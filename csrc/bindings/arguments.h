// SPDX-License-Identifier: Apache-2.0
// How arguments arrive from Python, and how the files of this folder announce their operations.
// Every argument has a name at the call, and every tensor a type: see tensor.h. No torch header is
// included, so one binary serves every version of torch.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/tensor.h"

namespace rlkern {

// The enumerator that Python knows by its place in a table of the reference.
template <class Enum>
Enum enumerator(const char* name, int place, Enum last) {
  if (place >= 0 && place <= int(last)) return Enum(place);
  throw std::invalid_argument(std::string(name) + " must be in [0, " + std::to_string(int(last)) +
                              "], got " + std::to_string(place));
}

// Calls the float or the double version, the GIL released: only double logits have double rows.
template <class Call>
void with_accumulator(bool is_double, const Call& call) {
  py::gil_scoped_release release;
  if (is_double) {
    call(double{});
  } else {
    call(float{});
  }
}

using Definition = void (*)(py::module_&);

// What every file of this folder adds itself to while the library is loaded.
inline std::vector<Definition>& definitions() {
  static std::vector<Definition> found;
  return found;
}

// Defines an operation whose arguments are given by name.
template <class Function, class... Names>
void define(py::module_& m, const char* stem, Function function, const Names&... names) {
  m.def(stem, function, py::kw_only(), py::arg(names)...);
}

// RLKERN_BINDINGS(m) { define(m, "stem", stem, "argument", ...); } once in each file.
#define RLKERN_BINDINGS(m)                     \
  static void define_bindings(py::module_& m); \
  static const bool kAnnounced = [] {          \
    definitions().push_back(define_bindings);  \
    return true;                               \
  }();                                         \
  static void define_bindings([[maybe_unused]] py::module_& m)

}  // namespace rlkern
