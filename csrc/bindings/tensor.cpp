// SPDX-License-Identifier: Apache-2.0
#include "bindings/tensor.h"

#include <cstring>

#include "bindings/dlpack.h"

namespace rlkern {
namespace {

constexpr const char* kNames[] = {"float32", "bfloat16", "float16",      "float64",
                                  "int64",   "bool",     "another dtype"};

// torch.Tensor, and how its C library describes one; null in a torch that does not say.
struct Torch {
  PyTypeObject* tensor;
  int (*describe)(void*, dlpack::Tensor*) = nullptr;

  Torch() {
    const py::object type = py::module_::import("torch").attr("Tensor");
    tensor = reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
    const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return;
    const auto* api = static_cast<dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (api && api->major != dlpack::ExchangeApi::kMajor) api = api->older;
    if (api) describe = api->from_object;
  }
};

const Torch& torch() {
  static const Torch* const found = new Torch;  // never deleted: Python may have ended by then
  return *found;
}

Element element_coded(uint8_t code, int bits) {
  switch (code) {
    case dlpack::kFloat:
      return bits == 32   ? Element::float32
             : bits == 16 ? Element::float16
             : bits == 64 ? Element::float64
                          : Element::other;
    case dlpack::kBfloat:
      return bits == 16 ? Element::bfloat16 : Element::other;
    case dlpack::kInt:
      return bits == 64 ? Element::int64 : Element::other;
    case dlpack::kBool:
      return Element::boolean;
    default:
      return Element::other;
  }
}

Element element_named(const std::string& dtype) {
  for (int i = 0; i < int(Element::other); ++i) {
    if (dtype == std::string("torch.") + kNames[i]) return Element(i);
  }
  return Element::other;
}

}  // namespace

template <class Sizes, class Strides>
void Tensor::measure(const Sizes& sizes, const Strides& strides) {
  count_ = 1;
  contiguous_ = true;
  for (int i = ndim_ - 1; i >= 0; --i) {
    const int64_t size = sizes(i), stride = strides(i);
    contiguous_ &= size == 1 || stride == count_;
    count_ *= size;
    if (i < kMostSizes) sizes_[i] = size, strides_[i] = stride;
  }
  contiguous_ |= count_ == 0;
}

bool Tensor::load(py::handle object) {
  if (object.is_none()) return true;
  if (!PyType_IsSubtype(Py_TYPE(object.ptr()), torch().tensor)) return false;
  given_ = true;
  if (!torch().describe) return load_by_attributes(object);
  dlpack::Tensor x;
  if (torch().describe(object.ptr(), &x)) throw py::error_already_set();
  data_ = static_cast<char*>(x.data) + x.byte_offset;
  on_cpu_ = x.device_type == dlpack::kCpu;
  element_ = element_coded(x.type_code, x.type_bits);
  ndim_ = x.ndim;
  measure([&](int i) { return x.shape[i]; }, [&](int i) { return x.strides[i]; });
  return true;
}

// Ten times as slow, for a torch whose C library describes no tensors.
bool Tensor::load_by_attributes(py::handle object) {
  const py::tuple shape = object.attr("shape"), strides = object.attr("stride")();
  data_ = reinterpret_cast<void*>(object.attr("data_ptr")().cast<uintptr_t>());
  on_cpu_ = object.attr("is_cpu").cast<bool>();
  element_ = element_named(py::str(object.attr("dtype")));
  ndim_ = int(shape.size());
  measure([&](int i) { return shape[i].cast<int64_t>(); },
          [&](int i) { return strides[i].cast<int64_t>(); });
  return true;
}

char* Tensor::rows(const char* name, Dtype* dtype) const {
  const bool is_float = element_ <= Element::float64;
  if (!given_ || !on_cpu_ || !is_float || ndim_ != 3 || (sizes_[2] > 1 && strides_[2] != 1)) {
    refuse(name, "(B, T, V) floats on the CPU, side by side in each row");
  }
  *dtype = Dtype(int(element_));
  return static_cast<char*>(data_);
}

void Tensor::require(const char* name, Element element, int64_t count) const {
  if (given_ && on_cpu_ && contiguous_ && element_ == element && count_ == count) return;
  refuse(name,
         std::to_string(count) + " contiguous elements of " + kNames[int(element)] + " on the CPU");
}

void Tensor::refuse(const char* name, const std::string& expected) const {
  std::string got = "None";
  if (given_) {
    got = std::to_string(count_) + " elements of " + kNames[int(element_)] +
          (contiguous_ ? "" : ", not contiguous") + (on_cpu_ ? "" : ", on another device");
  }
  throw py::type_error(std::string(name) + " must be " + expected + ", got " + got);
}

Tensor Fields::tensor(const char* name) const {
  Tensor found;
  if (!found.load(object_.attr(name))) {
    throw py::type_error(std::string(name) + " must be a tensor or None");
  }
  return found;
}

}  // namespace rlkern
