// The Python module omnitrunk.kernels._cuda. Arrays cross as device addresses and the stream as its handle, free of
// torch's headers. Types, shapes and contiguity are checked by kernels/cuda.py, the only caller.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels.h"

namespace py = pybind11;

namespace omnitrunk {
namespace {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Kernels start on the device that is current, which must be the stream's.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_));
    if (device != before_) check(cudaSetDevice(device));
    changed_ = device != before_;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// (device, handle of the stream)
using Where = std::pair<int, Address>;

cudaStream_t stream_of(const Where& where) { return reinterpret_cast<cudaStream_t>(where.second); }

// (points, offsets or 0, clouds, points in all)
using CloudsTuple = std::tuple<Address, Address, int, int>;

Clouds clouds(const CloudsTuple& tuple) {
  const auto [points, offsets, count, total] = tuple;
  return {pointer<float>(points), pointer<std::int64_t>(offsets), count, total};
}

void bind_kernels(py::module_& m) {
  m.def("farthest_point_sample", [](const CloudsTuple& points, Address start, bool pointnet2, int picks, Address index,
                                    Address work, const Where& where) {
    const OnDevice device(where.first);
    const Sampling sampling{clouds(points), pointer<std::int64_t>(start), pointnet2,
                            picks,          pointer<std::int64_t>(index), pointer<float>(work)};
    farthest_point_sample(sampling, stream_of(where));
  });
  m.def("nearest_neighbors", [](const CloudsTuple& points, const CloudsTuple& queries, int k, Address index,
                                Address distance, Address groups, const Where& where) {
    const OnDevice device(where.first);
    const Neighbors neighbors{clouds(points),           clouds(queries),        k, pointer<std::int64_t>(index),
                              pointer<float>(distance), pointer<float>(groups)};
    nearest_neighbors(neighbors, stream_of(where));
  });
  m.def("chamfer", [](const CloudsTuple& a, const CloudsTuple& b, bool root, Address loss,
                      const std::array<Address, 2>& grads, const std::array<Address, 4>& work, const Where& where) {
    const OnDevice device(where.first);
    const Chamfer problem{clouds(a),
                          clouds(b),
                          root,
                          pointer<float>(loss),
                          pointer<float>(grads[0]),
                          pointer<float>(grads[1]),
                          pointer<float>(work[0]),
                          pointer<float>(work[1]),
                          pointer<int>(work[2]),
                          pointer<int>(work[3])};
    chamfer(problem, stream_of(where));
  });
}

// The module loads without a driver, but nothing in it could run.
void require_device() {
  int driver = 0, devices = 0;
  cudaDriverGetVersion(&driver);
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess) return;
  const std::string reason = driver == 0 ? "no NVIDIA driver is installed" : cudaGetErrorString(error);
  throw py::import_error("no usable NVIDIA GPU: " + reason);
}

}  // namespace
}  // namespace omnitrunk

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of omnitrunk; call them through omnitrunk.kernels.cuda.";
  omnitrunk::require_device();
  omnitrunk::bind_kernels(m);
}
