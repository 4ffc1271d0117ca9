// SPDX-License-Identifier: Apache-2.0
// Tensors as arguments. What an operation takes for an address was checked here: its dtype, its
// device, how many elements it has, and that they lie side by side.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "cpu/row_kernels.h"

namespace py = pybind11;

namespace rlkern {

enum class Element : int { float32, bfloat16, float16, float64, int64, boolean, other };

template <class T>
constexpr Element element_of() {
  if constexpr (std::is_same_v<T, float>) return Element::float32;
  if constexpr (std::is_same_v<T, double>) return Element::float64;
  if constexpr (std::is_same_v<T, int64_t>) return Element::int64;
  if constexpr (std::is_same_v<T, bool>) return Element::boolean;
}

// A tensor that the caller holds alive, or None.
class Tensor {
 public:
  static constexpr int kMostSizes = 3;

  // Whether the object is a tensor or None.
  bool load(py::handle object);

  bool given() const { return given_; }
  bool is_double() const { return element_ == Element::float64; }
  int ndim() const { return ndim_; }
  int64_t count() const { return count_; }
  int64_t size(int i) const { return sizes_[i]; }
  int64_t stride(int i) const { return strides_[i]; }

  // Where its elements begin: `count` of them, of type T.
  template <class T>
  T* elements(const char* name, int64_t count) const {
    require(name, element_of<T>(), count);
    return static_cast<T*>(data_);
  }
  // The same, or null for None.
  template <class T>
  T* elements_or_null(const char* name, int64_t count) const {
    return given_ ? elements<T>(name, count) : nullptr;
  }
  // Where the rows of (B, T, V) floats begin. Only V need be contiguous.
  char* rows(const char* name, Dtype* dtype) const;

 private:
  bool load_by_attributes(py::handle object);
  template <class Sizes, class Strides>
  void measure(const Sizes& sizes, const Strides& strides);
  void require(const char* name, Element element, int64_t count) const;
  [[noreturn]] void refuse(const char* name, const std::string& expected) const;

  bool given_ = false, on_cpu_ = false, contiguous_ = false;
  Element element_ = Element::other;
  int ndim_ = 0;
  int64_t count_ = 0;
  int64_t sizes_[kMostSizes] = {}, strides_[kMostSizes] = {};  // the first few
  void* data_ = nullptr;
};

// The fields of a named tuple by name: their order is no matter.
class Fields {
 public:
  explicit Fields(py::handle object) : object_(object) {}

  py::object operator[](const char* name) const { return object_.attr(name); }
  Tensor tensor(const char* name) const;

 private:
  py::handle object_;
};

}  // namespace rlkern

namespace pybind11::detail {

template <>
struct type_caster<rlkern::Tensor> {
  PYBIND11_TYPE_CASTER(rlkern::Tensor, const_name("torch.Tensor | None"));
  bool load(handle object, bool) { return value.load(object); }
};

template <>
struct type_caster<rlkern::Fields> {
  rlkern::Fields value{handle()};
  static constexpr auto name = const_name("tuple");
  template <class>
  using cast_op_type = rlkern::Fields&;
  operator rlkern::Fields&() { return value; }
  bool load(handle object, bool) {
    value = rlkern::Fields(object);
    return true;
  }
};

}  // namespace pybind11::detail
