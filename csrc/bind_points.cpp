// The point-cloud kernels in the Python module; kernels/native_points.py is the only caller and checks the arguments.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <utility>

#include "points.h"

namespace py = pybind11;

namespace omnitrunk {
namespace {

using Address = std::uintptr_t;
// (address of the points, address of the offsets or 0, clouds, points of each where there are no offsets)
using CloudsTuple = std::tuple<Address, Address, std::size_t, std::size_t>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

PointClouds clouds(const CloudsTuple& tuple) {
  const auto [points, offsets, count, size] = tuple;
  return {pointer<Point>(points), pointer<std::int64_t>(offsets), count, size};
}

}  // namespace

void bind_points(py::module_& m, Isa isa) {
  m.def("farthest_point_sample", [isa](const CloudsTuple& points, Address start, bool pointnet2, std::size_t picks,
                                       Address index, int threads) {
    const py::gil_scoped_release released;
    farthest_point_sample({clouds(points), pointer<std::int64_t>(start), pointnet2, picks, pointer<std::int64_t>(index)},
                          {isa, threads});
  });
  m.def("nearest_neighbors", [isa](const CloudsTuple& points, const CloudsTuple& queries, std::size_t k, Address index,
                                   Address distance, Address groups, int threads) {
    const py::gil_scoped_release released;
    nearest_neighbors({clouds(points), clouds(queries), k, pointer<std::int64_t>(index), pointer<float>(distance),
                       pointer<Point>(groups)}, {isa, threads});
  });
  m.def("chamfer", [isa](const CloudsTuple& a, const CloudsTuple& b, bool root, Address loss,
                         std::pair<Address, Address> gradients, int threads) {
    const py::gil_scoped_release released;
    chamfer({clouds(a), clouds(b), root, pointer<float>(loss), pointer<Point>(gradients.first),
             pointer<Point>(gradients.second)}, {isa, threads});
  });
}

}  // namespace omnitrunk
