// SPDX-License-Identifier: Apache-2.0
// How arguments arrive from Python, and how the files of this folder announce their operations.
// Tensors arrive as addresses: rlkern/backends/cpu has checked them and holds them alive. No torch header
// is included, so one binary serves every version of torch.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace py = pybind11;

namespace rlkern {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <int N>
using Addresses = std::array<Address, N>;

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

// RLKERN_BINDINGS(m) { m.def("stem", stem); } once in each file.
#define RLKERN_BINDINGS(m)                     \
  static void define_bindings(py::module_& m); \
  static const bool kAnnounced = [] {          \
    definitions().push_back(define_bindings);  \
    return true;                               \
  }();                                         \
  static void define_bindings([[maybe_unused]] py::module_& m)

}  // namespace rlkern
